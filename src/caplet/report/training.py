"""Learning curves, by epoch of a training run and by step of fine-tuning."""

from collections.abc import Sequence

from caplet.report.charts import Dot, Level, Series, chart
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Canvas, picture_file
from caplet.runs.finished import RunRecords
from caplet.runs.records import FinetuneMetrics, PruneMetrics, QatMetrics, Row, TrainMetrics
from caplet.runs.swept import TrialMetrics


def learning_curves(history: Sequence[Row], title: str, kept: int | None = None) -> bytes:
    """Loss and accuracy by epoch as an SVG file.

    Args:
        history: the ``epoch`` records of a training run (``metrics.json``, key ``history``), at least one.
        title: above the pictures.
        kept: the epoch whose weights were kept.
    """
    return picture_file(title, _charts(history, kept), columns=2)


def by_epoch(run: RunRecords[TrainMetrics | TrialMetrics | FinetuneMetrics | QatMetrics]) -> Section | str:
    """Loss and accuracy of a training or fine-tuning run by epoch."""
    metrics = run.metrics if isinstance(run.metrics, TrainMetrics | TrialMetrics) else run.metrics.finetune
    history, epoch = metrics.history, metrics.epoch
    if not history:
        return "Learning curves: no epoch was recorded."
    names = tuple(key for key in history[0] if isinstance(history[0][key], int | float))
    figure = Figure(
        "Loss and accuracy",
        "Training figures are running means over the epoch; calibration images are never trained on.",
        _charts(history, epoch),
        Table.of("learning-curves", names, history),
    )
    return Section("Learning curves", f"{len(history)} epochs; the weights of epoch {epoch} were kept.", (figure,))


def _charts(history: Sequence[Row], kept: int | None) -> tuple[Canvas, Canvas]:
    levels = [] if kept is None else [Level(kept, "kept", across=False)]

    def drawn(title: str, unit: str, name: str, scale: float) -> Canvas:
        lines = (
            Series(word, tuple((row["epoch"], scale * row[key]) for row in history if key in row), style)
            for word, style, key in (("training", "s0", name), ("calibration", "s1", f"calibration_{name}"))
        )
        return chart(title, ("epoch", unit), [line for line in lines if line.points], levels=levels, whole_x=True)

    return (
        drawn("Loss by epoch", "loss per image", "loss", 1.0),
        drawn("Accuracy by epoch", "correct (%)", "accuracy", 100.0),
    )


def by_step(run: RunRecords[PruneMetrics]) -> Section | str:
    """Loss and accuracy of the fine-tuning after pruning, by step, round by round."""
    rounds = run.metrics.rounds
    points = [
        (row.round, step["step"], step["loss"], 100 * step["accuracy"])
        for row in rounds
        for step in row.finetuning.get("steps", ())
    ]
    if not points:
        return "Learning curves: no step of fine-tuning was recorded."
    epochs = [
        (row.round, epoch["global_step"], 100 * epoch["calibration_accuracy"])
        for row in rounds
        for epoch in row.finetuning.get("epochs", ())
    ]

    def lines(at: int) -> list[Series]:
        many = len(rounds) > 1
        found = {
            n: tuple((point[1], point[at]) for point in points if point[0] == n) for n in (row.round for row in rounds)
        }
        return [Series(f"training {n}" if many else "training", line, "s0") for n, line in found.items() if line]

    evaluated = [
        Dot(step, percent, "s1", f"round {index}, calibration: {percent:.2f} %") for index, step, percent in epochs
    ]
    figure = Figure(
        "Loss and accuracy of fine-tuning",
        "Every point of a line is one batch; dots are all calibration images, which are never trained on.",
        (
            chart("Loss by step", ("step", "loss of one batch"), lines(2), whole_x=True),
            chart(
                *("Accuracy by step", ("step", "correct (%)"), lines(3), evaluated),
                legend=(("s1", "calibration"),),
                whole_x=True,
            ),
        ),
        Table("fine-tuning", ("round", "step", "loss", "accuracy_percent"), tuple(points)),
    )
    last = f"{epochs[-1][2]:.2f} % of the calibration images are classified correctly at the end." if epochs else ""
    return Section("Learning curves", last, (figure,))
