"""A set of labelled images, in memory or mapped into it: the one form in which caplet passes data around."""

import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, zip_longest
from math import prod
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from caplet.errors import ConfigError, DataError
from caplet.files import digest

MAPPED = 1 << 29
"""Bytes of pixels that lie in memory at most; more lie in a file that is mapped into memory."""
_AT_ONCE = 4096
_log = logging.getLogger(__name__)
_GOLDEN = 0.6180339887498949


def cache_dir() -> Path:
    """The cache folder (not created): ``$CAPLET_CACHE``, or the user cache folder of the system."""
    chosen = os.environ.get("CAPLET_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("caplet", appauthor=False)


def pixel_array(shape: tuple[int, ...]) -> np.ndarray:
    """A new uint8 array; from :data:`MAPPED` bytes on, in a file without a name in the cache folder.

    The system keeps of such a file in memory what there is room for. It is gone when the array is. Where the disk has
    no room for it, the array lies in memory.

    Raises:
        DataError: neither the disk nor the memory that is free has room for it.
    """
    size = prod(shape)
    if size < MAPPED:
        return np.empty(shape, dtype=np.uint8)
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        if size > free_memory():
            raise DataError(
                f"{size / 1e9:,.1f} GB of pixels {shape} are more than memory or {cache_dir()} has room for"
                f" ({error.strerror}): give fewer or smaller images (--limit, --size)"
            ) from error
        _log.warning("%d MB of pixels lie in memory, for %s has no room: %s", size >> 20, cache_dir(), error.strerror)
        return np.empty(shape, dtype=np.uint8)


def free_memory() -> int:
    """Bytes of the machine's memory that processes can still take; what the system does not say is 8 GiB."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 8 << 30


def taken(images: Tensor, index: Tensor) -> Tensor:
    """``images[index]``, where it is large a part at a time."""
    if len(index) * images[:1].numel() < MAPPED:
        return images[index]
    result = torch.from_numpy(pixel_array((len(index), *images.shape[1:])))
    for start in range(0, len(index), _AT_ONCE):
        result[start : start + _AT_ONCE] = images[index[start : start + _AT_ONCE]]
    return result


def spelt(names: Iterable[str]) -> tuple[str, ...]:
    """Names with letters and accents composed (Unicode's form NFC): some systems store them apart."""
    return tuple(unicodedata.normalize("NFC", _readable(name)) for name in names)


def _readable(name: str) -> str:
    r"""A name that files in UTF-8 can hold: bytes of a folder's name that are no text are written as ``\udcff``."""
    return name.encode(errors="backslashreplace").decode()


def to_float(images: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Pixels as the networks take them: ``pixels / 255``.

    Args:
        images: uint8, NCHW.
        device: where they go, as bytes, before they become floats; None leaves them where they are.

    Returns:
        float32 in [0, 1], NCHW with channels_last strides, a new tensor.
    """
    if device is not None:
        images = images.to(device)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255.0)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, labels and ids of one split. Treat the tensors as read-only: the hash is computed once.

    Attributes:
        images: uint8 (N, C, H, W), contiguous, on the CPU; pixels 0..255. Large ones are a mapped file, see
            :func:`pixel_array`.
        labels: int64 (N,), each in ``0 .. len(classes) - 1``.
        ids: int64 (N,), the image's position in the original split (see ``Splits.info["test_split"]``); unique, and
            kept by :meth:`subset`, so that a selection can be saved and rebuilt.
        classes: class names, in label order.
        name: what this is, for messages and reports, such as ``"mnist/train"``.
        labels_by_order: these classes are a model's by their place, whatever both call them.

    Raises:
        DataError: a tensor has another dtype, shape or length, a label is out of range, or an id occurs twice.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    name: str
    labels_by_order: bool = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"{self.name}: images must be uint8 of shape (N, C, H, W), found {found}")
        for what, values in (("labels", self.labels), ("ids", self.ids)):
            if values.dtype != torch.int64 or tuple(values.shape) != (len(self.images),):
                found = f"{values.dtype} {tuple(values.shape)}"
                raise DataError(f"{self.name}: {what} must be int64 of shape ({len(self.images)},), found {found}")
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise DataError(
                f"{self.name}: label {int(self.labels[first])} of image {first} is out of range; "
                f"{len(self.classes)} classes allow 0..{len(self.classes) - 1}: correct the labels"
            )
        if len(self.ids) != len(torch.unique(self.ids)):
            raise DataError(f"{self.name}: an image occurs twice (ids must be unique)")
        object.__setattr__(self, "images", self.images.contiguous())
        object.__setattr__(self, "classes", tuple(map(_readable, self.classes)))

    @classmethod
    def of_arrays(cls, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str) -> "ImageSet":
        """A whole split from uint8 (N, C, H, W) and integer labels (N,); its ids count from 0."""
        ids = torch.arange(len(images))
        return cls(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), ids, classes, name)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def _digest(self) -> str:
        header = repr((tuple(self.images.shape), self.classes))
        return digest(header, self.images.numpy().data, self.labels.numpy().astype("<i8").data)

    def sha256(self) -> str:
        """Content hash (64 hex digits) of shape, pixels, labels and class names; not of ``ids`` and ``name``.

        Computed on first use and remembered.
        """
        return self._digest

    def class_counts(self) -> tuple[int, ...]:
        """Number of images of each class, in label order."""
        return tuple(torch.bincount(self.labels, minlength=len(self.classes)).tolist())

    def for_classes(self, classes: tuple[str, ...]) -> tuple["ImageSet", str]:
        """The images as a model of these ``classes`` (none: unknown) labels them, and in words what that changes.

        The same names in another order change the labels; with ``labels_by_order`` names change, and labels stay.

        Raises:
            DataError: other names, without ``labels_by_order``.
        """
        if not classes or spelt(classes) == spelt(self.classes):
            return (replace(self, classes=classes) if classes else self), ""
        unlike = [pair for pair in zip_longest(self.classes, classes, fillvalue="none") if len({*pair}) == 2]
        mine, its = (", ".join(names[:4]) + ", ..." * (len(names) > 4) for names in zip(*unlike, strict=True))
        told = f"the data's classes are {mine}, the model's {its}"
        if self.labels_by_order and len(classes) == len(self.classes):
            return replace(self, classes=classes), f"labels taken by their order: {told}"
        own, theirs = spelt(self.classes), spelt(classes)
        if sorted(theirs) != sorted(own) or len({*theirs}) < len(theirs):
            raise DataError(
                f"{self.name}: {told}; choose the data that it was trained on, rename classes, or pair them in their"
                " order with --labels-by-order (in Python: labels_by_order of load_data)"
            )
        place = torch.tensor([theirs.index(name) for name in own])
        return replace(self, labels=place[self.labels], classes=classes), f"labels reordered to the model's: {told}"

    def evenly_spaced(self, most: int) -> "ImageSet":
        """At most ``most`` images, one from each of as many equal parts of the set, in their order.

        The place within a part moves on by the golden ratio, so that classes which take turns do not fall in step with
        the parts. The same images every time. Raises DataError where ``most`` is below 1.
        """
        if most < 1:
            raise DataError(f"{self.name}: {most} evenly spaced images asked for; the rule is 1 or more")
        if len(self) <= most:
            return self
        edges = [part * len(self) // most for part in range(most + 1)]
        parts = enumerate(pairwise(edges))
        return self.subset([low + int(part * _GOLDEN % 1.0 * (high - low)) for part, (low, high) in parts])

    def subset(self, indices: Tensor | Sequence[int], *, name: str | None = None) -> "ImageSet":
        """The images at these positions of *this* set, in the given order, with their original ids.

        Raises:
            DataError: a position is negative or past the end.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise DataError(
                f"{self.name}: positions {int(index.min())}..{int(index.max())} asked for, but the set has "
                f"0..{len(self) - 1}"
            )
        return replace(
            self,
            images=taken(self.images, index),
            labels=self.labels[index],
            ids=self.ids[index],
            name=self.name if name is None else name,
        )

    def with_ids(self, ids: Tensor | Sequence[int], *, name: str | None = None) -> "ImageSet":
        """The images with these original ids, in the given order.

        Raises:
            DataError: an id is not in this set.
        """
        wanted = torch.as_tensor(ids, dtype=torch.int64)
        missing = ~torch.isin(wanted, self.ids)
        if bool(missing.any()):
            raise DataError(
                f"{self.name}: no image with id {int(wanted[missing][0])} ({int(missing.sum())} of {len(wanted)} ids "
                "are not in this set): were they saved for other data?"
            )
        order = torch.argsort(self.ids)
        return self.subset(order[torch.searchsorted(self.ids[order], wanted)], name=name)

    def batches(self, batch_size: int, *, device: torch.device | str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the set once, in its order.

        Args:
            batch_size: images per batch; the last batch may be smaller.
            device: where the batches go; None leaves them on the CPU.

        Yields:
            (images, labels): float32 (B, C, H, W) in [0, 1] = pixels / 255, channels_last; int64 (B,).

        Raises:
            ConfigError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch size must be at least 1, found {batch_size}")
        for start in range(0, len(self), batch_size):
            images, labels = (values[start : start + batch_size] for values in (self.images, self.labels))
            yield to_float(images, device), labels if device is None else labels.to(device)
