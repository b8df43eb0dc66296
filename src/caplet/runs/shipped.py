"""What a run writes about the Programs that it ships and their answers on the test split."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caplet.data.imageset import ImageSet
from caplet.data.splits import pack_ids
from caplet.files import digest, write_text
from caplet.fixed.format import SHIFT_BITS
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.cycles import device_times
from caplet.program.document import format_text
from caplet.program.file import dumps
from caplet.program.verify import verify
from caplet.runs import records
from caplet.runs.folder import read_record, write_record
from caplet.runs.records import DETAILS, FLIPS, PREDICTIONS, VERIFIED, TensorRecord, Verified

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
    record = records.Predictions(
        split="test",
        data=images.name,
        sha256=images.sha256(),
        classes=list(images.classes),
        ids=pack_ids(images.ids),
        labels=images.labels.tolist(),
        models={role: predicted.tolist() for role, predicted in models.items()},
        float=float_.tolist(),
    )
    write_text(run / PREDICTIONS, json.dumps(asdict(record), separators=(",", ":")) + "\n")


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
    shown = tuple(
        {
            "id": int(images.ids[at]),
            "kind": kind,
            "label": int(labels[at]),
            "float": int(float_[at]),
            "integers": int(integers[at]),
            "png": base64.b64encode(png(images.images[at].numpy())).decode(),
        }
        for kind, at in chosen
    )
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    write_record(run / FLIPS, records.Flips(role, len(images), counts, shown))


def record_details(run: Path, programs: Mapping[str, Program], ram: str | int) -> None:
    """Write ``details.json``: by role, tensors, accumulators, memory plans (``fast``, ``small`` and ``ram``), times."""
    models: dict[str, Any] = {}
    for role, program in programs.items():
        proof, plans = verify(program), dict.fromkeys(("fast", "small", ram))
        models[role] = {
            "sha256": program_digest(program),
            "tensors": list(program_tensors(program)),
            "ops": [op.name for op in program.ops],
            "accumulators": proof.to_json(),
            "memory": {str(each): plan_memory(program, each, proof=proof).to_json() for each in plans},
            "times": {time.device.name: str(time) for time in device_times(program, proof)},
        }
    write_record(run / DETAILS, {"models": models})


def record_verified(folder: Path, program: Program, data: str, engines: Sequence[Verified]) -> None:
    """Write ``verify.json``: what each engine computed from ``program``. Engines of an earlier call are kept.

    Args:
        data: what the images were.

    Raises:
        ArtefactError: the file cannot be read or written.
    """
    sha256, path = program_digest(program), folder / VERIFIED
    earlier = read_record(path, records.VerifyRecord) if path.exists() else None
    known = {row.target: row for row in earlier.engines} if earlier is not None and earlier.sha256 == sha256 else {}
    known |= {engine.target: records.EngineRecord(**vars(engine), data=data) for engine in engines}
    write_record(path, records.VerifyRecord(sha256, list(known.values())))


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


def program_tensors(program: Program) -> Iterator[TensorRecord]:
    """Every tensor that the device stores but the lengths, in order of execution."""
    for op in program.ops:
        for constant in op.constants:
            row = tensor_record(
                constant.key, constant.shape, "flash", format_text(constant.format), constant.format.bits
            )
            shifts = getattr(op, "channel_shifts", None)
            if row.role == "weight" and shifts is not None:
                text = f"{row.format}, shifted by {shifts.min()} to {shifts.max()} per output channel"
                bits = SHIFT_BITS * shifts.size
                row = replace(row, format=text, shift_bits=bits, bytes=row.bytes + -(-bits // 8))
            yield row
        for name in (name for name in op.outputs if name != program.lengths):
            spec = program.tensors[name]
            yield tensor_record(name, spec.shape, "ram", format_text(spec.format), spec.format.bits)


def tensor_record(
    point: str, shape: tuple[int, ...], storage: str, fmt: str, bits: int, role: str | None = None
) -> TensorRecord:
    """One stored tensor; its role is the last part of its name, if not given."""
    elements = prod(shape)
    role = role or point.rpartition(".")[2]
    return TensorRecord(point, role, shape, storage, fmt, bits, elements, 0, -(-elements * bits // 8))
