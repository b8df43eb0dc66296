"""What ``caplet compress`` weighed: pruning against widths, the networks that were made, their speed, the stages."""

from caplet.report.cards import bytes_text
from caplet.report.charts import Dot, Level, Series, chart
from caplet.report.content import Cell, Figure, Section, Table
from caplet.runs.finished import RunRecords
from caplet.runs.records import CompressMetrics, Row

_DEPTH = 8.0
"""Pairs that lose more than this many times the accepted loss (and a point) are only in the table."""
_SIDES = {"float": "float, PyTorch", "pruned": "pruned float, PyTorch", "integers": "integers, compiled C"}


def tradeoff(run: RunRecords[CompressMetrics]) -> Section | str:
    """Accuracy against multiply-accumulates and against width, with the pair that was chosen."""
    found = run.metrics.choice
    curve, widths, chosen, width = found.curve, found.widths, found.pruned, found.width
    accepted = [Level(run.metrics.accepted, "accepted")]
    pruning = chart(
        *("Loss of accuracy by what pruning leaves", ("multiply-accumulates remaining (%)", "loss (points)")),
        [Series("pruned", tuple(sorted((100 * point.macs_kept, point.drop) for point in curve)), "s0")],
        [Dot(100 * chosen.macs_kept, chosen.drop, "s1", "chosen")],
        accepted,
        legend=(("s1", "chosen"),),
    )
    narrowing = chart(
        *("Loss of accuracy by width", ("bits everywhere", "loss (points)")),
        [Series("quantized", tuple(sorted((point.bits, point.drop) for point in widths)), "s0")],
        [Dot(width.bits, width.drop, "s1", "chosen")],
        accepted,
        legend=(("s1", "chosen for the estimate"),),
        whole_x=True,
    )
    rows: list[tuple[Cell, ...]] = [("pruning", point.macs_kept, None, point.drop, point.images) for point in curve]
    rows += [("width", None, point.bits, point.drop, point.images) for point in widths]
    figure = Figure(
        "A few points of either curve",
        "Each point is one network, measured on calibration images; the losses of a pair are added. Losses by width are"
        " those against the same network in float.",
        (pruning, narrowing),
        Table("trade-off", ("kind", "macs_kept", "bits", "loss_points", "images"), tuple(rows)),
    )
    grid = [
        (
            f"pruned to {100 * point.macs_kept:.3g} % of the multiply-accumulates",
            f"{point.drop:+.2f}",
            "chosen" if point.macs_kept == chosen.macs_kept else "",
            *(f"{count:,}" for count in (point.parameters, point.steps, point.images)),
        )
        for point in curve
        if point.steps or point.macs_kept < 1
    ]
    for point in widths:
        kept, picked = point.macs_kept, "chosen for the estimate" if point.bits == width.bits else ""
        name = f"{point.bits} bits everywhere" + ("" if kept == 1 else f", pruned to {100 * kept:.3g} %")
        grid.append((name, f"{point.drop:+.2f}", picked, "", "", f"{point.images:,}"))
    heads = ("measured", "loss (points)", "", "parameters", "fine-tuning steps", "images")
    decision = f"Chosen to begin with: {found.reasons[-1]}."
    return Section("Pruning or narrower integers", decision, (figure,), grid=Table("measured", heads, tuple(grid)))


def pairs(run: RunRecords[CompressMetrics]) -> Section | str:
    """Flash against loss, with the network that is the result."""
    estimated, made = run.metrics.choice.pairs, run.metrics.attempts
    accepted, flash, result = run.metrics.accepted, run.metrics.limits["flash"]["asked"], run.metrics.folders[-1]
    most = max(_DEPTH * accepted, 1.0)
    shown = [pair for pair in estimated if pair["drop"] <= most]
    dots = []
    for pair in shown:
        tip = f"estimated: {100 * pair['macs_kept']:.3g} % of the multiply-accumulates, {pair['bits']} bits"
        tip += f": {bytes_text(pair['flash'])}, {pair['drop']:+.2f} points"
        dots.append(Dot(pair["flash"], pair["drop"], "s0 hollow", tip))
    lines = []
    for each in made:
        values, final = each["values"], each["folder"] == result
        outcome = f"misses {', '.join(each['missed'])}" if each["missed"] else "within all limits"
        loss, flash_text = f"{values['max_drop']:+.2f}", bytes_text(values["flash"])
        sizes = flash_text, bytes_text(values["ram"]), f"{values['macs']:,}"
        lines.append((each["folder"], loss, *sizes, outcome + (": the result" if final else "")))
        tip = f"{each['folder']}: {flash_text}, {loss} points, {outcome}"
        dots.append(Dot(values["flash"], values["max_drop"], "s1" if final else "s0", tip))
    dots.sort(key=lambda dot: dot.style == "s1")  # the result on top
    heads = ("stage", "loss (points)", "flash", "RAM", "multiply-accumulates", "")
    levels = [Level(accepted, "accepted")]
    levels += [] if flash is None else [Level(flash, "flash limit", across=False)]
    picture = chart(
        "Loss by bytes of flash",
        ("flash (bytes)", "loss (points)"),
        dots=dots,
        levels=levels,
        legend=(("s0 hollow", "estimated"), ("s0", "made"), ("s1", "the result")),
        log_x=True,
    )
    rows: list[Row] = [{**pair, "kind": "estimated", "loss_points": pair["drop"]} for pair in estimated]
    for each in made:
        rows.append({**each["values"], **each, "kind": "made", "loss_points": each["values"]["max_drop"]})
    caption = (
        "Hollow: a point of either curve, their losses added, bytes by lowering it. Filled: a network that was pruned,"
        " fine-tuned and quantized, measured as integers on all calibration images."
    )
    if len(shown) < len(estimated):
        caption += f" {len(estimated) - len(shown)} pairs that lose above {most:.1f} points are in the CSV file only."
    table = Table.of("pairs", ("kind", "folder", "macs_kept", "bits", "flash", "ram", "loss_points"), rows)
    text = f"{len(estimated)} pairs were estimated; these networks were made and measured as integers."
    figure = Figure("Flash against loss", caption, (picture,), table)
    return Section("Networks that were made", text, (figure,), grid=Table("networks", heads, tuple(lines)))


def speed(run: RunRecords[CompressMetrics]) -> Section | str:
    """Images per second of the float model, the pruned one and the integers, on the machine of the run."""
    found = run.metrics.speed
    rows = tuple(
        (name, f"{rate['median']:,.0f}", f"{rate['low']:,.0f} to {rate['high']:,.0f}", f"{rate['times']:.1f}x")
        for side, name in _SIDES.items()
        if (rate := found.sides.get(side)) is not None
    )
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    text = (
        f"Measured in turns on {threads} of the machine that made the run, {found.images:,} images in each of"
        f" {found.turns} turns, in batches of {found.torch_batch} in PyTorch: medians, and the slowest and the"
        " fastest turn."
    )
    return Section("Speed", text, grid=Table("speed", ("network", "images/s", "range", "times float"), rows))


def stages(run: RunRecords[CompressMetrics]) -> Section | str:
    """What was done, and how long it took."""
    rows = tuple(
        (name, f"{stage.seconds:,.0f} s{', unchanged in the last call' if stage.skipped else ''}")
        for name, stage in run.metrics.stages.items()
    )
    used = ", ".join(run.metrics.folders)
    return Section("Stages", f"Each is a folder of the run; the result comes from {used}.", rows=rows)
