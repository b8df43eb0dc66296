"""Finished runs, read with all their records."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from caplet.errors import ArtefactError
from caplet.files import access
from caplet.runs import records, swept
from caplet.runs.folder import ENVIRONMENT, METRICS, SETTINGS, Environment, is_finished, read_record, reading, typed

COMPRESSED = "compressed"
"""The role of the one model that a compression ships."""
WEB_STAGE, WEB_PAGE = "web", "index.html"
"""The stage of a compression that makes a page for browsers, and its file."""
M = TypeVar("M")


@dataclass(frozen=True)
class RunRecords(Generic[M]):
    """One finished run: a field for each of its files, None for those that it does not have.

    Attributes:
        name: of its folder.
        job: what it did.
        role: of the first shipped model, under which other records tell about it; empty without one.
        details: of that model.
    """

    name: str
    job: str
    role: str
    metrics: M
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Environment | None = None
    splits: records.SplitRecord | None = None
    search: records.SearchRecord | None = None
    predictions: records.Predictions | None = None
    flips: records.Flips | None = None
    details: records.ModelDetails | None = None
    verify: records.VerifyRecord | None = None
    trace: records.TraceRecord | None = None
    kept: records.Kept | None = None


JOBS: dict[str, type[RunRecords[Any]]] = {
    "train": RunRecords[records.TrainMetrics],
    "quantize": RunRecords[records.QuantizeMetrics],
    "sensitivity": RunRecords[records.SensitivityMetrics],
    "prune": RunRecords[records.PruneMetrics],
    "finetune": RunRecords[records.FinetuneMetrics],
    "qat": RunRecords[records.QatMetrics],
    "compress": RunRecords[records.CompressMetrics],
    "trial": RunRecords[swept.TrialMetrics],
    "sweep": RunRecords[swept.SweepMetrics],
}


def read_run(path: str | Path) -> RunRecords[Any]:
    """The records of a finished run.

    Raises:
        ArtefactError: no folder, no run, an unfinished run, one that no report knows, or a record that cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; give the --out of a caplet run")
    if not is_finished(folder):
        if not (folder / SETTINGS).exists():
            raise ArtefactError(f"{folder} holds no run (no {SETTINGS}); give the --out of a caplet run")
        raise ArtefactError(
            f"the run in {folder} is not finished"
            f" ({f'no {METRICS}' if not (folder / METRICS).exists() else 'it stopped, or goes on now'});"
            " finish it with --resume, or give a finished one"
        )
    paths = {each.name: folder / f"{each.name}.json" for each in fields(RunRecords)[3:]}
    files: dict[str, Any] = {name: read_record(path, dict) for name, path in paths.items() if path.exists()}
    name, metrics = folder.resolve().name, files["metrics"]
    fitting = (job for job, kind in JOBS.items() if _required(*get_args(kind)) <= {*metrics})
    job = str(files.get("settings", {}).get("job") or next(fitting, ""))  # older runs do not name their job
    if job not in JOBS:
        raise ArtefactError(
            f"run {name} is no run of training, pruning, quantization, compression or error analysis;"
            " a report shows those"
        )
    with reading(f"the run in {folder}"):
        role = COMPRESSED if job == "compress" else metrics["models"][0]["role"] if "models" in metrics else ""
        if "details" in files:
            files["details"] = files["details"]["models"].get(role)
    return typed(JOBS[job], {**files, "name": name, "job": job, "role": role}, f"the run in {folder}")


def _required(metrics: type[Any]) -> set[str]:
    return {each.name for each in fields(metrics) if each.default is MISSING and each.default_factory is MISSING}


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
    started = {run: read_record(run / ENVIRONMENT, Environment).started for run in inside}
    return sorted(inside, key=lambda run: (started[run], run), reverse=True) or [path]
