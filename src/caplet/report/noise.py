"""Noise that rounding adds: each point alone (the error analysis), and all together (a trace of the integers)."""

from collections.abc import Sequence
from typing import Any

from caplet.report.charts import RangeBar, Tile, bars, heat_map
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import picture_file
from caplet.runs.finished import RunRecords
from caplet.runs.records import TRACE, Row, SensitivityMetrics

_ROBUST, _FRAGILE = 60.0, 0.0
"""dB at the class capsules that have the weakest and the strongest colour."""
_FIGURES = ("sqnr", "output_sqnr", "loss_change", "accuracy_change", "saturation")


def sensitivity_pictures(rows: Sequence[Row], title: str) -> bytes:
    """The error analysis as an SVG file.

    Args:
        rows: ``metrics.json`` of an error analysis, key ``points``, at least one.
        title: above the pictures.
    """
    return picture_file(title, [picture for figure in _figures(rows) for picture in figure.pictures], columns=2)


def sensitivity(run: RunRecords[SensitivityMetrics]) -> Section | str:
    """Signal-to-noise ratio at the class capsules by point and width, and the change of the loss at one width."""
    rows = run.metrics.points
    if not rows:
        return "Sensitivity: no point was measured."
    points, widths = ({row[name] for row in rows} for name in ("point", "bits"))
    return Section("Sensitivity", f"{len(points)} points at {len(widths)} widths, each alone.", _figures(rows))


def _figures(rows: Sequence[Row]) -> tuple[Figure, Figure]:
    points = list(dict.fromkeys(row["point"] for row in rows))
    widths = sorted({row["bits"] for row in rows})
    tiles = {}
    for row in rows:
        ratio = row["output_sqnr"]["mean"]
        text = "exact" if ratio is None else str(round(ratio))
        mix = 0.0 if ratio is None else (_ROBUST - ratio) / (_ROBUST - _FRAGILE)
        change = row["accuracy_change"]["mean"]
        tip = f"{row['point']} at {row['bits']} bits: {text} dB at the class capsules, {change:+.2f} pp"
        tiles[points.index(row["point"]), widths.index(row["bits"])] = Tile(text, mix, tip, "tile wrong")
    width = min(widths, key=lambda bits: (abs(bits - 4), bits))
    shown = sorted((row for row in rows if row["bits"] == width), key=lambda row: -row["loss_change"]["mean"])
    entries = [RangeBar(row["point"], *(row["loss_change"][part] for part in ("mean", "low", "high"))) for row in shown]
    return (
        Figure(
            "Signal-to-noise ratio at the class capsules (dB)",
            "One tensor at a time is rounded to the width, everything else stays float. The stronger the colour, the"
            " more the output suffers.",
            (heat_map("dB by point and width", points, [f"{w} bits" for w in widths], tiles, cell=(58.0, 22.0)),),
            _table("sensitivity-sqnr", rows, ("output_sqnr",)),
        ),
        Figure(
            f"Change of the loss at {width} bits",
            "Bars are means over draws of calibration images, whiskers go from the smallest to the largest draw.",
            (bars(f"Change of the loss at {width} bits", f"change of the margin loss at {width} bits", entries),),
            _table("sensitivity", rows, _FIGURES),
        ),
    )


def _table(name: str, rows: Sequence[Row], figures: tuple[str, ...]) -> Table:
    """Mean, lowest and highest draw of some figures by point and width."""
    columns = [(figure, part) for figure in figures for part in ("mean", "low", "high")]
    lines = tuple((row["point"], row["bits"], row["n"], *(row[f][part] for f, part in columns)) for row in rows)
    return Table(name, ("point", "bits", "n", *(f"{figure}_{part}" for figure, part in columns)), lines)


def noise(run: RunRecords[Any]) -> Section | str:
    """Signal-to-noise ratio and saturation of the integers against the float model."""
    record = run.trace
    if record is None:
        return f"Noise by point: the run has no {TRACE}; `caplet trace` makes it."
    if run.details is None or record.sha256 != run.details.sha256:
        return f"Noise by point: {TRACE} is about another model than the present one; run `caplet trace` again."
    rows = record.noise
    if not rows:
        return f"Noise by point: {TRACE} has none; `caplet trace` with the level float makes it."
    table = Table.of("noise", ("tensor", "sqnr", "saturated", "elements"), rows)
    ratio = [RangeBar(row["tensor"], row["sqnr"], row["sqnr"], row["sqnr"]) for row in rows if row["sqnr"] is not None]
    saturated = [RangeBar(row["tensor"], *3 * (100 * row["saturated"],), "s1") for row in rows]
    pictures = (bars("Signal-to-noise ratio", "dB against the float model", ratio),) if ratio else ()
    figure = Figure(
        "Signal-to-noise ratio (left, dB) and saturated codes (right, %)",
        "In order of execution; a number in brackets is a routing iteration. Higher ratios are better.",
        (*pictures, bars("Saturation", "% of codes", saturated)),
        table,
    )
    text = f"All integers of {record.images:,} images against the float model's values."
    return Section("Noise by point and iteration", text, (figure,))
