"""How well scores rank: accuracy against what is kept, for every score, without any fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np

from caplet.data import Splits
from caplet.errors import CapletError
from caplet.files import write_bytes
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.prune.targets import allocate
from caplet.jobs.run import begin, check, correct_images
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of
from caplet.progress import Note, Progress, silent
from caplet.prune.coupling import measure_activity
from caplet.prune.order import macs_per_unit, resized_cost
from caplet.prune.scores import SCORES, measure_scores
from caplet.prune.structure import cut, prunable, structure_of
from caplet.report.pruning import pruning_curves
from caplet.runs.folder import write_record
from caplet.train.loss import margin_loss

CURVES, PICTURE = "curves.json", "curves.svg"
KEPT = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Fractions of the removals that are left to do, that is, roughly of the units that are kept."""


def prune_curves(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: PruneSettings,
    *,
    force: bool = False,
    note: Note = silent,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every score's curve on the calibration split and write ``curves.json`` and ``curves.svg``.

    The scores look at ``settings.images`` images of the calibration split, and accuracies are measured on all of it.
    ``settings`` also say what may go (``units``), the allocation and the seed; the target is not looked at.

    Returns:
        What ``curves.json`` holds: ``scores`` by name with ``points`` (``kept``: fraction of the units; ``macs``;
        ``accuracy``) and ``area`` (under accuracy against kept units, between the smallest fraction and 1, divided by
        its width), ``reference``, ``activity``.

    Raises:
        ConfigError, ModelError, ArtefactError: as :func:`caplet.jobs.prune.job.prune`.
    """
    check(model, splits)
    structure = structure_of(model)
    spaces = prunable(structure, settings.units)
    resolved = {
        "analysis": "curves",
        **settings.model_dump(mode="json", include={"units", "allocation", "images", "seed"}),
    }
    with begin("prune-curves", out, splits, resolved, model, force=force) as run:
        seen = splits.calibration.evenly_spaced(settings.images)
        note(f"scoring on {len(seen):,} images")
        measured = measure_scores(
            model, seen.images, seen.labels, list(SCORES), margin_loss, seed=settings.seed, progress=progress
        )
        unit_macs = macs_per_unit(model, structure, spaces)
        units, macs = sum(group.size for group in spaces), cost_of(model).macs

        def fraction_correct(network: CapsNet) -> float:
            return float(correct_images(network, splits.calibration).mean())

        reference = fraction_correct(model)
        lines: dict[str, Any] = {}
        for name, scores in measured.items():
            order = allocate(model, structure, scores, spaces, unit_macs, splits.calibration, settings)
            if not order.removals:
                raise CapletError(f"prune: nothing of {', '.join(settings.units)} can go from this model")
            points = []
            for kept in KEPT:
                selection = order.selection(round((1 - kept) * len(order.removals)))
                smaller = cut(model, selection, structure)
                left = sum(int(selection[group.name].sum()) for group in spaces)
                cost = resized_cost(model, structure, selection).macs / macs
                found = reference if kept == 1.0 else fraction_correct(smaller)
                points.append({"kept": left / units, "macs": cost, "accuracy": found})
            lines[name] = {"points": points, "area": _area(points)}
            note(f"{name}: area {lines[name]['area']:.4f}")
        record = {
            "scores": lines,
            "reference": reference,
            "images": len(splits.calibration),
            "settings": resolved,
            "activity": measure_activity(model, seen.images).to_json(),
        }
        write_record(run / CURVES, record)
        write_bytes(run / PICTURE, pruning_curves(record, f"{model.family} on {splits.info['name']}, no fine-tuning"))
        return record


def _area(points: list[dict[str, float]]) -> float:
    """Mean accuracy over the kept fraction, by the trapezoid rule."""
    kept = np.array([point["kept"] for point in points])[::-1]
    found = np.array([point["accuracy"] for point in points])[::-1]
    return float(np.trapezoid(found, kept) / (kept[-1] - kept[0]))
