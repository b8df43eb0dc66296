"""Bytes against loss: the pairs of pruning and width that were reckoned with, and the networks that were made."""

from __future__ import annotations

from caplet.report.charts import Dot, Labels, Level, chart
from caplet.report.figure import Cell, Figure, Section, Table
from caplet.report.records import RunRecords
from caplet.report.verdict import bytes_text

_DEPTH = 8.0
"""Pairs that lose more than this many times the accepted loss (and a point) are only in the table."""


def pairs(run: RunRecords) -> Section | str:
    """Flash against loss, with the network that is the result."""
    reckoned, made = run.metrics["choice"]["pairs"], run.metrics["attempts"]
    limits, result = run.metrics["limits"], run.metrics["folders"][-1]
    most = max(_DEPTH * limits["max_drop"]["asked"], 1.0)
    shown = [pair for pair in reckoned if pair["drop"] <= most]
    dots = []
    for pair in shown:
        about = f"{100 * pair['macs_kept']:.3g} % of the multiply-accumulates, {pair['bits']} bits"
        tip = f"reckoned: {about}: {bytes_text(pair['flash'])}, {pair['drop']:+.2f} points"
        dots.append(Dot(pair["flash"], pair["drop"], "s0 hollow", tip))
    for attempt in sorted(made, key=lambda attempt: attempt["folder"] == result):  # the result on top
        values = attempt["values"]
        told = f"misses {', '.join(attempt['missed'])}" if attempt["missed"] else "within all limits"
        tip = f"{attempt['folder']}: {bytes_text(values['flash'])}, {values['max_drop']:+.2f} points, {told}"
        dots.append(Dot(values["flash"], values["max_drop"], "s1" if attempt["folder"] == result else "s0", tip))
    levels = [Level(limits["max_drop"]["asked"], "accepted")]
    if limits["flash"]["asked"] is not None:
        levels.append(Level(limits["flash"]["asked"], "flash limit", across=False))
    picture = chart(
        Labels("Loss by bytes of flash", "flash (bytes)", "loss (points)"),
        dots=dots,
        levels=levels,
        legend=(("s0 hollow", "reckoned"), ("s0", "made"), ("s1", "the result")),
        log_x=True,
    )
    rows: list[tuple[Cell, ...]] = [
        ("reckoned", None, pair["macs_kept"], pair["bits"], pair["flash"], pair["ram"], pair["drop"])
        for pair in reckoned
    ]
    rows += [
        ("made", each["folder"], None, None, each["values"]["flash"], each["values"]["ram"], each["values"]["max_drop"])
        for each in made
    ]
    table = Table("pairs", ("kind", "folder", "macs_kept", "bits", "flash", "ram", "loss_points"), tuple(rows))
    caption = (
        "Hollow: a point of either curve, their losses added, bytes by lowering it. Filled: a network that was pruned,"
        " fine-tuned and quantized, measured as integers on all calibration images."
    )
    if len(shown) < len(reckoned):
        caption += f" {len(reckoned) - len(shown)} pairs that lose above {most:.1f} points are in the CSV file only."
    text = f"{len(reckoned)} pairs were reckoned with; these networks were made and measured as integers."
    figure = Figure("Flash against loss", caption, (picture,), table)
    return Section("Networks that were tried", text, (figure,), grid=_made(run))


def _made(run: RunRecords) -> Table:
    """Every network that was pruned and quantized, in the order in which they were made."""
    result = run.metrics["folders"][-1]
    rows = []
    for each in run.metrics["attempts"]:
        values = each["values"]
        told = f"misses {', '.join(each['missed'])}" if each["missed"] else "within all limits"
        rows.append(
            (
                each["folder"],
                f"{values['max_drop']:+.2f}",
                bytes_text(values["flash"]),
                bytes_text(values["ram"]),
                f"{values['macs']:,}",
                told + (": the result" if each["folder"] == result else ""),
            )
        )
    heads = ("stage", "loss (points)", "flash", "RAM", "multiply-accumulates", "")
    return Table("networks", heads, tuple(rows))
