"""Images in one folder per class, with or without a test split: finding them, decoding them, making splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from caplet.data.decode import EXTENSIONS, ImageFile, decode_all
from caplet.data.files import is_folder, list_folder
from caplet.data.imageset import ImageSet
from caplet.data.source import Request, Source, cut_test
from caplet.errors import DataError

LAYOUT = "<class>/*.png (.jpg, .bmp, ...), or train/<class>/* and test/<class>/*, with at least two classes"
ByClass = dict[str, list[ImageFile]]


@dataclass(frozen=True)
class ImageTree:
    """Image files by split and class, before decoding; ``test`` is None if there is no such split."""

    where: Path
    train: ByClass
    test: ByClass | None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"{self.where}: no class folders with images found: expected {LAYOUT}")
        if len(self.train) < 2:
            raise DataError(f"{self.where}: only one class ({next(iter(self.train))!r}) found: expected {LAYOUT}")
        for name, files in self.train.items():
            if not files:
                raise DataError(
                    f"{self.where}: class {name!r} has no training images ({', '.join(EXTENSIONS)}): add or remove it"
                )
        unknown = sorted(set(self.test or ()) - set(self.train))
        if unknown:
            raise DataError(
                f"{self.where}: test has class {unknown[0]!r}, train does not: both need the same class names"
            )
        if self.test is not None and not any(self.test.values()):
            raise DataError(
                f"{self.where}: the test folder has no images: add some, or remove the folder to have a split made"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order: sorted."""
        return tuple(sorted(self.train))

    @property
    def formats(self) -> tuple[str, ...]:
        """The file extensions that occur, lower case, sorted."""
        files = (f for by_class in (self.train, self.test or {}) for group in by_class.values() for f in group)
        return tuple(sorted({Path(file.name).suffix.lower() for file in files}))


@dataclass(frozen=True)
class DecodedTree:
    """A decoded :class:`ImageTree`: uint8 NCHW, int64 labels; first the training, then ``test_count`` test images."""

    images: np.ndarray
    labels: np.ndarray
    test_count: int
    classes: tuple[str, ...]
    formats: tuple[str, ...]


def scan_folder(root: Path) -> ImageTree:
    """Find the images under a folder.

    ``root/train/<class>/*`` (and ``root/test/<class>/*``) if ``root/train`` has sub-folders, else ``root/<class>/*``.
    Hidden files, other file types, and folders beside ``train`` and ``test`` are left out.

    Raises:
        DataError: the folder is missing, cannot be read, or has not at least two classes with images each.
    """
    if not is_folder(root):
        raise DataError(f"no folder {root}: expected one with {LAYOUT}")
    folders, _ = list_folder(root)
    if "train" not in folders or not list_folder(root / "train")[0]:
        return ImageTree(root, _scan_classes(root), None)
    test = _scan_classes(root / "test") if "test" in folders else None
    return ImageTree(root, _scan_classes(root / "train"), test, tuple(f for f in folders if f not in ("train", "test")))


def _scan_classes(folder: Path) -> ByClass:
    return {
        name: [
            ImageFile(str(folder / name / file), folder / name / file)
            for file in list_folder(folder / name)[1]
            if file.lower().endswith(EXTENSIONS)
        ]
        for name in list_folder(folder)[0]
    }


def decode_tree(tree: ImageTree, request: Request) -> DecodedTree:
    """Decode every image of a tree, in order: train, then test; by class; by file name.

    Raises:
        DataError: as :func:`caplet.data.decode.decode_all`.
    """
    files: list[ImageFile] = []
    labels: list[int] = []
    counts: list[int] = []
    for by_class in (tree.train, tree.test or {}):
        start = len(files)
        for label, name in enumerate(tree.classes):
            files += by_class.get(name, [])
            labels += [label] * len(by_class.get(name, []))
        counts.append(len(files) - start)
    images = decode_all(files, size=request.size, channels=request.channels, progress=request.progress)
    return DecodedTree(images, np.array(labels, dtype=np.int64), counts[1], tree.classes, tree.formats)


def to_source(decoded: DecodedTree, name: str, *, source: str, root: Path, note: str = "") -> Source:
    """Train and test sets of decoded images; without test images, 20 % of all are cut off as the test split."""
    images, labels = torch.from_numpy(decoded.images), torch.from_numpy(decoded.labels)

    def part(start: int, stop: int, split: str) -> ImageSet:
        ids = torch.arange(stop - start)
        return ImageSet(images[start:stop], labels[start:stop], ids, decoded.classes, f"{name}/{split}")

    boundary = len(images) - decoded.test_count
    if decoded.test_count:
        return Source(part(0, boundary, "train"), part(boundary, len(images), "test"), source, root, note=note)
    train, test, description = cut_test(part(0, boundary, "all"), name)
    return Source(train, test, source, root, test_split=description, note=note)
