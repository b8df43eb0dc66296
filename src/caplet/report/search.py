"""What a search did: every evaluation in order, and the Pareto front of a search that returns one."""

from collections.abc import Sequence
from typing import Any

from caplet.report.cards import bytes_text
from caplet.report.charts import Dot, Level, chart
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Canvas, short
from caplet.runs.finished import RunRecords
from caplet.runs.records import SEARCH, QuantizeMetrics, Row

_LOWEST = 6.0
"""Evaluations that lose more than this many times the tolerance are drawn at the lower edge."""
_AXES = (("weight_bytes", "weights (bytes)"), ("activation_bytes", "activations of one image (bytes)"))
_DEEPEST = 8.0
"""Plans that lose more than this many times the tolerance (and a point) are only in the table."""


def search(run: RunRecords[QuantizeMetrics]) -> Section | str:
    """Every evaluation in order, against the accuracy that was needed."""
    record = run.search
    if record is None:
        return f"Search: the run has no {SEARCH}."
    steps, reference, needed = record.steps, record.reference, record.needed
    if not steps:
        return "Search: no step was recorded."
    n = reference["n"]
    room = max(reference["correct"] - needed, 1)
    floor = reference["correct"] - _LOWEST * room
    dots = []
    for number, step in enumerate(steps, start=1):
        style, outcome = ("good", "accepted") if step["accepted"] else ("bad hollow", "rejected")
        tip = f"{number}. step {step['step']}, {step['about']}: {step['correct']:,} of {n:,} correct, {outcome}"
        dots.append(Dot(number, 100 * step["correct"] / n, style, tip, below=step["correct"] < floor))
    levels = [Level(100 * reference["correct"] / n, "float"), Level(100 * needed / n, "needed")]
    below = sum(dot.below for dot in dots)
    caption = f"Each mark is one plan, measured on {n:,} calibration images."
    if below:
        caption += f" {below} that lose far more lie at the lower edge as triangles."
    picture = chart(
        "Accuracy of every evaluation of the search",
        ("evaluation", "correct (%)"),
        dots=dots,
        levels=levels,
        legend=(("good", "accepted"), ("bad hollow", "rejected")),
        whole_x=True,
    )
    columns = ("evaluation", "step", "about", "correct", "needed", "accepted", "cost")
    table = Table.of("search", columns, ({**step, "evaluation": number} for number, step in enumerate(steps, start=1)))
    effort, accepted = run.metrics.search, sum(step["accepted"] for step in steps)
    rows = (
        ("Method", run.metrics.method),
        ("Stopped because", run.metrics.reason),
        ("Evaluations", f"{effort['probes']:,}, {accepted:,} of {len(steps):,} steps accepted"),
        ("Effort", f"{effort['full_passes']:.1f} full passes over the calibration images, {effort['seconds']:,.0f} s"),
        ("Rounding", run.metrics.rounding),
    )
    text = "The search sees calibration images only, as fake-quantized numbers; the final acceptance runs the integers."
    return Section("Search", text, (Figure("Evaluations in order", caption, (picture,), table),), rows=rows)


def front(run: RunRecords[QuantizeMetrics]) -> Section | str:
    """Bytes against loss for every plan of which no other one is better in every respect."""
    record = run.search
    if record is None or not record.front:
        return f"Pareto front: the method {run.metrics.method} returns none (ilp does)."
    points, chosen = record.front, (record.result or {}).get("widths")
    tolerance = 100 * (record.reference["correct"] - record.needed) / record.reference["n"]
    most = max(_DEEPEST * tolerance, 1.0)
    drawn = [point for point in points if point["loss"] <= most] or points
    pictures = tuple(_scatter(drawn, chosen, tolerance, key, words) for key, words in _AXES)
    columns = ("weight_bytes", "activation_bytes", "ram_bytes", "loss", "weight_reduction", "activation_reduction")
    table = Table.of("front", columns, points)
    caption = (
        "Each mark is a measured plan that no other one beats in weights, activations, RAM and accuracy together. The"
        " filled one was chosen by the search."
    )
    if len(drawn) < len(points):
        caption += f" {len(points) - len(drawn)} more that lose above {most:.1f} points are in the CSV file only."
    figure = Figure("Bytes against loss", caption, pictures, table)
    return Section("Pareto front", f"{len(points)} plans; losses on calibration images.", (figure,))


def _scatter(points: Sequence[Row], chosen: Any, tolerance: float, key: str, words: str) -> Canvas:
    dots = [
        Dot(
            point[key],
            point["loss"],
            "s1 chosen" if _picked(point, chosen) else "s0 hollow",
            f"{bytes_text(point[key])}, {short(point['loss'])} pp",
        )
        for point in sorted(points, key=lambda point: _picked(point, chosen))  # the chosen one on top
    ]
    return chart(
        f"Loss by {words}",
        (words, "loss (pp)"),
        dots=dots,
        levels=[Level(tolerance, "tolerance")],
        legend=(("s0 hollow", "plan"), ("s1 chosen", "chosen")),
        log_x=True,
    )


def _picked(point: Row, chosen: Any) -> bool:
    return chosen is not None and point["widths"] == dict(zip(chosen["names"], chosen["bits"], strict=True))
