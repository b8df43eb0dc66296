"""What a run keeps for its report and for comparisons: answers per image, flipped images, tensors and memory plans."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caplet.data.imageset import ImageSet
from caplet.data.splits import pack_ids
from caplet.files import digest
from caplet.jobs.inspect import inspect_model
from caplet.jobs.ship import Verified
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.file import dumps
from caplet.program.verify import verify
from caplet.runs.folder import RunFolder

PREDICTIONS, FLIPS, DETAILS = "predictions.json", "flips.json", "details.json"
VERIFIED = "verify.json"
MOST_FLIPS = 60
"""Flipped images whose pixels are kept."""
SHARES = {"lost": 30, "won": 20, "other": 10}
"""Of them by kind, where there are enough."""
LARGEST_SIDE = 96
"""Pixels; larger images are kept smaller."""

Classes = NDArray[np.int64]


def record_predictions(run: RunFolder, images: ImageSet, float_: Classes, models: Mapping[str, Classes]) -> None:
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
    run.write_text(PREDICTIONS, json.dumps(record, separators=(",", ":")) + "\n")


def record_flips(run: RunFolder, images: ImageSet, role: str, float_: Classes, integers: Classes) -> None:
    """Write ``flips.json``: how many answers differ between the float model and one Program, and some of the images.

    Images that only the float model had right come first, then those that only the Program had right, then the rest.
    At most :data:`MOST_FLIPS` are kept, as PNG files in base64: of every kind the first ones, up to :data:`SHARES`, and
    what that leaves free goes to the kinds in their order.
    """
    labels = images.labels.numpy()
    kinds = {
        "lost": (float_ == labels) & (integers != labels),
        "won": (float_ != labels) & (integers == labels),
        "other": (float_ != labels) & (integers != labels) & (float_ != integers),
    }
    places = {kind: np.flatnonzero(mask).tolist() for kind, mask in kinds.items()}
    taken = {kind: min(len(places[kind]), SHARES[kind]) for kind in kinds}
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
    run.write_json(FLIPS, {"role": role, "n": len(images), "counts": counts, "shown": shown})


def record_details(run: RunFolder, programs: Mapping[str, Program]) -> None:
    """Write ``details.json``: by role, stored tensors, accumulators, memory plans with all and no votes stored."""
    models: dict[str, Any] = {}
    for role, program in programs.items():
        proof = verify(program)
        models[role] = {
            "sha256": program_digest(program),
            "tensors": inspect_model(program)["points"],
            "ops": [op.name for op in program.ops],
            "accumulators": proof.to_json(),
            "memory": {ram: plan_memory(program, ram, proof=proof).to_json() for ram in ("fast", "small")},
        }
    run.write_json(DETAILS, {"models": models})


def record_verified(folder: Path, program: Program, data: str, engines: Sequence[Verified]) -> None:
    """Write ``verify.json``: what each engine computed from ``program``. Engines of an earlier call are kept.

    Args:
        data: what the images were.

    Raises:
        ArtefactError: the file cannot be read or written.
    """
    run, digest = RunFolder(folder), program_digest(program)
    earlier = run.read_json(VERIFIED) if (run / VERIFIED).exists() else {}
    known = {row["target"]: row for row in earlier["engines"]} if earlier.get("sha256") == digest else {}
    known |= {engine.target: {**asdict(engine), "data": data} for engine in engines}
    run.write_json(VERIFIED, {"sha256": digest, "engines": list(known.values())})


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
