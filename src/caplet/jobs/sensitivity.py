"""Error analysis of a trained model: measure, summarise, draw, write the run folder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet.data import Splits
from caplet.files import write_bytes
from caplet.jobs.run import begin, check, job_device
from caplet.models.base import CapsNet
from caplet.nn.device import AUTO, computing, placed
from caplet.progress import Note, Progress, silent
from caplet.quant.choices import SensitivitySettings
from caplet.quant.measure.sensitivity import draw_indices, measure_sensitivity, summarise
from caplet.report.noise import sensitivity_pictures
from caplet.runs.folder import METRICS, write_record
from caplet.train.loss import margin_loss
from caplet.workers.settings import WorkerSettings

ROWS, PICTURE = "sensitivity.jsonl", "sensitivity.svg"


@dataclass(frozen=True)
class SensitivityResult:
    """The outcome of an error analysis.

    Attributes:
        folder: the run folder; it holds ``sensitivity.jsonl`` (a row per point, width and draw), ``sensitivity.svg``
            and ``metrics.json``.
        metrics: what ``metrics.json`` holds: settings, seconds, and under ``points`` a record per point and width
            (:func:`caplet.quant.measure.sensitivity.summarise`).
    """

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
    note: Note = silent,
    workers: WorkerSettings | None = None,
    device: str = AUTO,
) -> SensitivityResult:
    """Measure, on calibration images, what rounding each point of ``model`` alone does at each width.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``.
        settings: what to measure.
        progress: called with (rows done, rows in all).
        note: called with one line about workers.
        workers: who measures; None for this process alone.
        device: where; ``auto``: the CPU, as for every search.

    Raises:
        ConfigError: settings out of range, too few calibration images, no scheduler at the cluster's address.
        WorkerError: a worker cannot be used, or what it measured failed. ToolMissing: see :class:`WorkerSettings`.
        ModelError: NaN weights, images of another size. ArtefactError: the run folder cannot be used.
    """
    there = job_device(device, workers)
    splits = check(splits, model)
    chosen = splits.calibration
    settings = (settings or SensitivitySettings()).within(len(chosen))
    draw_indices(len(chosen), settings)
    resolved = settings.model_dump(mode="json")
    with (
        (workers or WorkerSettings()).open(note) as team,
        begin("sensitivity", out, splits, resolved, model, resume=resume, force=force) as run,
        computing(there),
    ):
        began = time.perf_counter()
        log = run / ROWS
        asked = placed(model, there), chosen.images, chosen.labels, settings
        rows = measure_sensitivity(*asked, loss=margin_loss, log_path=log, progress=progress, team=team)
        records = summarise(rows)
        title = f"{model.family}, one point at a time: {settings.draws} draws of {settings.images} calibration images"
        write_bytes(run / PICTURE, sensitivity_pictures(records, title))
        metrics = {"settings": resolved, "seconds": round(time.perf_counter() - began, 1), "points": records}
        metrics["data_note"] = splits.info["note"]
        write_record(run / METRICS, metrics)
        return SensitivityResult(run, metrics)
