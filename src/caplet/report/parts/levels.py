"""Where float and integers part: noise and saturation at every point and routing iteration, of a recorded trace."""

from __future__ import annotations

from caplet.report.charts import Bar, bars
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import TRACE, RunRecords


def levels(run: RunRecords) -> Section | str:
    """Signal-to-noise ratio and saturation of the integers against the float model."""
    record = run.find(TRACE)
    if record is None:
        return f"Noise by point: the run has no {TRACE}; `caplet trace` makes it."
    if run.details is None or record["sha256"] != run.details["sha256"]:
        return f"Noise by point: {TRACE} is about another model than the present one; run `caplet trace` again."
    rows = record["noise"]
    if not rows:
        return f"Noise by point: {TRACE} has none; `caplet trace` with the level float makes it."
    columns = ("tensor", "sqnr", "saturated", "elements")
    table = Table("noise", columns, tuple(tuple(row[name] for name in columns) for row in rows))
    ratio = [Bar(row["tensor"], row["sqnr"], row["sqnr"], row["sqnr"]) for row in rows if row["sqnr"] is not None]
    share = [Bar(row["tensor"], *3 * (100 * row["saturated"],), "s1") for row in rows]
    pictures = (bars("Signal-to-noise ratio", "dB against the float model", ratio),) if ratio else ()
    figure = Figure(
        "Signal-to-noise ratio (left, dB) and saturated codes (right, %)",
        "In order of execution; a number in brackets is a routing iteration. Higher ratios are better.",
        (*pictures, bars("Saturation", "% of codes", share)),
        table,
    )
    text = f"All integers of {record['images']:,} images against the float model's values."
    return Section("Noise by point and iteration", text, (figure,))
