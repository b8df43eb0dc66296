"""Learning curves of a training run."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Labels, Level, Series, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import RunRecords


def curves(run: RunRecords) -> Section | str:
    """Loss and accuracy of a training run by epoch."""
    return _curves(run.metrics)


def finetuning(run: RunRecords) -> Section | str:
    """Loss and accuracy of a fine-tuning run by epoch."""
    return _curves(run.metrics["finetune"])


def _curves(metrics: dict[str, Any]) -> Section | str:
    history = metrics["history"]
    if not history:
        return "Learning curves: no epoch was recorded."
    kept = Level(metrics["epoch"], "kept", across=False)

    def line(name: str, key: str, style: str, scale: float = 1.0) -> Series:
        return Series(name, tuple((row["epoch"], scale * row[key]) for row in history if key in row), style)

    loss = chart(
        Labels("Loss by epoch", "epoch", "loss per image"),
        [line("training", "loss", "s0"), line("calibration", "calibration_loss", "s1")],
        levels=[kept],
        whole_x=True,
    )
    accuracy = chart(
        Labels("Accuracy by epoch", "epoch", "correct (%)"),
        [line("training", "accuracy", "s0", 100), line("calibration", "calibration_accuracy", "s1", 100)],
        levels=[kept],
        whole_x=True,
    )
    names = tuple(key for key in history[0] if isinstance(history[0][key], int | float))
    table = Table("learning-curves", names, tuple(tuple(row.get(name) for name in names) for row in history))
    figure = Figure(
        "Loss and accuracy",
        "Training figures are running means over the epoch; calibration images are never trained on.",
        (loss, accuracy),
        table,
    )
    return Section(
        "Learning curves", f"{len(history)} epochs; the weights of epoch {metrics['epoch']} were kept.", (figure,)
    )
