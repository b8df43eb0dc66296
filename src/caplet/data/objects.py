"""Datasets of other libraries, from Python: torchvision's, Hugging Face's, and whatever has items and a length."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from caplet.data.arrays import Labelled, as_images, to_classes
from caplet.data.folder import DecodedTree, to_source
from caplet.data.images import ImageFile, decode_all
from caplet.data.load import check_asked, divide, pair_of
from caplet.data.source import DataRequest, joined
from caplet.data.splits import Splits
from caplet.errors import DataError

NAME = "objects"
_IMAGE = ("image", "img", "images", "pixel_values", "pixels")
_LABEL = ("label", "labels", "fine_label", "target", "targets", "class", "y")


def from_dataset(
    train: Any,
    test: Any = None,
    calibration: Any = None,
    *,
    classes: Iterable[str] | None = None,
    calibration_size: int | None = None,
    calibration_seed: int = 0,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
    labels_by_order: bool = False,
    background: str | None = None,
    progress: bool = False,
) -> Splits:
    """The splits of datasets that are Python objects, such as torchvision's and Hugging Face's.

    Examples::

        caplet.from_dataset(torchvision.datasets.CIFAR100(root), torchvision.datasets.CIFAR100(root, train=False))
        hub = datasets.load_dataset("ylecun/mnist")
        caplet.from_dataset(hub["train"], hub["test"])

    An item is (image, label), or a table with an image (``image``, ``img``, ...) and a label (``label``,
    ``fine_label``, ...). An image is Pillow's, or an array or tensor (H, W), (H, W, C) or (C, H, W), uint8 or floats
    in 0..1 or 0..255; a label is a whole number or a text. All are read at once and held in memory as bytes, for a
    while twice. Transforms are applied as they are: give the datasets without random ones, and without Normalize.

    Args:
        train: anything with ``len`` and items from 0 on.
        test: the images of the final report; None to cut 20 % off ``train``, as of a folder.
        calibration: images for calibration and search; None to cut them from ``train``.
        classes: names in the order of the labels; None for ``train.classes``, ``train.features[...].names``, or the
            labels themselves.
        calibration_size, calibration_seed, size, channels, limit, labels_by_order, background, progress: as
            :func:`caplet.data.load_data`.

    Raises:
        DataError: an item, image or label is of another kind (its number is named), or the images do not fit together.
        ConfigError: a setting is out of range.
    """
    given = {"train": train, "calibration": calibration, "test": test}
    request = DataRequest(None, pair_of(size), channels, False, progress, background)
    check_asked(request)
    found = {split: _items(split, each) for split, each in given.items() if each is not None}
    names = tuple(map(str, classes if classes is not None else _names(train)))
    pictures = [
        ImageFile(f"{split}[{n}]", image) for split, (items, _) in found.items() for n, image in enumerate(items)
    ]
    if all(isinstance(each.data, Image.Image) for each in pictures):
        pixels, said = decode_all(
            pictures, size=request.size, channels=channels, background=background, progress=progress
        )
        parts = {split: Labelled(np.empty(len(labels)), labels, split) for split, (_, labels) in found.items()}
        labels, known, named = to_classes(parts, names)
        counts = [len(found[split][1]) if split in found else 0 for split in given]
        decoded = DecodedTree(pixels, labels, (counts[0], counts[1], counts[2]), known, (), joined(said, named))
    else:
        parts = {split: Labelled(_stack(split, images), labels, split) for split, (images, labels) in found.items()}
        decoded = as_images(parts, names)
    library = f"{type(train).__module__.partition('.')[0]}'s {type(train).__name__}"
    source = to_source(decoded, NAME, source=library, root=None)
    return divide(NAME, request, source, calibration_size, calibration_seed, limit, labels_by_order)


def _items(split: str, given: Any) -> tuple[list[Any], np.ndarray]:
    """Images and labels of a dataset, in its order."""
    if isinstance(given, Mapping):
        parts = ", ".join(f"...[{key!r}]" for key in list(given)[:3])
        raise DataError(f"{split}: a table of datasets: give them one by one ({parts})")
    if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise DataError(
            f"{split}: {type(given).__name__} has no length or no items: give a dataset that is not streamed"
        )
    images, labels = [], list[Any]()
    for number in range(len(given)):
        item = given[number]
        if isinstance(item, Mapping):
            keys = [next((key for key in known if key in item), None) for known in (_IMAGE, _LABEL)]
            if None in keys:
                raise DataError(f"{split}[{number}]: keys {', '.join(map(str, item))}; expected image and label")
            item = [item[key] for key in keys]
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise DataError(f"{split}[{number}]: {type(item).__name__} found; expected (image, label)")
        image, label = item
        try:
            if isinstance(image, Image.Image):
                image.load()
            else:
                image = _array(image)
            label = label if isinstance(label, str) else _array(label)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{split}[{number}]: neither an image nor an array with its label ({reason})") from error
        if not isinstance(label, str) and (label.size != 1 or label.dtype.kind not in "bui"):
            raise DataError(f"{split}[{number}]: label {label!r:.60}; expected a whole number or a text")
        images.append(image)
        labels.append(label if isinstance(label, str) else int(label.reshape(())))
    if not images:
        raise DataError(f"{split}: the dataset is empty")
    return images, np.array(labels)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


def _stack(split: str, images: list[np.ndarray]) -> np.ndarray:
    """Arrays of one shape as one."""
    for number, image in enumerate(images):
        if not isinstance(image, np.ndarray) or image.shape != np.shape(images[0]):
            found = f"{getattr(image, 'shape', type(image).__name__)}, {split}[0] {np.shape(images[0])}"
            raise DataError(f"{split}[{number}]: image {found}; all must be Pillow images, or arrays of one shape")
    return np.stack(images)


def _names(given: Any) -> Iterable[str]:
    """The names of a dataset's classes, as torchvision and Hugging Face keep them; () where it has none."""
    features = getattr(given, "features", None)
    if isinstance(features, Mapping):
        key = next((key for key in _LABEL if key in features), "")
        return getattr(features.get(key), "names", None) or ()
    found = getattr(given, "classes", None)
    return found if isinstance(found, list | tuple) else ()
