"""Error analysis of a trained model: measure, summarise, draw, write the run folder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet.data import Splits
from caplet.files import write_bytes
from caplet.jobs.run import begin, check
from caplet.models.base import CapsNet
from caplet.progress import Progress
from caplet.quant.measure.sensitivity import SensitivitySettings, Summary, draw_indices, measure_sensitivity, summarise
from caplet.report.noise import sensitivity_pictures
from caplet.runs.folder import METRICS, write_record
from caplet.train.loss import margin_loss

ROWS, PICTURE = "sensitivity.jsonl", "sensitivity.svg"
DEFAULT_IMAGES = 128


@dataclass(frozen=True)
class SensitivityResult:
    """The outcome of an error analysis.

    Attributes:
        summaries: one per point and width.
        folder: the run folder; it holds ``sensitivity.jsonl`` (a row per point, width and draw), ``sensitivity.svg``
            and ``metrics.json``.
        metrics: what ``metrics.json`` holds: settings, seconds, and under ``points`` one record per summary.
    """

    summaries: tuple[Summary, ...]
    folder: Path
    metrics: dict[str, Any]


def sensitivity(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: SensitivitySettings | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> SensitivityResult:
    """Measure, on calibration images, what rounding each point of ``model`` alone does at each width.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``.
        settings: by default :data:`DEFAULT_IMAGES` images per draw, or fewer where the calibration split is small.
        progress: called with (rows done, rows in all).

    Raises:
        ConfigError: settings out of range, too few calibration images.
        ModelError: NaN weights, images of another size. ArtefactError: the run folder cannot be used.
    """
    if settings is None:
        draws = SensitivitySettings().draws
        settings = SensitivitySettings(images=max(1, min(DEFAULT_IMAGES, len(splits.calibration) // draws)))
    check(model, splits)
    chosen = splits.calibration
    draw_indices(len(chosen), settings)
    with begin("sensitivity", out, splits, settings.to_json(), model, resume=resume, force=force) as run:
        began = time.perf_counter()
        rows = measure_sensitivity(
            model,
            chosen.images,
            chosen.labels,
            settings,
            loss=margin_loss,
            log_path=run / ROWS,
            progress=progress,
        )
        summaries = summarise(rows)
        records = [summary.to_json() for summary in summaries]
        title = f"{model.family}, one point at a time: {settings.draws} draws of {settings.images} calibration images"
        write_bytes(run / PICTURE, sensitivity_pictures(records, title))
        metrics = {"settings": settings.to_json(), "seconds": round(time.perf_counter() - began, 1), "points": records}
        write_record(run / METRICS, metrics)
        return SensitivityResult(tuple(summaries), run, metrics)
