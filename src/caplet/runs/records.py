"""What a run writes for reports and comparisons, and how a finished run is read: one place for both."""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caplet.data.imageset import ImageSet
from caplet.data.splits import pack_ids
from caplet.errors import ArtefactError
from caplet.files import access, digest, write_text
from caplet.fixed.format import SHIFT_BITS
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.document import format_text
from caplet.program.file import dumps
from caplet.program.verify import verify
from caplet.runs.folder import ENVIRONMENT, METRICS, RUNNING, SETTINGS, SPLITS, read_record, reading, write_record

PREDICTIONS, FLIPS, DETAILS = "predictions.json", "flips.json", "details.json"
SEARCH, VERIFIED, TRACE, KEPT = "search.json", "verify.json", "trace.json", "kept.json"
FILES = (METRICS, SETTINGS, ENVIRONMENT, SPLITS, SEARCH, PREDICTIONS, FLIPS, DETAILS, VERIFIED, TRACE, KEPT)
"""Every file that a report reads."""
MOST_FLIPS = 60
"""Flipped images whose pixels are kept."""
FLIPS_OF_A_KIND = {"lost": 30, "won": 20, "other": 10}
"""Of them by kind, where there are enough."""
LARGEST_SIDE = 96
"""Pixels; larger images are kept smaller."""

Classes = NDArray[np.int64]


def record_predictions(run: Path, images: ImageSet, float_: Classes, models: Mapping[str, Classes]) -> None:
    """Write ``predictions.json``: the answers of the float model and of every shipped Program on the test split.

    Args:
        images: the test split.
        float_: classes that the float model predicts, (N,).
        models: role -> classes that the Program predicts, (N,).
    """
    record = {
        "split": "test",
        "data": images.name,
        "sha256": images.sha256(),
        "classes": list(images.classes),
        "ids": pack_ids(images.ids),
        "labels": images.labels.tolist(),
        "float": float_.tolist(),
        "models": {role: predicted.tolist() for role, predicted in models.items()},
    }
    write_text(run / PREDICTIONS, json.dumps(record, separators=(",", ":")) + "\n")


def record_flips(run: Path, images: ImageSet, role: str, float_: Classes, integers: Classes) -> None:
    """Write ``flips.json``: how many answers differ between the float model and one Program, and some of the images.

    Images that only the float model had right come first, then those that only the Program had right, then the rest.
    At most :data:`MOST_FLIPS` are kept, as PNG files in base64: of every kind the first ones, up to
    :data:`FLIPS_OF_A_KIND`, and what that leaves free goes to the kinds in their order.
    """
    labels = images.labels.numpy()
    kinds = {
        "lost": (float_ == labels) & (integers != labels),
        "won": (float_ != labels) & (integers == labels),
        "other": (float_ != labels) & (integers != labels) & (float_ != integers),
    }
    places = {kind: np.flatnonzero(mask).tolist() for kind, mask in kinds.items()}
    taken = {kind: min(len(places[kind]), FLIPS_OF_A_KIND[kind]) for kind in kinds}
    for kind in kinds:
        taken[kind] += min(len(places[kind]) - taken[kind], MOST_FLIPS - sum(taken.values()))
    chosen = [(kind, at) for kind in kinds for at in places[kind][: taken[kind]]]
    shown = [
        {
            "id": int(images.ids[at]),
            "kind": kind,
            "label": int(labels[at]),
            "float": int(float_[at]),
            "integers": int(integers[at]),
            "png": base64.b64encode(png(images.images[at].numpy())).decode(),
        }
        for kind, at in chosen
    ]
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    write_record(run / FLIPS, {"role": role, "n": len(images), "counts": counts, "shown": shown})


def record_details(run: Path, programs: Mapping[str, Program]) -> None:
    """Write ``details.json``: by role, stored tensors, accumulators, memory plans with all and no votes stored."""
    models: dict[str, Any] = {}
    for role, program in programs.items():
        proof = verify(program)
        models[role] = {
            "sha256": program_digest(program),
            "tensors": list(program_tensors(program)),
            "ops": [op.name for op in program.ops],
            "accumulators": proof.to_json(),
            "memory": {ram: plan_memory(program, ram, proof=proof).to_json() for ram in ("fast", "small")},
        }
    write_record(run / DETAILS, {"models": models})


@dataclass(frozen=True)
class Verified:
    """What one engine did.

    Attributes:
        target: the engine.
        images, codes: how many were compared.
        differing: codes that differ from the reference interpreter's.
        first: the first difference in words, or None.
        seconds: wall time.
        device: flash, RAM and instructions of an emulated device, or None.
    """

    target: str
    images: int
    codes: int
    differing: int
    first: str | None
    seconds: float
    device: dict[str, Any] | None = None


def record_verified(folder: Path, program: Program, data: str, engines: Sequence[Verified]) -> None:
    """Write ``verify.json``: what each engine computed from ``program``. Engines of an earlier call are kept.

    Args:
        data: what the images were.

    Raises:
        ArtefactError: the file cannot be read or written.
    """
    sha256 = program_digest(program)
    earlier = read_record(folder / VERIFIED) if (folder / VERIFIED).exists() else {}
    with reading(f"{folder / VERIFIED}"):
        known = {row["target"]: row for row in earlier["engines"]} if earlier.get("sha256") == sha256 else {}
    known |= {engine.target: {**asdict(engine), "data": data} for engine in engines}
    write_record(folder / VERIFIED, {"sha256": sha256, "engines": list(known.values())})


def program_digest(program: Program) -> str:
    """SHA-256 of the Program's ``.caplet`` file, which is equal for equal Programs."""
    return digest(dumps(program))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of one image, uint8 (C, H, W): grey or RGB, other channels averaged; at most 96 pixels a side."""
    if len(pixels) == 3:
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    else:
        picture = Image.fromarray(pixels.mean(axis=0).round().astype(np.uint8))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def program_tensors(program: Program) -> Iterator[dict[str, Any]]:
    """Every tensor that the device stores but the lengths, in order of execution; see :func:`tensor_row`."""
    for op in program.ops:
        for constant in op.constants:
            role = constant.key.rpartition(".")[2]
            row = tensor_row(
                constant.key, role, constant.shape, "flash", format_text(constant.format), constant.format.bits
            )
            shifts = getattr(op, "channel_shifts", None)
            if role == "weight" and shifts is not None:
                row["format"] += f", shifted by {shifts.min()} to {shifts.max()} per output channel"
                row["shift_bits"] = SHIFT_BITS * shifts.size
                row["bytes"] += -(-row["shift_bits"] // 8)
            yield row
        for name in (name for name in op.outputs if name != program.lengths):
            spec = program.tensors[name]
            yield tensor_row(
                name, name.rpartition(".")[2], spec.shape, "ram", format_text(spec.format), spec.format.bits
            )


def tensor_row(key: str, role: str, shape: tuple[int, ...], storage: str, fmt: str, bits: int) -> dict[str, Any]:
    """One stored tensor, JSON values; ``bytes`` is its count in bits over 8, as packed."""
    elements = prod(shape)
    return {
        "point": key,
        "role": role,
        "shape": list(shape),
        "storage": storage,
        "format": fmt,
        "bits": bits,
        "elements": elements,
        "shift_bits": 0,
        "bytes": -(-elements * bits // 8),
    }


COMPRESSED = "compressed"
"""The role of the one model that a compression ships."""


class RunKind(StrEnum):
    """What a run did."""

    TRAIN = "train"
    QUANTIZE = "quantize"
    SENSITIVITY = "sensitivity"
    PRUNE = "prune"
    FINETUNE = "finetune"
    QAT = "qat"
    COMPRESS = "compress"


@dataclass(frozen=True)
class RunRecords:
    """One finished run.

    Attributes:
        name: of its folder.
        files: name -> parsed JSON, of those of :data:`FILES` that the folder has; ``metrics.json`` is one of them.

    Raises:
        ArtefactError: the metrics are those of no run that a report knows.
    """

    name: str
    files: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.kind  # noqa: B018  an unknown kind is refused now

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``."""
        return dict(self.files[METRICS])

    @property
    def settings(self) -> dict[str, Any]:
        """``settings.json``, empty where it is missing."""
        return dict(self.files.get(SETTINGS, {}))

    @property
    def kind(self) -> RunKind:
        """What the run did."""
        job = self.settings.get("job") or _guess(self.metrics)
        if job not in list(RunKind):
            raise ArtefactError(
                f"run {self.name} is no run of training, pruning, quantization, compression or error analysis;"
                " a report shows those"
            )
        return RunKind(job)

    def find(self, name: str) -> Any | None:
        """A file's content, or None where the run has no such file."""
        return self.files.get(name)

    @property
    def role(self) -> str:
        """The first shipped model's, under which other records tell about it."""
        role: str = COMPRESSED if self.kind is RunKind.COMPRESS else self.metrics["models"][0]["role"]
        return role

    @property
    def details(self) -> dict[str, Any] | None:
        """The details of the first shipped model, None where none were recorded."""
        found = self.find(DETAILS)
        return None if found is None else found["models"].get(self.role)


def _guess(metrics: Mapping[str, Any]) -> str | None:
    """The job of a run whose settings do not name it, as those of older versions, by what its metrics hold."""
    if "finetune" in metrics:
        return RunKind.QAT if "models" in metrics else RunKind.FINETUNE
    marks = {
        "models": RunKind.QUANTIZE,
        "history": RunKind.TRAIN,
        "points": RunKind.SENSITIVITY,
        "rounds": RunKind.PRUNE,
        "choice": RunKind.COMPRESS,
    }
    return next((kind for mark, kind in marks.items() if mark in metrics), None)


def read_run(path: str | Path) -> RunRecords:
    """The records of a finished run.

    Raises:
        ArtefactError: no folder, no run, an unfinished run, or a record that cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; give the --out of a caplet run")
    if not (folder / METRICS).exists() or (folder / RUNNING).exists():
        if not (folder / SETTINGS).exists():
            raise ArtefactError(f"{folder} holds no run (no {SETTINGS}); give the --out of a caplet run")
        raise ArtefactError(
            f"the run in {folder} is not finished"
            f" ({f'no {METRICS}' if not (folder / METRICS).exists() else 'it stopped, or goes on now'});"
            " finish it with --resume, or give a finished one"
        )
    present = {name: read_record(folder / name) for name in FILES if (folder / name).exists()}
    with reading(f"the run in {folder}"):
        return RunRecords(folder.resolve().name, present)


def find_runs(path: str | Path) -> list[Path]:
    """The run folders that ``path`` means: itself, or the runs directly in it, the latest first.

    Raises:
        ArtefactError: the folder cannot be read.
    """
    path = Path(path)
    if not path.is_dir() or (path / SETTINGS).exists():
        return [path]
    with access("read", path):
        inside = [path / name for name in os.listdir(path) if (path / name / SETTINGS).exists()]
    started = {run: str(read_record(run / ENVIRONMENT).get("started", "")) for run in inside}
    return sorted(inside, key=lambda run: (started[run], run), reverse=True) or [path]
