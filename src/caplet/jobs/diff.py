"""Compare two finished runs: accuracies image by image where the images agree, and everything that a run records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np

from caplet.errors import ArtefactError
from caplet.metrics import Paired, paired
from caplet.runs.finished import RunRecords, read_run
from caplet.runs.folder import reading
from caplet.runs.records import (
    PREDICTIONS,
    Predictions,
    PruneMetrics,
    QatMetrics,
    QuantizeMetrics,
    SensitivityMetrics,
    TrainMetrics,
)

_LEFT_OUT = frozenset({"data_hashes", "hardware"})


@dataclass(frozen=True)
class Value:
    """One figure of both runs; None where a run does not have it."""

    name: str
    first: float | int | str | None
    second: float | int | str | None


@dataclass(frozen=True)
class Diff:
    """Two runs side by side.

    Attributes:
        names: of the run folders.
        pair: their models on the same test images, None where the images differ or were not recorded.
        unpaired: why ``pair`` is None, else None.
        agree: test images to which both give the same answer, None where ``pair`` is.
        figures: accuracy, bytes, reductions, ...
        settings: settings that differ, of two runs of one kind.
        widths: tensors whose bits differ, of two quantized models.
    """

    names: tuple[str, str]
    pair: Paired | None
    unpaired: str | None
    agree: int | None
    figures: tuple[Value, ...]
    settings: tuple[Value, ...]
    widths: tuple[Value, ...]


def diff_runs(first: str | Path, second: str | Path) -> Diff:
    """Compare the models of two finished runs.

    Of a training, a pruning or a fine-tuning that is the float model; of a quantization or a training with quantization
    the first Program; of a compression the Program that it chose. A positive ``pair.loss`` means that the first one
    classifies more test images correctly.

    Raises:
        ArtefactError: a folder holds no finished run, or one without a model.
    """
    one, two = runs = _read(Path(first)), _read(Path(second))
    pair = agree = unpaired = None
    with reading(f"the record of {one.name} or {two.name}"):
        found = _same_images(*runs)
        if isinstance(found, str):
            unpaired = found
        else:
            labels = np.array(found[0].labels)
            answers = [
                record.models[run.role] if isinstance(run.metrics, QuantizeMetrics | QatMetrics) else record.float
                for run, record in zip(runs, found, strict=True)
            ]
            pair, agree = paired(*(np.array(answer) == labels for answer in answers)), sum(map(eq, *answers))
    known = [{name: value for name, value in run.settings.items() if name not in _LEFT_OUT} for run in runs]
    details = [run.details for run in runs if run.details is not None]
    widths = [{row.point: row.bits for row in shipped.tensors} for shipped in details]
    return Diff(
        (one.name, two.name),
        pair,
        unpaired,
        agree,
        tuple(_side_by_side(*(dict(_figures(run)) for run in runs))),
        tuple(_differing(*known)) if one.job == two.job else (),
        tuple(_differing(*widths)) if len(widths) == 2 else (),
    )


def _read(path: Path) -> RunRecords[Any]:
    """A run's records; of a compression those of the stage whose Program it chose."""
    run = read_run(path)
    if isinstance(run.metrics, SensitivityMetrics):
        raise ArtefactError(f"run {run.name}: an error analysis has no model to compare; give a run that made one")
    return replace(read_run(path / run.metrics.folders[-1]), name=run.name) if run.job == "compress" else run


def _same_images(*runs: RunRecords[Any]) -> tuple[Predictions, ...] | str:
    """What both answered on the same test images, or why that is not known."""
    for run in runs:
        if run.predictions is None:
            return f"run {run.name} has no {PREDICTIONS}: it was made by an older caplet"
    one, two = found = tuple(run.predictions for run in runs if run.predictions is not None)
    if one.sha256 == two.sha256:
        return found
    sides = (f"{len(each.labels):,} of {each.data} (SHA-256 {each.sha256[:12]}...)" for each in found)
    return f"the test images differ: {' and '.join(sides)}"


def _figures(run: RunRecords[Any]) -> Iterator[tuple[str, float | int | str | None]]:
    metrics = run.metrics
    if not isinstance(metrics, QuantizeMetrics | QatMetrics):
        test = metrics.pruned.test if isinstance(metrics, PruneMetrics) else metrics.test
        yield "kind", f"float model ({run.job})"
        yield "test accuracy (%)", test.percent
        yield "test images", test.n
        if isinstance(metrics, TrainMetrics):
            yield "weight bytes", 4 * metrics.parameters
            yield "seconds", metrics.seconds
        if isinstance(metrics, PruneMetrics):
            yield "weight bytes", 4 * metrics.pruned.cost["parameters"]
            yield "multiply-accumulates", metrics.pruned.cost["macs"]
        return
    model = metrics.models[0]
    yield "kind", f"integers ({metrics.method if isinstance(metrics, QuantizeMetrics) else run.job}, {model.role})"
    if isinstance(metrics, QuantizeMetrics):
        yield "limits met", "yes" if metrics.met else "no"
    yield "test accuracy (%)", model.test.percent
    yield "test images", model.test.n
    yield "loss against its float model (pp)", model.paired.loss
    yield "weight bytes", model.memory[-1]["weight_bits"] / 8
    yield "activation bytes", model.memory[-1]["activation_bits"] / 8
    yield "file bytes", model.file_bytes
    if run.details is not None:
        yield "RAM bytes, all votes stored", run.details.memory["fast"]["bytes"]
        yield "RAM bytes, votes recomputed", run.details.memory["small"]["bytes"]
    if isinstance(metrics, QuantizeMetrics):
        yield "probes", metrics.search["probes"]
        yield "seconds", metrics.search["seconds"]


def _side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Value]:
    for name in dict.fromkeys((*first, *second)):
        yield Value(name, first.get(name), second.get(name))


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Value]:
    """Lists and tables as text."""
    for value in _side_by_side(first, second):
        if value.first != value.second:
            sides = (value.first, value.second)
            yield Value(value.name, *(x if isinstance(x, float | int | str | None) else str(x) for x in sides))
