"""CIFAR-10: the published Python batches, or the same images as an image folder or an archive of one."""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from caplet.data.files import check_labels, check_md5, data_root, find_or_fetch, is_file, is_folder, read_bytes
from caplet.data.folder import DecodedTree, is_archive, read_tree, to_source
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError

NAME = "cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar10-jpeg.tar.xz"
LAYOUT = (
    f"cifar-10-batches-py/{{data_batch_1..5,test_batch}}, {ARCHIVE}, or train/<class>/* and test/<class>/* "
    "with the ten class names"
)
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)
_PUBLISHED_COUNT = 10_000


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


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One of CIFAR-10's pickled batches, read so that nothing in the file can run.

    A batch with the published number of images (10,000) must also have the published MD5.

    Returns:
        (images, labels): uint8 (N, 3, 32, 32), int64 (N,).

    Raises:
        DataError: the file is damaged, holds something else, or is not the published one.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        batch = _ArraysOnly(content, encoding="bytes").load()
        data, labels = (batch.get(key, batch.get(key.decode())) for key in (b"data", b"labels"))
        data = data.array if isinstance(data, _Stored) else data
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: not a readable CIFAR-10 batch ({error}): fetch it again") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: 'data' must be uint8 (N, 3072), found {found}: fetch it again")
    if not isinstance(labels, list) or not all(isinstance(value, int) for value in labels):
        raise DataError(f"{path}: 'labels' must be a list of integers: fetch it again")
    check_labels(path, np.array(labels), len(data), range(len(CLASSES)))
    if len(data) == _PUBLISHED_COUNT:
        from torchvision.datasets import CIFAR10

        check_md5(path, dict((*CIFAR10.train_list, *CIFAR10.test_list)).get(path.name))
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _batches_folder(root: Path) -> Path | None:
    for folder in (root / "cifar-10-batches-py", root):
        if all(is_file(folder / name) for name in (*_TRAIN, *_TEST)):
            return folder
    return None


def _load_batches(folder: Path) -> Source:
    def part(names: tuple[str, ...], split: str) -> ImageSet:
        batches = [read_batch(folder / name) for name in names]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return ImageSet.of_arrays(images, labels, CLASSES, f"{NAME}/{split}")

    train, test = part(_TRAIN, "train"), part(_TEST, "test")
    published = len(train) == 5 * _PUBLISHED_COUNT and len(test) == _PUBLISHED_COUNT
    note = "CIFAR-10" if published else "files in CIFAR-10's format, not the published ones"
    return Source(train, test, "Python batches", folder, note=note)


def _from_tree(decoded: DecodedTree, source: str, root: Path) -> Source:
    if decoded.classes != CLASSES:
        found = ", ".join(decoded.classes[:12])
        raise DataError(f"{root}: CIFAR-10 has the classes {', '.join(CLASSES)}; found {found}: use dataset 'folder'")
    if not decoded.counts[2]:
        raise DataError(f"{root}: CIFAR-10's test images (test/<class>/*) are missing: fetch them too")
    jpeg = set(decoded.formats) & {".jpg", ".jpeg"}
    return to_source(decoded, NAME, source=source, root=root, note="CIFAR-10 (JPEG)" if jpeg else "CIFAR-10")


def load_cifar10(request: DataRequest) -> Source:
    """Read CIFAR-10, downloaded by torchvision if nothing is found.

    Looked for, in this order: ``root`` itself as an archive; ``root/cifar-10-batches-py`` or the batches in ``root``;
    ``root/train/<class>`` and ``root/test/<class>``; ``root/cifar10-jpeg.tar.xz``. JPEG images are not the published
    pixels, which the source's note says.

    Raises:
        DataError: nothing is found and nothing can be fetched, or the files are damaged.
    """
    root = data_root(request)
    native = replace(request, size=None, channels=3)
    for path in (root, root / ARCHIVE):
        if is_archive(path) and (path == root or _batches_folder(root) is None):
            return _from_tree(read_tree(path, native), "image archive", path)
    if is_file(root):
        raise DataError(f"{root} is a file, but not an archive: give a folder with {LAYOUT}")
    if is_folder(root / "train" / CLASSES[0]) and _batches_folder(root) is None:
        return _from_tree(read_tree(root, native), "image folder", root)
    return _load_batches(find_or_fetch(NAME, LAYOUT, request, _batches_folder, "CIFAR10", {}))
