"""The error analysis: what rounding each point alone does."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Bar, Tile, bars, heat_map
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import RunRecords

_ROBUST, _FRAGILE = 60.0, 0.0
"""dB at the class capsules that have the weakest and the strongest colour."""
_FIGURES = ("sqnr", "output_sqnr", "loss_change", "accuracy_change", "saturation")


def sensitivity(run: RunRecords) -> Section | str:
    """Signal-to-noise ratio at the class capsules by point and width, and the loss at one width with its spread."""
    rows = run.metrics["points"]
    if not rows:
        return "Sensitivity: no point was measured."
    points = list(dict.fromkeys(row["point"] for row in rows))
    widths = sorted({row["bits"] for row in rows})
    table = _table(rows)
    tiles = {}
    for row in rows:
        ratio = row["output_sqnr"]["mean"]
        text = "exact" if ratio is None else f"{ratio:.0f}"
        mix = 0.0 if ratio is None else (_ROBUST - ratio) / (_ROBUST - _FRAGILE)
        change = row["accuracy_change"]["mean"]
        tip = f"{row['point']} at {row['bits']} bits: {text} dB at the class capsules, {change:+.2f} pp"
        tiles[points.index(row["point"]), widths.index(row["bits"])] = Tile(text, mix, tip, "tile wrong")
    heat = Figure(
        "Signal-to-noise ratio at the class capsules (dB)",
        "One tensor at a time is rounded to the width, everything else stays float. The stronger the colour, the more"
        " the output suffers.",
        (heat_map("dB by point and width", points, [f"{w} bits" for w in widths], tiles, cell=(58.0, 22.0)),),
        Table("sensitivity-sqnr", *_part(table, ("output_sqnr",))),
    )
    width = min(widths, key=lambda bits: (abs(bits - 4), bits))
    shown = [row for row in rows if row["bits"] == width]
    shown.sort(key=lambda row: -row["loss_change"]["mean"])
    entries = [_bar(row, "loss_change") for row in shown]
    bar = Figure(
        f"Change of the loss at {width} bits",
        "Bars are means over draws of calibration images, whiskers go from the smallest to the largest draw.",
        (bars(f"Change of the loss at {width} bits", "change of the margin loss per image", entries),),
        table,
    )
    text = f"{len(points)} points at {len(widths)} widths, each alone."
    return Section("Sensitivity", text, (heat, bar))


def _bar(row: dict[str, Any], figure: str) -> Bar:
    spread = row[figure]
    return Bar(row["point"], spread["mean"], spread["low"], spread["high"])


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = ["point", "bits", "n"]
    columns += [f"{figure}_{part}" for figure in _FIGURES for part in ("mean", "low", "high")]
    lines = tuple(
        (row["point"], row["bits"], row["n"], *(row[f][part] for f in _FIGURES for part in ("mean", "low", "high")))
        for row in rows
    )
    return Table("sensitivity", tuple(columns), lines)


def _part(table: Table, figures: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """The columns of some figures only."""
    kept = [i for i, name in enumerate(table.columns) if i < 3 or name.rpartition("_")[0] in figures]
    return tuple(table.columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in table.rows)
