"""CIFAR-10 and CIFAR-100: the published Python batches or binary files; and CIFAR-10 as images."""

import io
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caplet.data.files import check_labels, check_md5, data_root, find_or_fetch, is_file, is_folder, read_bytes
from caplet.data.folder import DecodedTree, is_archive, read_tree, to_source
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source, joined
from caplet.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar10-jpeg.tar.xz"
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """How one of the two datasets is published.

    Attributes:
        title: torchvision's class is called so, without the hyphen.
        folders: of the pickled batches and of the binary files.
        train, test: names of the batches; binary ones end in ``.bin``.
        count: images in a training batch.
        labels: the name of the labels in a pickled batch.
        before: bytes before the pixels of an image in a binary file; the last of them is the label.
        names: what holds the names of the classes: a pickle, their name in it, and a text file; () if they are known.
        layout: what belongs under the root, for messages.
    """

    title: str
    folders: tuple[str, str]
    train: tuple[str, ...]
    test: str
    count: int
    labels: str
    before: int
    names: tuple[str, ...]
    layout: str


CIFAR10 = Cifar(
    "CIFAR-10",
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    *("test_batch", 10_000, "labels", 1, ()),
    f"cifar-10-batches-py/{{data_batch_1..5,test_batch}}, {ARCHIVE}, or train/<class>/* and test/<class>/* "
    "with the ten class names",
)
CIFAR100 = Cifar(
    "CIFAR-100",
    ("cifar-100-python", "cifar-100-binary"),
    *(("train",), "test", 50_000, "fine_labels", 2, ("meta", "fine_label_names", "fine_label_names.txt")),
    "cifar-100-python/{train,test,meta} or cifar-100-binary/{train.bin,test.bin,fine_label_names.txt}",
)
_TEST_COUNT = 10_000


class _ArraysOnly(pickle._Unpickler):  # in Python: that in C makes its memory as large as a damaged file says
    """Unpickles dicts, lists, bytes and numpy arrays; anything else in the file is refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {"ndarray": _Stored, "dtype": _Stored, "_frombuffer": _array, "encode": _latin1}
        known["_reconstruct"] = lambda *_: _Stored()
        if module.partition(".")[0] in ("numpy", "_codecs") and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data does not need")


class _Stored:
    """A type of numpy or an array in a pickle; numpy itself trusts what it is told of them, and can crash."""

    def __init__(self, kind: str = "", *_: Any) -> None:
        self.kind, self.array = kind, np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if not self.kind:
            _, shape, kind, columns_first, content = state
            self.array = _array(content, kind, shape, "F" if columns_first else "C")


def _array(content: bytes, kind: _Stored, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, np.dtype(str(kind.kind))).reshape(shape, order=order)


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _entries(path: Path, form: Cifar, *names: str) -> list[Any]:
    """Entries of a pickled table, None for those it lacks; nothing in it can run. Raises DataError."""
    content = io.BytesIO(read_bytes(path))
    try:
        batch = _ArraysOnly(content, encoding="bytes").load()
        found = [batch.get(name.encode(), batch.get(name)) for name in names]
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: not a readable {form.title} batch ({error}): fetch it again") from error
    return [entry.array if isinstance(entry, _Stored) else entry for entry in found]


def read_batch(path: Path, form: Cifar = CIFAR10, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A pickled batch, read so that nothing in the file can run, or a binary one.

    A batch with the published number of images must also have the published MD5; of binary ones none is known.

    Returns:
        (images, labels): uint8 (N, 3, 32, 32), int64 (N,).

    Raises:
        DataError: the file is damaged, holds something else, or is not the published one.
    """
    if path.suffix == ".bin":
        rows = np.frombuffer(read_bytes(path), np.uint8)
        if not len(rows) or len(rows) % (form.before + _PIXELS):
            todo = f"a multiple of {form.before + _PIXELS}: fetch it again"
            raise DataError(f"{path}: {len(rows):,} bytes; {form.title} in binary form has {todo}")
        rows = rows.reshape(-1, form.before + _PIXELS)
        data, labels = rows[:, form.before :], rows[:, form.before - 1].tolist()
    else:
        data, labels = _entries(path, form, "data", form.labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: 'data' must be uint8 (N, {_PIXELS}), found {found}: fetch it again")
    if not isinstance(labels, list) or not all(isinstance(value, int) for value in labels):
        raise DataError(f"{path}: {form.labels!r} must be a list of integers: fetch it again")
    check_labels(path, np.array(labels), len(data), range(classes))
    if path.suffix != ".bin" and len(data) == (_TEST_COUNT if path.name == form.test else form.count):
        import torchvision.datasets

        published = getattr(torchvision.datasets, form.title.replace("-", ""))
        check_md5(path, dict((*published.train_list, *published.test_list)).get(path.name))
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def find_batches(form: Cifar, root: Path) -> dict[str, list[Path]]:
    """The batches in a folder, or in their own folder in it, by split, and what names the classes; none: ``{}``."""
    for folder, suffix, names in zip(form.folders, ("", ".bin"), (form.names[:1], form.names[2:]), strict=True):
        for place in (root / folder, root):
            batches = [place / f"{name}{suffix}" for name in (*form.train, form.test)]
            if all(map(is_file, every := [*batches, *(place / name for name in names)])):
                return {"train": batches[:-1], "test": batches[-1:], "names": every[len(batches) :]}
    return {}


def load_batches(form: Cifar, paths: dict[str, list[Path]], request: DataRequest) -> Source:
    """The two splits of batches. Raises DataError."""
    classes: tuple[str, ...] = CLASSES
    for path in paths["names"]:
        if path.suffix == ".txt":
            names = read_bytes(path).decode("utf-8", "replace").split()
        else:
            [found] = _entries(path, form, form.names[1])
            found = found if isinstance(found, list) else []
            names = [name.decode("utf-8", "replace") for name in found if isinstance(name, bytes)]
        classes = tuple(names)
        if not 2 <= len({*classes}) == len(classes):
            raise DataError(f"{path}: names of classes expected, each another one: fetch it again")

    def part(split: str) -> ImageSet:
        batches = [read_batch(path, form, len(classes)) for path in paths[split]]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return ImageSet.of_arrays(images, labels, classes, f"{form.title.replace('-', '').lower()}/{split}")

    train, test, binary = part("train"), part("test"), paths["test"][0].suffix == ".bin"
    published = len(train) == len(paths["train"]) * form.count and len(test) == _TEST_COUNT
    note = form.title if published else f"files in {form.title}'s format, not the published ones"
    note = joined(note, "binary version" if binary else "", "fine labels" if form is CIFAR100 else "")
    source = "binary batches" if binary else "Python batches"
    return Source(train, test, source, paths["test"][0].parent, note=note)


def _from_tree(decoded: DecodedTree, source: str, root: Path) -> Source:
    if decoded.classes != CLASSES:
        found = ", ".join(decoded.classes[:12])
        raise DataError(f"{root}: CIFAR-10 has the classes {', '.join(CLASSES)}; found {found}: use dataset 'folder'")
    if not decoded.counts[2]:
        raise DataError(f"{root}: CIFAR-10's test images (test/<class>/*) are missing: fetch them too")
    jpeg = set(decoded.formats) & {".jpg", ".jpeg"}
    return to_source(decoded, "cifar10", source=source, root=root, note="CIFAR-10 (JPEG)" if jpeg else "CIFAR-10")


def load_cifar(form: Cifar, request: DataRequest) -> Source:
    """Read CIFAR-10 or CIFAR-100 (fine labels), downloaded by torchvision if nothing is found.

    Looked for, in this order: of CIFAR-10, ``root`` itself as an archive of images; batches in their folder in ``root``
    or in ``root``, pickled or binary; of CIFAR-10, ``root/train/<class>`` and ``root/test/<class>``, and
    ``root/cifar10-jpeg.tar.xz``. JPEG images are not the published pixels, which the source's note says.

    Raises:
        DataError: nothing is found and nothing can be fetched, or the files are damaged.
    """
    root = data_root(request)
    native = replace(request, size=None, channels=3)
    for path in (root, root / ARCHIVE) if form is CIFAR10 else ():
        if is_archive(path) and (path == root or not find_batches(form, root)):
            return _from_tree(read_tree(path, native), "image archive", path)
    if is_file(root):
        raise DataError(f"{root} is a file, but not an archive: give a folder with {form.layout}")
    if form is CIFAR10 and is_folder(root / "train" / CLASSES[0]) and not find_batches(form, root):
        return _from_tree(read_tree(root, native), "image folder", root)
    name = form.title.replace("-", "")
    found = find_or_fetch(name.lower(), form.layout, request, lambda at: find_batches(form, at) or None, name, {})
    return load_batches(form, found, request)
