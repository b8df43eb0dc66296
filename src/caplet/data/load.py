"""Loading a dataset by name or path into its three splits."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageColor

from caplet.data import cifar, idx, norb, own, svhn, tiny_imagenet
from caplet.data.files import is_file, is_folder
from caplet.data.folder import ARCHIVES, LAYOUT, is_archive
from caplet.data.images import convert
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Loader, Source, cut_test, joined
from caplet.data.splits import SPLITS, Splits, cut_calibration, in_turns, read_saved_ids, stratified_choice
from caplet.errors import ConfigError, DataError
from caplet.registry import Registry

MAX_SIZE, DIGITS = 4096, "digits"
_LOOKED_AT, _NEAR, _MANY = 256, 16, 0.9
"""Images are called equal where, of so many, more than this share is within so many levels of their median."""
_SETS = ("emnist", "qmnist", "k49")
"""What is not known by these names, which are like others."""
DATASETS: Registry[str, Loader] = Registry("dataset", DataError)
"""What reads the datasets known by name."""


def load_digits(request: DataRequest) -> Source:
    """Read scikit-learn's digits; ``request.root`` is not used.

    Their values 0..16 become pixels by ``(value * 255 + 8) // 16``, that is value * 255 / 16 rounded half up. The data
    has no test split of its own: 20 % (359) are cut off, stratified by class, by a fixed seed: always the same one.
    Nothing keeps one writer's digits on one side of that cut, so results may be better than for new writers.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    values = bunch.images.astype(np.int64)
    pixels = ((values * 255 + 8) // 16).astype(np.uint8)[:, None]
    every = ImageSet.of_arrays(pixels, bunch.target, tuple("0123456789"), f"{DIGITS}/all")
    return cut_test(every, DIGITS, "scikit-learn", note="scikit-learn digits, 8x8")


_LOADERS: dict[str, Loader] = {
    DIGITS: load_digits,
    "mnist": partial(idx.load_idx, "mnist", "MNIST", idx.MNIST_CLASSES),
    "fashion-mnist": partial(idx.load_idx, "fashion-mnist", "FashionMNIST", idx.FASHION_CLASSES),
    "kmnist": partial(idx.load_idx, "kmnist", "KMNIST", idx.KMNIST_CLASSES),
    **{
        f"emnist-{split}": partial(idx.load_idx, f"emnist-{split}", "EMNIST", classes)
        for split, classes in idx.EMNIST_CLASSES.items()
    },
    "cifar10": partial(cifar.load_cifar, cifar.CIFAR10),
    "cifar100": partial(cifar.load_cifar, cifar.CIFAR100),
    svhn.NAME: svhn.load_svhn,
    norb.NAME: norb.load_smallnorb,
    tiny_imagenet.NAME: tiny_imagenet.load_tiny_imagenet,
    "folder": own.load_folder,
}
for _name, _load in _LOADERS.items():
    DATASETS.add(_name, _load)


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
    labels_by_order: bool = False,
    background: str | None = None,
) -> Splits:
    """Load a dataset and divide it into train, calibration and test.

    Args:
        name: a name in :data:`DATASETS`; or the path of an image folder, of a folder of IDX, CIFAR, smallNORB, SVHN,
            ``.npz``, ``.npy`` or CSV files, of an archive of these, or of one such file (dataset ``folder``).
        root: where the files are (its published files under it); None for the folder that downloads go to.
        calibration_size: images to cut from train; None for 10 % of train, at most 5,000, at least one per class. Where
            the files have a calibration split of their own, at most so many of it; None for all.
        calibration_seed: chooses which ones.
        size: stretch the images to this (side, or (height, width)) in pixels; None keeps theirs.
        channels: 1 for gray, 3 for RGB; None keeps the dataset's own.
        download: fetch missing files from the network.
        progress: show a progress bar on stderr while decoding many files, and what must be known about the data
            (``Splits.info["note"]``).
        limit: keep at most this many images of each split, stratified, chosen after the calibration cut, so that no
            calibration image of the full dataset is ever trained on.
        labels_by_order: let class k be class k of every model that these images meet, whatever both call it.
        background: the colour that transparent pixels are laid over, such as ``"white"`` or ``"#808080"``; None for
            white or black, over which the images vary more.

    Returns:
        The splits; the same arguments and files give the same images in the same order on every machine.

    Raises:
        DataError: the dataset is unknown, missing, damaged, or too small for the split.
        ConfigError: a setting is out of range.
    """
    dataset, request, source = _read(name, root, size, channels, download, progress, background)
    return divide(dataset, request, source, calibration_size, calibration_seed, limit, labels_by_order)


def divide(
    dataset: str,
    request: DataRequest,
    source: Source,
    calibration_size: int | None,
    calibration_seed: int,
    limit: int | None,
    labels_by_order: bool,
) -> Splits:
    """The three splits of what was read, in the size and channels asked for; see :func:`load_data`."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 image per split, found {limit}")
    source = _converted(source, request)
    train, calibration = source.train, source.calibration
    if calibration is None:
        train, calibration = cut_calibration(train, dataset, calibration_size, calibration_seed)
    else:  # the first ones in turns are an even choice over the classes
        turns = in_turns(calibration.labels, calibration.ids, seed=calibration_seed)
        calibration = calibration.subset(turns[: calibration_size or len(turns)])
    parts = [replace(part, labels_by_order=labels_by_order) for part in (train, calibration, source.test)]
    if limit is not None:
        chosen = [stratified_choice(s.labels, s.ids, min(limit, len(s)), seed=0) for s in parts]
        parts = [images.subset(index) for images, index in zip(parts, chosen, strict=True)]
    asked = {"limit": limit, "calibration_seed": calibration_seed, "calibration_size": calibration_size}
    return _assemble(dataset, request, source, parts, **asked)


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
    size, channels = record.get("size"), record.get("channels")
    size = tuple(size) if isinstance(size, list) else size
    dataset, request, source = _read(record["name"], root, size, channels, download, progress, record.get("background"))
    source, parts = _converted(source, request), []
    for split in SPLITS:
        whole = {"test": source.test, "calibration": source.calibration}.get(split) or source.train
        images = whole.with_ids(record[split]["ids"], name=f"{dataset}/{split}")
        images = replace(images, labels_by_order=record.get("labels_by_order") is True)
        images, _ = images.for_classes(tuple(map(str, record.get("classes") or ())))
        if images.sha256() != record[split]["sha256"]:
            raise DataError(
                f"{images.name} is not the data that {path} was saved for: SHA-256 {images.sha256()[:12]}..., saved "
                f"{record[split]['sha256'][:12]}...; {source.root or source.source} has other images (or another "
                "decoder read them)"
            )
        parts.append(images)
    settings = {key: record.get(key) for key in ("limit", "calibration_seed", "calibration_size")}
    return _assemble(dataset, request, source, parts, **settings)


def _resolve(name: str | Path, root: str | Path | None) -> tuple[str, Path | None]:
    """The dataset's name, and the place of its files."""
    place = None if root is None else Path(root).expanduser()
    if isinstance(name, str) and name in DATASETS:
        if place is None and is_folder(Path(name)):
            raise DataError(
                f"{name!r} is a dataset and a folder here: give {os.path.join('.', name)!r} for the folder; for the"
                " dataset give --root with the place of its files, or start in another folder"
            )
        return name, place
    if not str(name).strip():
        raise DataError(f"no dataset given (found {str(name)!r}): give {', '.join(DATASETS)} or an image folder")
    path = Path(name).expanduser()
    if is_folder(path) or is_archive(path) or own.is_data_file(path):
        if place is not None:
            raise DataError(f"two places for the images: {path} and root {place}: give one")
        return "folder", path
    if is_file(path):
        kinds, files = ", ".join(ARCHIVES), ", ".join(own.FILES)
        todo = "unpack it, or give the folder that has it"
        raise DataError(
            f"{path} is no image folder, and no archive that is read ({kinds}) or file of pixels ({files}): {todo}"
        )
    if isinstance(name, Path) or os.sep in name:
        raise DataError(f"no image folder {path}: expected one with {LAYOUT}")
    if any(word in name.lower() for word in _SETS):
        names = ", ".join(known for known in DATASETS if known.startswith("emnist"))
        also = f"; or one of {names}" if "emnist" in name.lower() else ""
        todo = f"give the folder of its IDX files, or of its class folders{also}"
        raise DataError(f"{name!r} is not known by name: {todo}")
    try:
        DATASETS.find(name)
    except DataError as error:
        raise DataError(f"{error}; or give the path of an image folder") from None
    return name, place


def _read(
    name: str | Path,
    root: str | Path | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
    download: bool,
    progress: bool,
    background: str | None,
) -> tuple[str, DataRequest, Source]:
    """The dataset's name, what its loader was asked for, and its images with the size and channels asked for."""
    dataset, place = _resolve(name, root)
    request = DataRequest(place, pair_of(size), channels, download, progress, background)
    check_asked(request)
    return dataset, request, DATASETS[dataset](request)


def pair_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a side, or of both."""
    return (size, size) if isinstance(size, int) else size


def check_asked(request: DataRequest) -> None:
    """Raise ConfigError where size, channels or background are out of range."""
    pair = request.size
    if pair is not None and (len(pair) != 2 or not all(type(s) is int and 1 <= s <= MAX_SIZE for s in pair)):
        found = pair[0] if pair[0] == pair[-1] else pair
        raise ConfigError(f"image size must be a side or (height, width), each 1..{MAX_SIZE} pixels, found {found}")
    if request.channels not in (None, 1, 3):
        raise ConfigError(f"channels must be 1 (gray) or 3 (RGB), found {request.channels}")
    try:
        ImageColor.getrgb(request.background or "white")
    except ValueError:
        raise ConfigError(
            f"background must be a colour such as white or #808080, found {request.background!r}"
        ) from None


def _converted(source: Source, request: DataRequest) -> Source:
    """The images in the size and channels asked for."""
    made = partial(convert, size=request.size, channels=request.channels)
    held = source.calibration and made(source.calibration)
    return replace(source, train=made(source.train), test=made(source.test), calibration=held)


def _doubts(split: str, images: ImageSet) -> Iterator[str]:
    """What makes results on a split doubtful: classes without images, and images that are nearly equal."""
    missing = [name for name, count in zip(images.classes, images.class_counts(), strict=True) if not count]
    if missing:
        yield f"no {split} image is of class {', '.join(missing)}"
    some = images.evenly_spaced(_LOOKED_AT).images.to(torch.int16)
    near = (some - some.median(dim=0).values).abs().flatten(1).amax(dim=1) <= _NEAR
    if len(some) > 1 and near.float().mean() > _MANY:
        yield f"all or nearly all {split} images are equal, or nearly so: look at the files"


def _assemble(
    dataset: str, request: DataRequest, source: Source, parts: Iterable[ImageSet], **settings: int | None
) -> Splits:
    named = dict(zip(SPLITS, parts, strict=True))
    train = named["train"]
    warnings = [f"warning: {text}" for split, images in named.items() for text in _doubts(split, images)]
    if request.progress:
        for line in ([f"{dataset}: {source.note}"] if source.note else []) + warnings:
            print(line, file=sys.stderr)
    info: dict[str, Any] = {
        "name": dataset,
        "source": source.source,
        "root": None if source.root is None else str(source.root),
        "note": joined(source.note, *warnings),
        "test_split": source.test_split,
        "image_shape": list(train.image_shape),
        "classes": list(train.classes),
        "labels_by_order": train.labels_by_order,
        "size": None if request.size is None else list(request.size),
        "channels": request.channels,
        "background": request.background,
        **settings,
        "sizes": {split: len(images) for split, images in named.items()},
        "hashes": {split: images.sha256() for split, images in named.items()},
    }
    return Splits(**named, info=info)
