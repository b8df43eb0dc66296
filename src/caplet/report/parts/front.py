"""The Pareto front of a search that returns one."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Dot, Labels, Level, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import SEARCH, RunRecords
from caplet.report.svg import short
from caplet.report.verdict import bytes_text

_AXES = (("weight_bytes", "weights (bytes)"), ("activation_bytes", "activations of one image (bytes)"))


def front(run: RunRecords) -> Section | str:
    """Bytes against loss for every plan of which no other one is better in every respect."""
    record = run.find(SEARCH)
    points = [] if record is None else record.get("front", [])
    if not points:
        return f"Pareto front: the method {run.metrics['method']} returns none (ilp does)."
    assert record is not None
    chosen = (record["result"] or {}).get("widths")
    tolerance = 100 * (record["reference"]["correct"] - record["needed"]) / record["reference"]["n"]
    pictures = tuple(_scatter(points, chosen, tolerance, key, words) for key, words in _AXES)
    columns = ("weight_bytes", "activation_bytes", "ram_bytes", "loss", "weight_reduction", "activation_reduction")
    table = Table("front", columns, tuple(tuple(point[name] for name in columns) for point in points))
    figure = Figure(
        "Bytes against loss",
        "Each mark is a measured plan that no other one beats in weights, activations, RAM and accuracy together. The"
        " filled one was chosen by the search.",
        pictures,
        table,
    )
    return Section("Pareto front", f"{len(points)} plans; losses on calibration images.", (figure,))


def _scatter(points: list[dict[str, Any]], chosen: Any, tolerance: float, key: str, words: str) -> str:
    dots = []
    for point in points:
        picked = chosen is not None and point["widths"] == dict(zip(chosen["names"], chosen["bits"], strict=True))
        tip = f"{bytes_text(point[key])}, {short(point['loss'])} pp"
        dots.append(Dot(point[key], point["loss"], "s1 chosen" if picked else "s0 hollow", tip))
    return chart(
        Labels(f"Loss by {words}", words, "loss (pp)"),
        dots=dots,
        levels=[Level(tolerance, "tolerance")],
        legend=(("s0 hollow", "plan"), ("s1 chosen", "chosen")),
        log_x=True,
    )
