"""Learning curves of a training run as a picture."""

from __future__ import annotations

import io
from typing import Any


def learning_curves(history: list[dict[str, Any]], title: str) -> bytes:
    """PNG of the training loss and the calibration accuracy by epoch.

    Args:
        history: the ``epoch`` records of a training run (``metrics.json``, key ``history``), at least one.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss = figure.add_subplot(title=title, xlabel="epoch", ylabel="loss per image")
    loss.plot(epochs, [row["loss"] for row in history], color="tab:gray", marker=".", label="training loss")
    loss.plot(
        epochs, [row["calibration_loss"] for row in history], color="tab:orange", marker=".", label="calibration loss"
    )
    share = loss.twinx()
    share.set_ylabel("calibration accuracy (%)")
    accuracy = [100 * row["calibration_accuracy"] for row in history]
    share.plot(epochs, accuracy, color="tab:blue", marker=".", label="calibration accuracy")
    lines = [*loss.get_lines(), *share.get_lines()]
    loss.legend(lines, [str(line.get_label()) for line in lines], loc="center right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
