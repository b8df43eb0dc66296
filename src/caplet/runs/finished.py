"""Finished runs, read with all their records."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from caplet.errors import ArtefactError
from caplet.files import access
from caplet.runs import records
from caplet.runs.folder import ENVIRONMENT, METRICS, RUNNING, SETTINGS, SPLITS, Environment, read_record, typed
from caplet.runs.records import DETAILS, FLIPS, KEPT, PREDICTIONS, SEARCH, TRACE, VERIFIED

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


METRICS_OF: dict[str, type[Any]] = {
    RunKind.TRAIN: records.TrainMetrics,
    RunKind.QUANTIZE: records.QuantizeMetrics,
    RunKind.SENSITIVITY: records.SensitivityMetrics,
    RunKind.PRUNE: records.PruneMetrics,
    RunKind.FINETUNE: records.FinetuneMetrics,
    RunKind.QAT: records.QatMetrics,
    RunKind.COMPRESS: records.CompressMetrics,
}
M = TypeVar("M")


@dataclass(frozen=True)
class RunRecords(Generic[M]):
    """One finished run: the name of its folder, what it did, and its files; None for those that it does not have.

    Attributes:
        settings: ``settings.json``, empty where it is missing.
        role: of the first shipped model, under which other records tell about it; empty without one.
        details: of that model.
    """

    name: str
    kind: RunKind
    metrics: M
    settings: Mapping[str, Any]
    role: str = ""
    environment: Environment | None = None
    splits: records.SplitRecord | None = None
    search: records.SearchRecord | None = None
    predictions: records.Predictions | None = None
    flips: records.Flips | None = None
    details: records.ModelDetails | None = None
    verified: records.VerifyRecord | None = None
    trace: records.TraceRecord | None = None
    kept: records.Kept | None = None


_FILES: dict[str, tuple[str, type[Any]]] = {
    "environment": (ENVIRONMENT, Environment),
    "splits": (SPLITS, records.SplitRecord),
    "search": (SEARCH, records.SearchRecord),
    "predictions": (PREDICTIONS, records.Predictions),
    "flips": (FLIPS, records.Flips),
    "details": (DETAILS, records.Details),
    "verified": (VERIFIED, records.VerifyRecord),
    "trace": (TRACE, records.TraceRecord),
    "kept": (KEPT, records.Kept),
}


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


def read_run(path: str | Path) -> RunRecords[Any]:
    """The records of a finished run.

    Raises:
        ArtefactError: no folder, no run, an unfinished run, one that no report knows, or a record that cannot be read.
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
    name, metrics = folder.resolve().name, read_record(folder / METRICS, dict)
    settings: dict[str, Any] = read_record(folder / SETTINGS, dict) if (folder / SETTINGS).exists() else {}
    job = settings.get("job") or _guess(metrics)
    if job not in METRICS_OF:
        raise ArtefactError(
            f"run {name} is no run of training, pruning, quantization, compression or error analysis;"
            " a report shows those"
        )
    found = typed(METRICS_OF[job], metrics, f"{folder / METRICS}")
    models = getattr(found, "models", ())
    role = COMPRESSED if job == RunKind.COMPRESS else models[0].role if models else ""
    files: dict[str, Any] = {
        field: read_record(folder / file, kind) for field, (file, kind) in _FILES.items() if (folder / file).exists()
    }
    if "details" in files:
        files["details"] = files["details"].models.get(role)
    return RunRecords(name, RunKind(job), found, settings, role, **files)


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
