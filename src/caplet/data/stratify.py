"""Choosing images at random but evenly over the classes, the same ones everywhere and for ever.

The choice does not use a library's random stream (those may change between versions): every image gets the rank
``splitmix64(seed, id)``, and each class gives its lowest-ranked images. So a choice depends on the ids and the seed
alone, not on the order of the images.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError, DataError


def _rank(ids: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of (seed, id): uint64, shape of ``ids``."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    start = np.uint64((seed * 0xD1B54A32D192ED03 + golden) & mask)
    z = start ^ (ids.astype(np.uint64) * np.uint64(golden))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z


def class_quotas(counts: tuple[int, ...], size: int) -> tuple[int, ...]:
    """How many of ``size`` images each class gives: proportional, by largest remainder, ties to the first class.

    >>> class_quotas((50, 30, 20), 10)
    (5, 3, 2)
    >>> class_quotas((5, 5, 5), 4)
    (2, 1, 1)
    """
    total = sum(counts)
    shares = [divmod(count * size, total) for count in counts]
    quotas = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(counts)), key=lambda c: (-shares[c][1], c))
    for c in by_remainder[: size - sum(quotas)]:
        quotas[c] += 1
    return tuple(quotas)


def stratified_choice(labels: Tensor, ids: Tensor, size: int, *, seed: int) -> Tensor:
    """Positions of ``size`` images chosen evenly over the classes.

    Args:
        labels: int64 (N,).
        ids: int64 (N,), unique and not negative.
        size: how many to choose, 0..N.
        seed: chooses which ones, 0 or more.

    Returns:
        int64 (size,), ascending positions.

    Raises:
        ConfigError: ``size`` or ``seed`` is out of range.
    """
    if not 0 <= size <= len(labels):
        raise ConfigError(f"cannot choose {size} of {len(labels)} images")
    if seed < 0:
        raise ConfigError(f"a split's seed must be 0 or more, found {seed}")
    if size == 0:
        return labels.new_empty(0)
    label, rank = labels.numpy(), _rank(ids.numpy(), seed)
    quotas = class_quotas(tuple(np.bincount(label).tolist()), size)
    order = np.lexsort((rank, label))
    starts = np.searchsorted(label[order], np.arange(len(quotas)))
    chosen = [order[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return from_numpy(np.sort(np.concatenate(chosen)))


def in_turns(labels: Tensor, ids: Tensor, *, seed: int) -> Tensor:
    """An order in which the classes take turns: the first images, however many, are an even choice over the classes.

    Image number k (from 0, by rank) of a class of n comes at the fraction (k + 1/2) / n of the order; ties go to the
    first class.

    Args:
        labels: int64 (N,).
        ids: int64 (N,), unique and not negative.
        seed: orders the images of a class, 0 or more.

    Returns:
        int64 (N,), positions.
    """
    label, rank = labels.numpy(), _rank(ids.numpy(), seed)
    order = np.lexsort((rank, label))
    counts = np.bincount(label)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n]) if len(label) else np.zeros(0)
    return from_numpy(order[np.lexsort((label[order], place))])


def cut(images: ImageSet, size: int, *, seed: int, rest_name: str, cut_name: str) -> tuple[ImageSet, ImageSet]:
    """Cut ``size`` images off a set, stratified by class; both parts keep the original order and ids.

    Returns:
        (rest, cut): together exactly the set, with no image in both.

    Raises:
        ConfigError: ``size`` is below 1 or ``seed`` is negative.
        DataError: some class of the set would be left without an image.
    """
    if size < 1:
        raise ConfigError(f"{cut_name}: at least 1 image must be cut off, found {size}")
    if size >= len(images):
        raise DataError(f"{cut_name}: cannot cut {size} of the {len(images)} images of {images.name}: ask for fewer")
    chosen = stratified_choice(images.labels, images.ids, size, seed=seed)
    kept = np.ones(len(images), dtype=bool)
    kept[chosen.numpy()] = False
    rest = images.subset(from_numpy(np.flatnonzero(kept)), name=rest_name)
    for label, (before, after) in enumerate(zip(images.class_counts(), rest.class_counts(), strict=True)):
        if before and not after:
            raise DataError(
                f"{cut_name}: cutting {size} of the {len(images)} images of {images.name} leaves none of class "
                f"{images.classes[label]!r} (it has {before}): add images or ask for fewer"
            )
    return rest, images.subset(chosen, name=cut_name)
