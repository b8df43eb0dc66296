"""MNIST, Fashion-MNIST, KMNIST, EMNIST, and others of their format, from IDX files."""

import gzip
import io
import re
import string
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np

from caplet.data.arrays import SPLITS, Labelled, source_of
from caplet.data.files import check_labels, find_or_fetch, is_file, is_folder, list_folder, read_bytes
from caplet.data.folder import part_of
from caplet.data.images import endings
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source, joined
from caplet.errors import DataError
from caplet.files import digest

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NAME = re.compile(r"(.*?)(?:(train|t10k|test)[-_.]?)?(images|labels)[-_.]?idx[13][-_.]?ubyte(?:\.gz)?", re.I)
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_LOOKED_AT = 64
"""Files of a folder whose first bytes are looked at, where no names tell."""
_PUBLISHED = dict(
    zip(
        (
            *("741c988805d008ac", "1feba77c54802fa5", "6d87418db22cc802", "ddeff807876a9661"),
            *("2e487a6c89124f78", "657fbd221bfc9f41", "c867c93ff9536059", "3d0e6c6ea990b53b"),
        ),
        product(("mnist", "fashion-mnist"), ("train", "test"), ("images", "labels")),
        strict=True,
    )
)
"""Dataset, split and kind by the first 16 digits of the SHA-256 of the values."""
Pair = tuple[Path, Path]

MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_EVERY = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
_MERGED = tuple(sorted({*_EVERY} - {*"cijklmopsuvwxyz"}))
EMNIST_CLASSES = {
    **{"byclass": _EVERY, "bymerge": _MERGED, "balanced": _MERGED, "letters": tuple(string.ascii_lowercase)},
    **{"digits": MNIST_CLASSES, "mnist": MNIST_CLASSES},
}
"""By split of EMNIST, as torchvision names the classes; those of the letters have the labels 1..26."""
_UPRIGHT = "EMNIST's files have rows and columns exchanged: the images were put upright"
_EMNIST = re.compile(rf"emnist-({'|'.join(EMNIST_CLASSES)})-", re.I)


def find_idx(folder: Path, prefix: str | None = None) -> dict[str, Pair]:
    """The IDX files right in a folder: those of images and of labels by split, train, calibration or test.

    Args:
        prefix: what their names begin with, before train or test; None for any names, also such that do not end as
            published ones do: then the files' headers tell images and labels.

    Raises:
        DataError: they belong to several datasets, or images have no labels.
    """
    found: dict[str, dict[tuple[str, str], Path]] = {}
    for name in list_folder(folder)[1] if is_folder(folder) else ():
        if (match := _NAME.fullmatch(name)) and prefix in (None, match[1].lower()):
            split = "test" if (match[2] or "").lower() in ("t10k", "test") else "train"
            found.setdefault(match[1], {}).setdefault((split, match[3].lower()), folder / name)
    if len(found) > 1:
        names = ", ".join(name.strip("-_. ") for name in found)
        todo = "keep those of one in a folder" + "; or give --data emnist-SPLIT --root" * all(map(_EMNIST.match, found))
        raise DataError(f"{folder}: IDX files of several datasets ({names}): {todo}")
    paths = next(iter(found.values()), {})
    if prefix is None and (not paths or len(paths) % 2):
        paths = _by_headers(folder) or paths
    splits = [split for split in SPLITS if (split, "images") in paths and (split, "labels") in paths]
    if len(paths) > 2 * len(splits):
        raise DataError(f"{folder}: each split needs an IDX file of images and one of labels; one is missing")
    return {split: (paths[split, "images"], paths[split, "labels"]) for split in splits}


def _by_headers(folder: Path) -> dict[tuple[str, str], Path]:
    """Files that begin as IDX files, whatever they are called, by split and kind; {} where one is there twice."""
    others = {*endings(), ".npz", ".npy", ".csv", ".tsv", ".mat", ".zip", ".txt", ".json"}
    there = list_folder(folder)[1] if is_folder(folder) else ()
    names = [name for name in there if Path(name).suffix.lower() not in others]
    found: dict[tuple[str, str], Path] = {}
    for name in names if len(names) <= _LOOKED_AT else ():
        if not is_file(folder / name):  # a pipe
            continue
        try:
            with open(folder / name, "rb") as packed:
                zipped = packed.read(2) == b"\x1f\x8b"
                packed.seek(0)
                start = gzip.GzipFile(fileobj=packed).read(4) if zipped else packed.read(4)
        except (OSError, EOFError, zlib.error):
            continue
        if len(start) < 4 or start[:2] != bytes(2) or start[2] not in _TYPES or not 1 <= start[3] <= 4:
            continue
        words = ["test" if "t10k" in name.lower() else "", *re.split(r"[^a-z]+", name.lower())]
        split = next(filter(None, map(part_of, words)), "train")
        key = split, "images" if start[3] > 2 else "labels"
        if key in found:
            return {}
        found[key] = folder / name
    return found


def load_idx(name: str, folder: str, classes: tuple[str, ...], request: DataRequest) -> Source:
    """Read a dataset in MNIST's format, downloaded by torchvision if its files are missing.

    Files are looked for in ``root/FOLDER/raw``, then in ``root/raw`` and ``root`` itself. What has been published as
    another dataset, split or kind of file is known by its hash.

    Args:
        folder: torchvision's name of the dataset's class and folder.

    Raises:
        DataError: files are missing and not to be had, damaged, another dataset's, or do not belong together.
    """
    split = name.removeprefix("emnist-")
    emnist = split != name
    files = [f"{name}-{part}-{end[6:]}" for part in ("train", "test") for end in FILES[:2]] if emnist else FILES

    def find(root: Path) -> dict[str, Pair] | None:
        every = (
            find_idx(place, f"{name}-" if emnist else None) for place in (root / folder / "raw", root / "raw", root)
        )
        return next((found for found in every if len(found) == 2), None)

    layout = f"{folder}/raw/{{{','.join(files)}}} (or .gz)"
    paths = find_or_fetch(
        name, layout, request, find, folder, {"split": split, "train": False} if emnist else {"train": False}
    )
    note = "" if name in ("mnist", "fashion-mnist") else "whether these are the published files was not looked at"
    for (split, pair), kind in product(paths.items(), (0, 1)):
        this = name, split, ("images", "labels")[kind]
        known = _PUBLISHED.get(digest(read_idx(pair[kind]).data)[:16])
        note = note or ("" if known else f"files in {name}'s format, not the published ones")
        if known not in (None, this):
            raise DataError(
                f"{pair[kind]} is the file of {' '.join(known)}, not of {' '.join(this)}: give --data {known[0]}"
            )
    first = int(name == "emnist-letters")
    train, test = (_read_split(*paths[split], classes, f"{name}/{split}", first) for split in ("train", "test"))
    if emnist:
        note = joined(note, _UPRIGHT)
        train, test = (replace(part, images=part.images.transpose(2, 3)) for part in (train, test))
    return Source(train, test, "IDX files", paths["train"][0].parent, note=note)


def load_idx_folder(paths: dict[str, Pair], request: DataRequest) -> Source:
    """Read IDX files of any dataset; its classes are named after their labels, or as EMNIST's are.

    Raises:
        DataError: a file is damaged, or they do not belong together.
    """
    parts = {
        split: Labelled(read_idx(images), read_idx(labels), str(images), str(labels))
        for split, (images, labels) in paths.items()
    }
    root, classes, note = next(iter(paths.values()))[0].parent, tuple[str, ...](), ""
    if split := _EMNIST.match(next(iter(paths.values()))[0].name):
        names, note = EMNIST_CLASSES[split[1].lower()], _UPRIGHT
        first = int(len(names) == 26)  # the letters' labels begin at 1
        if all(((part.labels >= first) & (part.labels < first + len(names))).all() for part in parts.values()):
            classes = names
            parts = {name: part._replace(labels=part.labels - first) for name, part in parts.items()}
        parts = {name: part._replace(pixels=part.pixels.swapaxes(1, -1)) for name, part in parts.items()}
    elif set(parts) == {"train", "test"}:
        known = {_PUBLISHED.get(digest(part.pixels.data)[:16], ("",))[0] for part in parts.values()}
        if known == {"fashion-mnist"}:
            classes, note = FASHION_CLASSES, "the published files of fashion-mnist"
    only = {"train": next(iter(parts.values()))} if len(parts) == 1 else parts
    return source_of(only, "IDX files", root, note, classes)


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, gzipped or not, read piece by piece. Raises DataError where it is damaged."""
    data = read_bytes(path)
    try:
        with gzip.open(io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data) as stream:
            yield stream  # type: ignore[misc]  # a GzipFile opened for reading is a BinaryIO
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or gzipped, of at most 2 GiB.

    Returns:
        Whole numbers or floats, mostly uint8, of the shape its header names.

    Raises:
        DataError: the file cannot be read, is not IDX, or is shorter or longer than its header says.
    """
    with unpacked(path) as stream:
        start = stream.read(4)
        if len(start) < 4 or start[:2] != bytes(2) or start[2] not in _TYPES or not 1 <= start[3] <= 4:
            raise DataError(f"{path}: not an IDX file: it starts with {start.hex()!r}, not 000008..: fetch it again")
        kind = np.dtype(_TYPES[start[2]])
        sizes, offset = stream.read(4 * start[3]), 4 + 4 * start[3]
        if len(sizes) < offset - 4:
            raise DataError(f"{path}: truncated: its header has {4 + len(sizes)} of {offset} bytes: fetch it again")
        shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
        count = int(np.prod(shape, dtype=object)) * kind.itemsize
        values = stream.read(min(count, 1 << 31) + 1)
    if len(values) != count:
        found, more = f"{offset + len(values)} bytes", len(values) > count
        what = f"too long: {found} or more" if more else f"truncated: {found}"
        raise DataError(f"{path}: {what}, its header {shape} asks for {offset + count}: fetch it again")
    return np.frombuffer(values, kind).reshape(shape).astype(kind.newbyteorder("="))


def _read_split(images_path: Path, labels_path: Path, classes: tuple[str, ...], name: str, first: int) -> ImageSet:
    """One split whose labels begin at ``first``."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or {images.dtype, labels.dtype} != {np.dtype(np.uint8)}:
        raise DataError(
            f"{images_path}: expected bytes, images of 3 dimensions and labels of 1, found {images.dtype} of"
            f" {images.ndim} and {labels.dtype} of {labels.ndim}: are files mixed up?"
        )
    check_labels(labels_path, labels, len(images), range(first, first + len(classes)), images_path)
    return ImageSet.of_arrays(images[:, None], labels - first, classes, name)
