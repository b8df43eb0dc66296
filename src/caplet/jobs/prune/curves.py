"""How well scores rank: accuracy against what is kept, for every score, without any fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np

from caplet.data import Splits
from caplet.errors import CapletError
from caplet.files import write_bytes
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.prune.targets import network_sizes, put_in_order
from caplet.jobs.run import begin, check, correct_images, job_device
from caplet.models.base import CapsNet
from caplet.nn.device import AUTO, TRAINING, computing, placed
from caplet.progress import Note, Progress, silent
from caplet.prune.coupling import measure_activity
from caplet.prune.scores import SCORES, measure_scores
from caplet.prune.structure import cut
from caplet.report.pruning import pruning_curves
from caplet.runs.folder import write_record
from caplet.train.loss import margin_loss

CURVES, PICTURE = "curves.json", "curves.svg"
REMAINING = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Fractions of the removals that are not done, that is, roughly of the units that remain."""


def prune_curves(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: PruneSettings,
    *,
    force: bool = False,
    note: Note = silent,
    progress: Progress | None = None,
    device: str = AUTO,
) -> dict[str, Any]:
    """Measure every score's curve on the calibration split and write ``curves.json`` and ``curves.svg``.

    The scores look at ``settings.images`` images of the calibration split, and accuracies are measured on all of it.
    ``settings`` also say what may go (``units``), the allocation and the seed; the target is not looked at. ``device``
    is as of :func:`caplet.jobs.prune.job.prune`.

    Returns:
        What ``curves.json`` holds: ``scores`` by name with ``points`` (``kept``: fraction of the units; ``macs``;
        ``accuracy``) and ``area`` (under accuracy against kept units, between the smallest fraction and 1, divided by
        its width), ``reference``, ``activity``.

    Raises:
        ConfigError, ModelError, ArtefactError: as :func:`caplet.jobs.prune.job.prune`.
    """
    there = job_device(device, auto=TRAINING, exact=False)
    splits = check(splits, model, note=note)
    resolved = {
        "analysis": "curves",
        **settings.model_dump(mode="json", include={"units", "allocation", "images", "seed"}),
    }
    with computing(there), begin("prune-curves", out, splits, resolved, model, force=force) as run:
        model = placed(model, there)
        seen = splits.calibration.evenly_spaced(settings.images)
        note(f"scoring on {len(seen):,} images")
        measured = measure_scores(
            model, seen.images, seen.labels, list(SCORES), margin_loss, seed=settings.seed, progress=progress
        )
        whole = network_sizes(model, settings.units)
        reference = float(correct_images(model, splits.calibration).mean())
        lines: dict[str, Any] = {}
        for name, scores in measured.items():
            order = put_in_order(model, splits.calibration, settings, scores=scores)
            if not order.removals:
                raise CapletError(f"prune: nothing of {', '.join(settings.units)} can go from this model")
            points = []
            for fraction in REMAINING:
                selection = order.selection(round((1 - fraction) * len(order.removals)))
                smaller = cut(model, selection, order.structure)
                sizes = network_sizes(model, settings.units, order.structure, selection)
                correct = correct_images(smaller, splits.calibration) if fraction < 1 else reference
                point = {"kept": sizes["keep"] / whole["keep"], "macs": sizes["macs"] / whole["macs"]}
                points.append({**point, "accuracy": float(np.mean(correct))})
            kept, found = ([point[name] for point in reversed(points)] for name in ("kept", "accuracy"))
            area = float(np.trapezoid(found, kept) / (kept[-1] - kept[0]))  # the mean accuracy
            lines[name] = {"points": points, "area": area}
            note(f"{name}: area {lines[name]['area']:.4f}")
        record = {
            "scores": lines,
            "reference": reference,
            "images": len(splits.calibration),
            "data_note": splits.info["note"],
            "settings": resolved,
            "activity": measure_activity(model, seen.images).to_json(),
        }
        write_record(run / CURVES, record)
        write_bytes(run / PICTURE, pruning_curves(record, f"{model.family} on {splits.info['name']}, no fine-tuning"))
        return record
