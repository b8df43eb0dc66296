"""The three splits: train, calibration (cut from train) and test, and the ids that rebuild them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from caplet.data.imageset import ImageSet
from caplet.data.stratify import cut, in_turns
from caplet.errors import ArtefactError, DataError
from caplet.files import why, write_atomic

FORMAT, VERSION = "caplet-splits", 1
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

    def save_ids(self, path: str | Path) -> None:
        """Write which images are in which split, with their hashes, as JSON for :func:`caplet.data.load_saved_splits`.

        Ids are kept as ranges (``"0-3,7"``). No path of this machine is in the file: equal splits give equal bytes.

        Raises:
            ArtefactError: the file cannot be written; an older one stays as it was.
        """
        record: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        record |= {key: self.info.get(key) for key in ("name", "note", "size", "channels", "limit", "calibration_seed")}
        for split in SPLITS:
            images: ImageSet = getattr(self, split)
            record[split] = {"count": len(images), "sha256": images.sha256(), "ids": pack_ids(images.ids)}
        text = json.dumps(record, indent=1) + "\n"
        try:
            write_atomic(Path(path), lambda stream: stream.write(text.encode()))
        except OSError as error:
            raise ArtefactError(f"cannot write the split ids to {path}: {why(error)}") from error


def default_calibration_size(train: ImageSet) -> int:
    """10 % of the training images, at most 5,000, at least one per class."""
    return min(5000, max(len(train) // 10, len(train.classes)))


def cut_calibration(images: ImageSet, name: str, size: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """(train, calibration) of the images that may be trained on; see :func:`caplet.data.stratify.cut`.

    In the calibration split the classes take turns (:func:`caplet.data.stratify.in_turns`): datasets are often sorted
    by class, and who looks at the first thousand images must not see two classes only.

    Raises:
        ConfigError: ``size`` is below 1 or ``seed`` is negative.
        DataError: a class would be left without a training image.
    """
    chosen = default_calibration_size(images) if size is None else size
    rest, part = cut(images, chosen, seed=seed, rest_name=f"{name}/train", cut_name=f"{name}/calibration")
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
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"cannot read the split ids in {path}: {why(error)}") from error
    except ValueError as error:
        raise ArtefactError(f"{path} is not a file of split ids: it is not valid JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtefactError(f"{path} is not a file of split ids: expected a JSON object with format {FORMAT!r}")
    if record.get("version") != VERSION:
        raise ArtefactError(f"{path}: split ids of version {record.get('version')!r}; this caplet reads {VERSION}")
    if not isinstance(record.get("name"), str):
        raise ArtefactError(f"{path}: the dataset's name is missing: save the ids again")
    for split in SPLITS:
        entry = record.get(split)
        wanted = {"count": int, "sha256": str, "ids": str}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in wanted.items()):
            raise ArtefactError(f"{path}: split {split!r} must have {', '.join(wanted)}: save the ids again")
        entry["ids"] = unpack_ids(entry["ids"])
        if len(entry["ids"]) != entry["count"]:
            raise ArtefactError(f"{path}: split {split!r} lists {len(entry['ids'])} ids, its count is {entry['count']}")
    return record
