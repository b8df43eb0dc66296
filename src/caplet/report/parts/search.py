"""The story of a search: what was tried, what was kept, why it stopped."""

from __future__ import annotations

from caplet.report.charts import Dot, Labels, Level, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import SEARCH, RunRecords

_DEPTH = 6.0
"""Probes that lose more than this many times the tolerance are drawn at the lower edge."""


def search(run: RunRecords) -> Section | str:
    """Every probe in order, against the accuracy that was needed."""
    record = run.find(SEARCH)
    if record is None:
        return f"Search: the run has no {SEARCH}."
    steps, reference = record["steps"], record["reference"]
    if not steps:
        return "Search: no step was recorded."
    n = reference["n"]
    room = max(reference["correct"] - record["needed"], 1)
    floor = reference["correct"] - _DEPTH * room
    dots = []
    for number, step in enumerate(steps, start=1):
        style = "good" if step["accepted"] else "bad hollow"
        verdict = "kept" if step["accepted"] else "rejected"
        tip = f"{number}. step {step['step']}, {step['about']}: {step['correct']:,} of {n:,} correct, {verdict}"
        dots.append(Dot(number, 100 * step["correct"] / n, style, tip, below=step["correct"] < floor))
    levels = [
        Level(100 * reference["correct"] / n, "float"),
        Level(100 * record["needed"] / n, "needed"),
    ]
    below = sum(dot.below for dot in dots)
    caption = f"Each mark is one plan, measured on {n:,} calibration images."
    if below:
        caption += f" {below} that lose far more lie at the lower edge as triangles."
    picture = chart(
        Labels("Accuracy of every probe of the search", "probe", "correct (%)"),
        dots=dots,
        levels=levels,
        legend=(("good", "kept"), ("bad hollow", "rejected")),
        whole_x=True,
    )
    columns = ("step", "about", "correct", "needed", "accepted", "cost")
    table = Table(
        "search",
        ("probe", *columns),
        tuple((number, *(step[name] for name in columns)) for number, step in enumerate(steps, start=1)),
    )
    effort = run.metrics["search"]
    rows = (
        ("Method", run.metrics["method"]),
        ("Stopped because", run.metrics["reason"]),
        ("Probes", f"{effort['probes']:,}, {sum(step['accepted'] for step in steps):,} of {len(steps):,} steps kept"),
        ("Effort", f"{effort['full_passes']:.1f} full passes over the calibration images, {effort['seconds']:,.0f} s"),
        ("Rounding", run.metrics["rounding"]),
    )
    text = "The search sees calibration images only, as fake-quantized numbers; the final accept runs the integers."
    return Section("Search", text, (Figure("Probes in order", caption, (picture,), table),), rows=rows)
