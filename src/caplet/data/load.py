"""Loading a dataset by name or path into its three splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from caplet.data import cifar10, digits, folder, idx, svhn, tiny_imagenet
from caplet.data.files import is_folder
from caplet.data.folder import LAYOUT, is_archive
from caplet.data.images import convert
from caplet.data.imageset import ImageSet
from caplet.data.registry import DataRequest, Dataset, Source
from caplet.data.splits import SPLITS, Splits, cut_calibration, read_saved_ids, stratified_choice
from caplet.errors import ConfigError, DataError
from caplet.registry import Registry

MAX_SIZE = 4096
DATASETS: Registry[str, Dataset] = Registry("dataset", DataError)
"""The datasets known by name."""
for _dataset in (
    Dataset(digits.NAME, "1,797 handwritten digits, 8x8 gray, embedded (scikit-learn)", "", digits.load_digits),
    Dataset("mnist", "70,000 handwritten digits, 28x28 gray", idx.MNIST.layout, idx.MNIST.load),
    Dataset("fashion-mnist", "70,000 pieces of clothing, 28x28 gray", idx.FASHION_MNIST.layout, idx.FASHION_MNIST.load),
    Dataset(cifar10.NAME, "60,000 objects and animals, 32x32 RGB", cifar10.LAYOUT, cifar10.load_cifar10),
    Dataset(svhn.NAME, "99,289 house-number digits, 32x32 RGB", svhn.LAYOUT, svhn.load_svhn),
    Dataset(
        tiny_imagenet.NAME,
        "110,000 photographs of 200 classes, 64x64 RGB",
        tiny_imagenet.LAYOUT,
        tiny_imagenet.load_tiny_imagenet,
    ),
    Dataset("folder", "your own images, one folder per class", LAYOUT, folder.load_folder),
):
    DATASETS.add(_dataset.name, _dataset)


def load_data(
    name: str | Path,
    root: str | Path | None = None,
    *,
    calibration_size: int | None = None,
    calibration_seed: int = 0,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    download: bool = True,
    progress: bool = False,
    limit: int | None = None,
) -> Splits:
    """Load a dataset and divide it into train, calibration and test.

    Args:
        name: a name in :data:`DATASETS`, or the path of an image folder or a tar archive of one (dataset ``folder``).
        root: where the files are (``Dataset.layout`` under it); None for the folder that downloads go to.
        calibration_size: images to cut from train; None for 10 % of train, at most 5,000, at least one per class.
        calibration_seed: chooses which ones.
        size: stretch the images to this (side, or (height, width)) in pixels; None keeps theirs.
        channels: 1 for gray, 3 for RGB; None keeps the dataset's own.
        download: fetch missing files from the network.
        progress: show a progress bar on stderr while decoding many files.
        limit: keep at most this many images of each split, stratified, chosen after the calibration cut, so that no
            calibration image of the full dataset is ever trained on.

    Returns:
        The splits; the same arguments and files give the same images in the same order on every machine.

    Raises:
        DataError: the dataset is unknown, missing, damaged, or too small for the split.
        ConfigError: a setting is out of range.
    """
    dataset, place = _resolve(name, root)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 image per split, found {limit}")
    request = DataRequest(place, _checked_size(size), _checked_channels(channels), download, progress)
    source = _read(dataset, request)
    train, calibration = cut_calibration(source.train, dataset.name, calibration_size, calibration_seed)
    test = source.test
    if limit is not None:
        train, calibration, test = (_limited(images, limit) for images in (train, calibration, test))
    settings = {"limit": limit, "calibration_seed": calibration_seed}
    return _assemble(dataset, request, source, (train, calibration, test), settings)


def load_saved_splits(
    path: str | Path, root: str | Path | None = None, *, download: bool = True, progress: bool = False
) -> Splits:
    """Rebuild the splits whose ids :meth:`Splits.save_ids` wrote, and prove by their hashes that they are the same.

    Args:
        path: the saved ids.
        root: where the dataset's files are on this machine; for ``folder`` it must be given.
        download, progress: as :func:`load_data`.

    Raises:
        ArtefactError: the file of ids cannot be read or used.
        DataError: the dataset cannot be loaded, or its images are not those the ids were saved for.
    """
    record = read_saved_ids(path)
    size = record.get("size")
    dataset, place = _resolve(record["name"], root)
    request = DataRequest(
        place,
        _checked_size(tuple(size) if isinstance(size, list) else size),
        _checked_channels(record.get("channels")),
        download,
        progress,
    )
    source = _read(dataset, request)
    parts = []
    for split in SPLITS:
        images = (source.test if split == "test" else source.train).with_ids(
            record[split]["ids"], name=f"{dataset.name}/{split}"
        )
        if images.sha256() != record[split]["sha256"]:
            raise DataError(
                f"{images.name} is not the data that {path} was saved for: SHA-256 {images.sha256()[:12]}..., saved "
                f"{record[split]['sha256'][:12]}...; {_place(source)} has other images (or another decoder read them)"
            )
        parts.append(images)
    settings = {key: record.get(key) for key in ("limit", "calibration_seed")}
    return _assemble(dataset, request, source, (parts[0], parts[1], parts[2]), settings)


def _resolve(name: str | Path, root: str | Path | None) -> tuple[Dataset, Path | None]:
    place = None if root is None else Path(root).expanduser()
    if isinstance(name, str) and name in DATASETS:
        return DATASETS[name], place
    if not str(name).strip():
        raise DataError(f"no dataset given (found {str(name)!r}): give {', '.join(DATASETS)} or an image folder")
    path = Path(name).expanduser()
    if is_folder(path) or is_archive(path):
        if place is not None:
            raise DataError(f"two places for the images: {path} and root {place}: give one")
        return DATASETS["folder"], path
    if isinstance(name, Path) or os.sep in name:
        raise DataError(f"no image folder {path}: expected one with {LAYOUT}")
    try:
        return DATASETS.find(name), place
    except DataError as error:
        raise DataError(f"{error}; or give the path of an image folder") from None


def _read(dataset: Dataset, request: DataRequest) -> Source:
    source = dataset.load(request)
    train, test = (convert(s, size=request.size, channels=request.channels) for s in (source.train, source.test))
    return Source(train, test, source.source, source.root, source.test_split, source.note)


def _limited(images: ImageSet, limit: int) -> ImageSet:
    if limit >= len(images):
        return images
    return images.subset(stratified_choice(images.labels, images.ids, limit, seed=0))


def _assemble(
    dataset: Dataset,
    request: DataRequest,
    source: Source,
    parts: tuple[ImageSet, ImageSet, ImageSet],
    settings: dict[str, Any],
) -> Splits:
    train, calibration, test = parts
    named = dict(zip(SPLITS, parts, strict=True))
    info: dict[str, Any] = {
        "name": dataset.name,
        "source": source.source,
        "root": None if source.root is None else str(source.root),
        "note": source.note,
        "test_split": source.test_split,
        "image_shape": list(train.image_shape),
        "classes": list(train.classes),
        "size": None if request.size is None else list(request.size),
        "channels": request.channels,
        **settings,
        "sizes": {split: len(images) for split, images in named.items()},
        "hashes": {split: images.sha256() for split, images in named.items()},
    }
    return Splits(train, calibration, test, info)


def _place(source: Source) -> str:
    return source.source if source.root is None else str(source.root)


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else size
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIZE for side in pair):
        raise ConfigError(f"image size must be a side or (height, width), each 1..{MAX_SIZE} pixels, found {size}")
    return pair


def _checked_channels(channels: int | None) -> int | None:
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels must be 1 (gray) or 3 (RGB), found {channels}")
    return channels
