"""How much was left to pruning and how much to widths: the measured points, the choice, the stages."""

from __future__ import annotations

from typing import Any

from caplet.report.charts import Dot, Labels, Level, Series, chart
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import RunRecords


def tradeoff(run: RunRecords) -> Section | str:
    """Accuracy against multiply-accumulates and against width, with the pair that was chosen."""
    found = run.metrics["choice"]
    curve, widths = found["curve"], found["widths"]
    chosen, width = found["pruned"], found["width"]
    allowed = run.metrics["limits"]["max_drop"]["asked"]
    kept = sorted((100 * point["macs_kept"], point["drop"]) for point in curve)
    pruning = chart(
        Labels("Loss of accuracy by what pruning leaves", "multiply-accumulates left (%)", "loss (points)"),
        [Series("pruned", tuple(kept), "s0")],
        [Dot(100 * chosen["macs_kept"], chosen["drop"], "s1", "chosen")],
        [Level(allowed, "accepted")],
        legend=(("s1", "chosen"),),
    )
    bits = sorted((point["bits"], point["drop"]) for point in widths)
    narrowing = chart(
        Labels("Loss of accuracy by width", "bits everywhere", "loss (points)"),
        [Series("quantized", tuple(bits), "s0")],
        [Dot(width["bits"], width["drop"], "s1", "chosen")],
        [Level(allowed, "accepted")],
        legend=(("s1", "reckoned with"),),
        whole_x=True,
    )
    rows = [("pruning", point["macs_kept"], None, point["drop"], point["images"]) for point in curve]
    rows += [("width", None, point["bits"], point["drop"], point["images"]) for point in widths]
    table = Table("trade-off", ("kind", "macs_kept", "bits", "loss_points", "images"), tuple(rows))
    figure = Figure(
        "A few points of either curve",
        "Each point is one network, measured on calibration images; the losses of a pair are added. Losses by width are"
        " those against the same network in float.",
        (pruning, narrowing),
        table,
    )
    grid = tuple(_point(point, chosen) for point in curve if point["steps"] or point["macs_kept"] < 1)
    grid += tuple(_width(point, width) for point in widths)
    heads = ("measured", "loss (points)", "", "parameters", "fine-tuning steps", "images")
    decision = f"Chosen to begin with: {found['reasons'][-1]}."
    return Section("Pruning or narrower integers", decision, (figure,), grid=Table("measured", heads, grid))


def _point(point: dict[str, Any], chosen: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"pruned to {100 * point['macs_kept']:.3g} % of the multiply-accumulates",
        f"{point['drop']:+.2f}",
        "chosen" if point["macs_kept"] == chosen["macs_kept"] else "",
        f"{point['parameters']:,}",
        f"{point['steps']:,}",
        f"{point['images']:,}",
    )


def _width(point: dict[str, Any], chosen: dict[str, Any]) -> tuple[str, ...]:
    picked = "reckoned with" if point["bits"] == chosen["bits"] else ""
    kept = point.get("macs_kept", 1.0)
    where = "" if kept == 1 else f", pruned to {100 * kept:.3g} %"
    return f"{point['bits']} bits everywhere{where}", f"{point['drop']:+.2f}", picked, "", "", f"{point['images']:,}"


def stages(run: RunRecords) -> Section | str:
    """What was done, and how long it took."""
    rows = tuple(
        (name, f"{stage['seconds']:,.0f} s{', unchanged in the last call' if stage['skipped'] else ''}")
        for name, stage in run.metrics["stages"].items()
    )
    used = ", ".join(run.metrics["folders"])
    return Section("Stages", f"Each is a folder of the run; the result comes from {used}.", rows=rows)
