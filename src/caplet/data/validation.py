"""Images that a network was never trained on: a folder of its own, with classes or without labels."""

import hashlib
from pathlib import Path

import numpy as np

from caplet.data.files import is_folder
from caplet.data.folder import scan_folder
from caplet.data.images import ImageFile, decode_all
from caplet.data.imageset import ImageSet, spelt
from caplet.data.splits import Splits, in_turns
from caplet.errors import DataError


def load_validation(folder: Path, splits: Splits, progress: bool = False) -> tuple[ImageSet, bool]:
    """The images of ``folder/<class>/*``, or unlabelled ones of ``folder/*``, in the size and channels of the splits.

    Args:
        splits: of the data that the model is quantized with: the classes must be the same.

    Returns:
        The images, classes in turns, and whether they have labels; without them all labels are 0.

    Raises:
        DataError: no folder or no images; other classes; images of another size where the splits keep theirs; images
            that are in the train, calibration or test split, too (their number is named).
    """
    if not is_folder(folder):
        raise DataError(f"validation images: no folder {folder}; expected <class>/* with the data's classes, or images")
    files, labels, labelled = _files(folder, splits.train.classes)
    size, channels, name = splits.info.get("size"), splits.train.image_shape[0], f"{folder.name}/validation"
    pixels, _ = decode_all(files, size=None if size is None else tuple(size), channels=channels, progress=progress)
    images = ImageSet.of_arrays(pixels, np.array(labels, dtype=np.int64), splits.train.classes, name)
    if images.image_shape != splits.train.image_shape:
        expected, found = ("x".join(map(str, shape)) for shape in (splits.train.image_shape, images.image_shape))
        raise DataError(f"{folder}: images are {found}, the data's {expected}: bring them to that size, or give --size")
    for split in (splits.train, splits.calibration, splits.test):
        if shared := overlap(images, split):
            raise DataError(
                f"{folder}: {shared:,} of {len(images):,} validation images are in {split.name}, too: leave them out;"
                " validation images must be new"
            )
    return images.subset(in_turns(images.labels, images.ids, seed=0)), labelled


def overlap(images: ImageSet, other: ImageSet) -> int:
    """How many of ``images`` have the very pixels of an image of ``other``."""
    known = {hashlib.sha256(row).digest() for row in other.images.numpy()}
    return sum(hashlib.sha256(row).digest() in known for row in images.images.numpy())


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[ImageFile], list[int], bool]:
    """Files with their labels, and whether the folder has any labels."""
    found = scan_folder(folder, 1)
    by_class = {spelt([name])[0]: inner.images for name, inner in found.folders.items()}
    classes = spelt(classes)
    if not by_class:
        if not found.images:
            raise DataError(f"{folder}: no images found: expected <class>/* with the data's classes, or images")
        return found.images, [0] * len(found.images), False
    if unknown := sorted(set(by_class) - set(classes)):
        raise DataError(
            f"{folder}: {unknown[0]!r} is no class of the data ({', '.join(classes[:10])}"
            f"{', ...' if len(classes) > 10 else ''}): validation images need the same class names"
        )
    pairs = [(file, classes.index(name)) for name, files in sorted(by_class.items()) for file in files]
    if len({label for _, label in pairs}) < 2:
        raise DataError(f"{folder}: images of one class only, or none: validation images need at least two classes")
    return [file for file, _ in pairs], [label for _, label in pairs], True
