"""MNIST, Fashion-MNIST, and others of their format, from IDX files."""

import gzip
import re
import zlib
from itertools import product
from pathlib import Path

import numpy as np

from caplet.data.files import check_labels, find_or_fetch, is_folder, list_folder, read_bytes
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source, cut_test
from caplet.errors import DataError
from caplet.files import digest

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NAME = re.compile(r"(.*?)(?:(train|t10k|test)[-_.]?)?(images|labels)[-_.]?idx[13][-_.]?ubyte(?:\.gz)?", re.I)
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


def find_idx(folder: Path) -> dict[str, Pair]:
    """The IDX files right in a folder: those of images and of labels by split, train or test; of any usual names.

    Raises:
        DataError: they belong to several datasets, or images have no labels.
    """
    found: dict[str, dict[tuple[str, str], Path]] = {}
    for name in list_folder(folder)[1] if is_folder(folder) else ():
        if match := _NAME.fullmatch(name):
            split = "test" if (match[2] or "").lower() in ("t10k", "test") else "train"
            found.setdefault(match[1], {}).setdefault((split, match[3].lower()), folder / name)
    if len(found) > 1:
        raise DataError(f"{folder}: IDX files of several datasets ({', '.join(found)}): keep those of one in a folder")
    paths = next(iter(found.values()), {})
    splits = [split for split in ("train", "test") if (split, "images") in paths and (split, "labels") in paths]
    if len(paths) > 2 * len(splits):
        raise DataError(f"{folder}: each split needs an IDX file of images and one of labels; one is missing")
    return {split: (paths[split, "images"], paths[split, "labels"]) for split in splits}


def load_idx(name: str, folder: str, classes: tuple[str, ...], request: DataRequest) -> Source:
    """Read a dataset in MNIST's format, downloaded by torchvision if its files are missing.

    Files are looked for in ``root/FOLDER/raw``, then in ``root/raw`` and ``root`` itself. What has been published as
    another dataset, split or kind of file is known by its hash.

    Args:
        folder: torchvision's name of the dataset's class and folder.

    Raises:
        DataError: files are missing and not to be had, damaged, another dataset's, or do not belong together.
    """

    def find(root: Path) -> dict[str, Pair] | None:
        every = (find_idx(place) for place in (root / folder / "raw", root / "raw", root))
        return next((found for found in every if len(found) == 2), None)

    layout = f"{folder}/raw/{{{','.join(FILES)}}} (or .gz)"
    paths = find_or_fetch(name, layout, request, find, folder, {"train": False})
    note = ""
    for (split, pair), kind in product(paths.items(), (0, 1)):
        this = name, split, ("images", "labels")[kind]
        known = _PUBLISHED.get(digest(read_idx(pair[kind]).data)[:16])
        note = note or ("" if known else f"files in {name}'s format, not the published ones")
        if known not in (None, this):
            raise DataError(
                f"{pair[kind]} is the file of {' '.join(known)}, not of {' '.join(this)}: give --data {known[0]}"
            )
    return _load(name, paths, classes, note)


def load_idx_folder(root: Path) -> Source:
    """Read a folder's IDX files of any dataset; its classes are named after their labels, which begin at 0 or 1.

    Raises:
        DataError: a file is damaged, or they do not belong together.
    """
    paths = find_idx(root)
    labels = {int(label) for _, path in paths.values() for label in np.unique(read_idx(path))}
    classes = tuple(str(label) for label in range(min({1} | labels), max({1} | labels) + 1))
    return _load("folder", paths, classes, f"labels {classes[0]}..{classes[-1]} are the classes")


def _load(name: str, paths: dict[str, Pair], classes: tuple[str, ...], note: str) -> Source:
    first = int(classes[0]) if name == "folder" else 0
    sets = {split: _read_split(*pair, classes, f"{name}/{split}", first) for split, pair in paths.items()}
    root = next(iter(paths.values()))[0].parent
    if len(sets) == 2:
        return Source(sets["train"], sets["test"], "IDX files", root, note=note)
    return cut_test(next(iter(sets.values())), name, "IDX files", root, note)


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    Returns:
        uint8, of the shape its header names.

    Raises:
        DataError: the file cannot be read, is not IDX, or is shorter or longer than its header says.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise DataError(
            f"{path}: not an IDX file of bytes: it starts with {data[:4].hex()!r}, not 000008..: fetch it again"
        )
    offset = 4 + 4 * data[3]
    if len(data) < offset:
        raise DataError(f"{path}: truncated: its header has {len(data)} of {offset} bytes: fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    wanted = offset + int(np.prod(shape, dtype=object))
    if len(data) != wanted:
        kind = "truncated" if len(data) < wanted else "too long"
        raise DataError(f"{path}: {kind}: {len(data)} bytes, its header {shape} asks for {wanted}: fetch it again")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape).copy()


def _read_split(images_path: Path, labels_path: Path, classes: tuple[str, ...], name: str, first: int) -> ImageSet:
    """One split whose labels begin at ``first``."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(
            f"{images_path}: images must have 3 dimensions and labels 1, found {images.ndim} and {labels.ndim}: "
            "are files mixed up?"
        )
    check_labels(labels_path, labels, len(images), range(first, first + len(classes)), images_path)
    return ImageSet.of_arrays(images[:, None], labels - first, classes, name)
