"""The three splits (train, calibration cut from train, test): how images are chosen, and the ids that rebuild them.

Images are chosen at random but evenly over the classes, the same ones everywhere and for ever. The choice does not use
a library's random stream (those may change between versions): every image gets the rank ``splitmix64(seed, id)``, and
each class gives its lowest-ranked images. So a choice depends on the ids and the seed alone, not on the order of the
images.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from caplet.data.imageset import ImageSet
from caplet.errors import ArtefactError, ConfigError, DataError
from caplet.files import read_json, write_json


def _rank(ids: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of (seed, id): uint64, shape of ``ids``."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    start = np.uint64((seed * 0xD1B54A32D192ED03 + golden) & mask)
    z = start ^ (ids.astype(np.uint64) * np.uint64(golden))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z


def class_quotas(counts: tuple[int, ...], size: int, keep: int = 0) -> tuple[int, ...]:
    """How many of ``size`` images each class gives: proportional, by largest remainder, ties to the first class.

    With ``keep``, a class of more images gives at least one and leaves ``keep``, as far as ``size`` allows.

    >>> class_quotas((50, 30, 20), 10)
    (5, 3, 2)
    >>> class_quotas((5, 5, 5), 4)
    (2, 1, 1)
    >>> class_quotas((90, 3, 1), 9, keep=1)
    (8, 1, 0)
    """
    total = sum(counts)
    parts = [divmod(count * size, total) for count in counts]
    quotas = [whole for whole, _ in parts]
    by_remainder = sorted(range(len(counts)), key=lambda c: (-parts[c][1], c))
    for c in by_remainder[: size - sum(quotas)]:
        quotas[c] += 1
    for c in sorted(range(len(counts)), key=lambda c: -counts[c]) if keep else ():
        most = max(range(len(counts)), key=lambda d: quotas[d])
        if counts[c] > keep and not quotas[c] and quotas[most] > 1:
            quotas[c], quotas[most] = 1, quotas[most] - 1
        most = max(range(len(counts)), key=lambda d: counts[d] - quotas[d])
        excess = quotas[c] - max(counts[c] - keep, 0)
        if 0 < excess <= counts[most] - quotas[most] - keep:
            quotas[c], quotas[most] = quotas[c] - excess, quotas[most] + excess
    return tuple(quotas)


def stratified_choice(labels: Tensor, ids: Tensor, size: int, *, seed: int, keep: int = 0) -> Tensor:
    """Positions of ``size`` images chosen evenly over the classes.

    Args:
        labels: int64 (N,).
        ids: int64 (N,), unique and not negative.
        size: how many to choose, 0..N.
        seed: chooses which ones, 0 or more.
        keep: how many images of each class not to choose; see :func:`class_quotas`.

    Returns:
        int64 (size,), ascending positions.

    Raises:
        ConfigError: ``seed`` is negative.
    """
    if seed < 0:
        raise ConfigError(f"a split's seed must be 0 or more, found {seed}")
    label, rank = labels.numpy(), _rank(ids.numpy(), seed)
    quotas = class_quotas(tuple(np.bincount(label).tolist()), size, keep)
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
    chosen = stratified_choice(images.labels, images.ids, size, seed=seed, keep=1)
    remaining = np.ones(len(images), dtype=bool)
    remaining[chosen.numpy()] = False
    rest = images.subset(from_numpy(np.flatnonzero(remaining)), name=rest_name)
    for label, (before, after) in enumerate(zip(images.class_counts(), rest.class_counts(), strict=True)):
        if before and not after:
            raise DataError(
                f"{cut_name}: cutting {size} of the {len(images)} images of {images.name} leaves none of class "
                f"{images.classes[label]!r} (it has {before}): add images or ask for fewer"
            )
    return rest, images.subset(chosen, name=cut_name)


FORMAT, VERSION = "caplet-splits", 1
_ASKED = ("size", "channels", "background", "limit", "calibration_seed", "calibration_size", "labels_by_order")
_SAVED = ("name", "note", *_ASKED, "classes")
_TYPES = {"name": str, "size": int | list | None, "background": str | None, "classes": list | None}
_TYPES |= {"channels": int | None}
SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True, eq=False)
class Splits:
    """A dataset divided for honest use: search, calibrate and stop early on ``calibration``, report on ``test`` once.

    Attributes:
        train: what is trained on; never an image of the other two.
        calibration: cut from the training images, stratified by class, fixed seed.
        test: for the final report only.
        info: where all this comes from, plain JSON values: ``name``, ``source``, ``root``, ``note``, ``test_split``,
            ``image_shape``, ``classes``, ``size`` and ``channels`` (as asked for), ``limit``, ``calibration_seed``,
            ``sizes`` and ``hashes`` (each a dict by split).

    Raises:
        DataError: an image is in both train and calibration, or the three differ in image shape or classes.
    """

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    info: dict[str, Any]

    def __post_init__(self) -> None:
        shared = set(self.train.ids.tolist()) & set(self.calibration.ids.tolist())
        if shared:
            raise DataError(f"{len(shared)} images are both in train and in calibration, such as id {min(shared)}")
        for other in (self.calibration, self.test):
            if (other.image_shape, other.classes) != (self.train.image_shape, self.train.classes):
                raise DataError(
                    f"{other.name} has images {other.image_shape} of {len(other.classes)} classes, {self.train.name} "
                    f"{self.train.image_shape} of {len(self.train.classes)}: all splits must have the same"
                )

    def for_classes(self, classes: tuple[str, ...] = ()) -> tuple["Splits", str]:
        """As :meth:`ImageSet.for_classes`, of every split; what that changes stands in ``info["note"]``, too."""
        made = {split: getattr(self, split).for_classes(classes) for split in SPLITS}
        images, told = {split: part for split, (part, _) in made.items()}, made["test"][1]
        if not classes and self.info["name"] == "folder":  # others have an order that everybody keeps to
            told = f"the model has no class names; its first ones are taken for {', '.join(self.test.classes[:4])}"
        if not told or told in self.info["note"]:
            return self, ""
        info = {"note": "; ".join(filter(None, (self.info["note"], told))), "classes": [*images["test"].classes]}
        hashes = {split: part.sha256() for split, part in images.items()}
        return replace(self, **images, info={**self.info, **info, "hashes": hashes}), told

    def save_ids(self, path: str | Path) -> None:
        """Write which images are in which split, with their hashes, as JSON for :func:`caplet.data.load_saved_splits`.

        Ids are kept as ranges (``"0-3,7"``). No path of this machine is in the file: equal splits give equal bytes.

        Raises:
            ArtefactError: the file cannot be written; an older one stays as it was.
        """
        record: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        record |= {key: self.info.get(key) for key in _SAVED}
        for split in SPLITS:
            images: ImageSet = getattr(self, split)
            record[split] = {"count": len(images), "sha256": images.sha256(), "ids": pack_ids(images.ids)}
        write_json(path, record, "the split ids")


def cut_calibration(images: ImageSet, name: str, size: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """(train, calibration) of the images that may be trained on; see :func:`caplet.data.splits.cut`.

    Without ``size``, 10 % of the images are for calibration, at most 5,000, at least one per class.

    In the calibration split the classes take turns (:func:`caplet.data.splits.in_turns`): datasets are often sorted
    by class, and who looks at the first thousand images must not see two classes only.

    Raises:
        ConfigError: ``size`` is below 1 or ``seed`` is negative.
        DataError: a class would be left without a training image.
    """
    if size is None:
        size = min(5000, max(len(images) // 10, sum(count > 1 for count in images.class_counts())))
    rest, part = cut(images, size, seed=seed, rest_name=f"{name}/train", cut_name=f"{name}/calibration")
    return rest, part.subset(in_turns(part.labels, part.ids, seed=seed))


def pack_ids(ids: Tensor | Iterable[int]) -> str:
    """Ids in their order, runs of consecutive ones as ranges.

    >>> pack_ids([0, 1, 2, 3, 7, 5, 6])
    '0-3,7,5-6'
    """
    runs: list[list[int]] = []
    for value in ids.tolist() if isinstance(ids, Tensor) else ids:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def unpack_ids(text: str) -> list[int]:
    """Undo :func:`pack_ids`.

    >>> unpack_ids("0-3,7,5-6")
    [0, 1, 2, 3, 7, 5, 6]

    Raises:
        ArtefactError: the text is not such a list.
    """
    ids: list[int] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last - first > 1 << 28:
            raise ArtefactError(f"{part[:40]!r} is not an id or a range of ids such as 3 or 0-9")
        ids.extend(range(first, last + 1))
    return ids


def read_saved_ids(path: str | Path) -> dict[str, Any]:
    """The record written by :meth:`Splits.save_ids`, with each split's ``ids`` as a list of ints.

    Raises:
        ArtefactError: the file is missing, not such a record, damaged, or of a newer version.
    """
    record = read_json(path, "the split ids")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtefactError(f"{path} is not a file of split ids: expected a JSON object with format {FORMAT!r}")
    if record.get("version") != VERSION:
        raise ArtefactError(f"{path}: split ids of version {record.get('version')!r}; this caplet reads {VERSION}")
    for key, kind in _TYPES.items():
        if not isinstance(record.get(key), kind):
            raise ArtefactError(f"{path}: the dataset's {key} is missing, or of another type: save the ids again")
    for split in SPLITS:
        entry = record.get(split)
        wanted = {"count": int, "sha256": str, "ids": str}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in wanted.items()):
            raise ArtefactError(f"{path}: split {split!r} must have {', '.join(wanted)}: save the ids again")
        entry["ids"] = unpack_ids(entry["ids"])
        if len(entry["ids"]) != entry["count"]:
            raise ArtefactError(f"{path}: split {split!r} lists {len(entry['ids'])} ids, its count is {entry['count']}")
    return record
