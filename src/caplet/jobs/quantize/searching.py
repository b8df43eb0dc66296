"""A search inside a job: the images that it looks at, what it says, and what it cost."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.models.base import CapsNet
from caplet.progress import Note
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.log import images_digest, model_identity
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.formats import FormatSource
from caplet.quant.search.request import Request, SearchResult
from caplet.quant.search.result import Step
from caplet.runs.folder import RunFolder

CALIBRATION, TUNING, SENSITIVITIES = "calibration.npz", "tuning.jsonl", "sensitivities.jsonl"
"""What a search measured besides its probes, for a resumed run."""
CALIBRATION_IMAGES = 1024
"""Images whose activations choose the exponents."""


def spread(images: ImageSet, count: int) -> Tensor:
    """At most ``count`` images at even distances through the set, uint8 (N, C, H, W)."""
    step = max(1, len(images) // count)
    return images.images[::step][:count]


def calibrated(run: RunFolder, model: CapsNet, images: ImageSet, resume: bool, note: Note) -> tuple[Calibration, int]:
    """The calibration of ``model``, kept in ``run``, and how many images it took: 0 where an interrupted run's is read.

    Args:
        images: the calibration split.
        resume: whether ``run`` may hold one. One of another model or other images is replaced.

    Raises:
        ModelError: a NaN at a point (named). ArtefactError: a damaged file, or it cannot be written.
    """
    chosen, path = spread(images, CALIBRATION_IMAGES), run / CALIBRATION
    identity = {**model_identity(model), "images": images_digest(chosen)}
    if resume and path.exists() and Calibration.made_of(path) == identity:
        return Calibration.load(path, model), 0
    note(f"calibrating on {len(chosen):,} images")
    calibration = calibrate(model, chosen)
    calibration.save(path, identity)
    return calibration, calibration.images


def full_passes(
    evaluator: Evaluator, calibration_images: int, source: FormatSource, found: SearchResult
) -> dict[str, float]:
    """What this part of a search cost by purpose, each in passes of all the evaluator's images through the whole model.

    Everything that chose the plan is counted; the integers' final accept, one pass more for each plan that it looks at,
    is not, nor is what an interrupted part measured before.
    """
    costs = {
        "calibration": calibration_images / len(evaluator),
        "tuning": source.spent / len(evaluator) if isinstance(source, Tuner) else 0.0,
        "float": evaluator.float_spent,
        "sensitivities": found.cost,
        "probes": evaluator.spent - evaluator.float_spent,
    }
    return {**costs, "total": sum(costs.values())}


def warn_about(splits: Splits, request: Request, evaluator: Evaluator, note: Note) -> None:
    """Say so where the calibration images cannot resolve the tolerance, or miss a class."""
    allowed = request.allowed(evaluator.float_result())
    if 0 < allowed < 1:
        enough = math.ceil(len(evaluator) / allowed)
        note(
            f"warning: {len(evaluator):,} calibration images cannot resolve a tolerance of {request.tolerance:g}: not"
            f" one image may be lost; {enough:,} images would allow one (--calibration-size)"
        )
    counts = splits.calibration.class_counts()
    missing = [name for name, count in zip(splits.calibration.classes, counts, strict=True) if count == 0]
    if missing:
        note(f"warning: no calibration image is of class {', '.join(missing)}; the search cannot see what it loses")


def describe_step(step: Step[Any]) -> str:
    """One line about a search step."""
    verdict = "kept" if step.accepted else "rejected"
    found = f"{step.correct:,} correct"
    if step.low < step.high:
        found = f"{step.low:,} to {step.high:,} correct"
    if step.low < step.needed <= step.high:
        verdict = "not settled, rejected"
    return f"step {step.step}: {step.about}: {found}, {step.needed:,} needed: {verdict} ({step.seen:,} images seen)"
