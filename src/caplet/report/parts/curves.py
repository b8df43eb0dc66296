"""Learning curves of a training run."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Dot, Labels, Level, Series, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import RunRecords


def curves(run: RunRecords) -> Section | str:
    """Loss and accuracy of a training run by epoch."""
    return _curves(run.metrics)


def finetuning(run: RunRecords) -> Section | str:
    """Loss and accuracy of a fine-tuning run by epoch."""
    return _curves(run.metrics["finetune"])


def tuning(run: RunRecords) -> Section | str:
    """Loss and accuracy of the fine-tuning after pruning, by step, round by round."""
    rounds = run.metrics["rounds"]
    points = [
        (row["round"], step["step"], step["loss"], 100 * step["accuracy"])
        for row in rounds
        for step in row.get("finetuning", {}).get("steps", ())
    ]
    if not points:
        return "Learning curves: no step of fine-tuning was recorded."
    epochs = [
        (row["round"], epoch["global_step"], 100 * epoch["calibration_accuracy"])
        for row in rounds
        for epoch in row["finetuning"]["epochs"]
    ]

    def lines(name: str, at: int, style: str) -> list[Series]:
        found = [tuple((point[1], point[at]) for point in points if point[0] == row["round"]) for row in rounds]
        named = [name if len(rounds) == 1 else f"{name} {row['round']}" for row in rounds]
        return [Series(word, line, style) for word, line in zip(named, found, strict=True) if line]

    evaluated = [
        Dot(step, percent, "s1", f"round {index}, calibration: {percent:.2f} %") for index, step, percent in epochs
    ]
    loss = chart(Labels("Loss by step", "step", "loss of one batch"), lines("training", 2, "s0"), whole_x=True)
    accuracy = chart(
        Labels("Accuracy by step", "step", "correct (%)"),
        lines("training", 3, "s0"),
        evaluated,
        legend=(("s1", "calibration"),),
        whole_x=True,
    )
    table = Table("fine-tuning", ("round", "step", "loss", "accuracy_percent"), tuple(points))
    figure = Figure(
        "Loss and accuracy of fine-tuning",
        "Every point of a line is one batch; dots are all calibration images, which are never trained on.",
        (loss, accuracy),
        table,
    )
    last = f"{epochs[-1][2]:.2f} % of the calibration images are classified correctly at the end." if epochs else ""
    return Section("Learning curves", last, (figure,))


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
