"""The Pareto front of a search that returns one."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Dot, Labels, Level, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import SEARCH, RunRecords
from caplet.report.svg import short
from caplet.report.verdict import bytes_text

_AXES = (("weight_bytes", "weights (bytes)"), ("activation_bytes", "activations of one image (bytes)"))


_DEPTH = 8.0
"""Plans that lose more than this many times the tolerance (and a point) are only in the table."""


def front(run: RunRecords) -> Section | str:
    """Bytes against loss for every plan of which no other one is better in every respect."""
    record = run.find(SEARCH)
    points = [] if record is None else record.get("front", [])
    if not points:
        return f"Pareto front: the method {run.metrics['method']} returns none (ilp does)."
    assert record is not None
    chosen = (record["result"] or {}).get("widths")
    tolerance = 100 * (record["reference"]["correct"] - record["needed"]) / record["reference"]["n"]
    most = max(_DEPTH * tolerance, 1.0)
    drawn = [point for point in points if point["loss"] <= most] or points
    pictures = tuple(_scatter(drawn, chosen, tolerance, key, words) for key, words in _AXES)
    columns = ("weight_bytes", "activation_bytes", "ram_bytes", "loss", "weight_reduction", "activation_reduction")
    table = Table("front", columns, tuple(tuple(point[name] for name in columns) for point in points))
    caption = (
        "Each mark is a measured plan that no other one beats in weights, activations, RAM and accuracy together. The"
        " filled one was chosen by the search."
    )
    if len(drawn) < len(points):
        caption += f" {len(points) - len(drawn)} more that lose above {most:.1f} points are in the CSV file only."
    figure = Figure(
        "Bytes against loss",
        caption,
        pictures,
        table,
    )
    return Section("Pareto front", f"{len(points)} plans; losses on calibration images.", (figure,))


def _scatter(points: list[dict[str, Any]], chosen: Any, tolerance: float, key: str, words: str) -> str:
    dots = []
    for point in sorted(points, key=lambda point: _picked(point, chosen)):  # the chosen one on top
        picked = _picked(point, chosen)
        tip = f"{bytes_text(point[key])}, {short(point['loss'])} pp"
        dots.append(Dot(point[key], point["loss"], "s1 chosen" if picked else "s0 hollow", tip))
    return chart(
        Labels(f"Loss by {words}", words, "loss (pp)"),
        dots=dots,
        levels=[Level(tolerance, "tolerance")],
        legend=(("s0 hollow", "plan"), ("s1 chosen", "chosen")),
        log_x=True,
    )


def _picked(point: dict[str, Any], chosen: Any) -> bool:
    return chosen is not None and point["widths"] == dict(zip(chosen["names"], chosen["bits"], strict=True))
