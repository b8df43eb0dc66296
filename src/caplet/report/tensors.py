"""What a device stores: the width of every tensor, and which bytes of the arena every buffer occupies, op by op."""

from collections.abc import Sequence
from typing import Any

from caplet.report.charts import Tile, heat_map
from caplet.report.content import Figure, Section, Table
from caplet.report.svg import Axis, Canvas, short, text_width
from caplet.runs.finished import RunRecords
from caplet.runs.records import DETAILS, Row

_ORDER = (
    *("image", "weight", "bias", "scale", "offset", "vote_bias"),
    *("votes", "logits", "coupling", "preactivation", "activation", "sum"),
)
_FULL = 8
"""Bits that have the strongest colour, unless a tensor has more."""
_LEFT, _TOP, _HEIGHT = 66.0, 14.0, 250.0
_PLANS = {"fast": "all votes stored", "small": "votes recomputed"}


def widths(run: RunRecords[Any]) -> Section | str:
    """Bits of every stored tensor of the first shipped model."""
    if run.details is None:
        return f"Widths: the run has no {DETAILS}; quantize again to have it."
    tensors = [row for row in run.details.tensors if row.role != "table"]
    layers = list(dict.fromkeys(row.point.rpartition(".")[0] for row in tensors))
    present = {row.role for row in tensors}
    roles = [role for role in _ORDER if role in present] + sorted(present - set(_ORDER))
    most = max(_FULL, *(row.bits for row in tensors))
    tiles = {}
    for row in tensors:
        shape = "x".join(map(str, row.shape))
        tip = f"{row.point}: {row.format}, {shape} in {row.storage}, {row.bytes:,} bytes packed"
        at = layers.index(row.point.rpartition(".")[0]), roles.index(row.role)
        tiles[at] = Tile(str(row.bits), row.bits / most, tip)
    columns = ("point", "role", "storage", "format", "bits", "elements", "bytes")
    table = Table.of("widths", columns, map(vars, tensors))
    figure = Figure(
        "Bits of every tensor",
        "Rows are layers, columns are what a tensor is for. Weights, biases, scales and offsets are packed in flash;"
        " the rest lies in RAM, in bytes of 8 or 16 bits.",
        (heat_map("Bits by layer and role", layers, roles, tiles),),
        table,
    )
    elements = sum(row.elements for row in tensors)
    mean = sum(row.bits * row.elements for row in tensors) / elements
    text = f"{len(tensors)} tensors with {elements:,} elements, {mean:.1f} bits each on average."
    return Section("Widths", text, (figure,))


def memory(run: RunRecords[Any]) -> Section | str:
    """The memory plans of the first shipped model."""
    if run.details is None:
        return f"Memory over time: the run has no {DETAILS}; quantize again to have it."
    figures = tuple(_figure(ram, plan, run.details.ops) for ram, plan in run.details.memory.items())
    text = "What the device needs in RAM beside its stack: one arena, in which tensors share memory when they can."
    return Section("Memory over time", text, figures)


def _figure(ram: str, plan: Row, ops: Sequence[str]) -> Figure:
    largest = ", ".join(f"{part['name']} {part['bytes']:,}" for part in plan["peak"][:3])
    used = sum(part["bytes"] for part in plan["peak"])
    bands = "".join(
        f" {one['ops'][0]} to {one['ops'][-1]} are computed in bands; of the maps between them only rows are stored."
        for one in plan.get("bands", ())
    )
    rows = tuple(
        (buffer["name"], buffer["bytes"], buffer["offset"], ops[buffer["first"]], ops[buffer["last"]])
        for buffer in plan["buffers"]
    )
    return Figure(
        f"Arena with {_PLANS.get(ram, 'as many votes stored as fit')} (--ram {ram}): {plan['bytes']:,} bytes",
        f"Most bytes are in use during {plan['peak_op']}: {used:,}, above all {largest}. Time goes to the right, op by"
        " op; addresses go up. The buffers of the peak are coloured; a slash in a name means scratch." + bands,
        (_map(plan, ops),),
        Table(f"memory-{ram}", ("buffer", "bytes", "offset", "first_op", "last_op"), rows),
    )


def _map(plan: Row, ops: Sequence[str]) -> Canvas:
    column = max(26.0, 640.0 / len(ops))
    foot = 0.72 * max(map(text_width, ops)) + 14
    right = _LEFT + column * len(ops)
    canvas = Canvas(right + 20, _TOP + _HEIGHT + foot, "Buffers of the arena by op and address")
    address = Axis(0, plan["bytes"], _TOP + _HEIGHT, _TOP)
    peak = ops.index(plan["peak_op"])
    canvas.rect(_LEFT + peak * column, _TOP, column, _HEIGHT, "peak-column")
    for tick in address.ticks(5):
        canvas.line(_LEFT, address.at(tick), right, address.at(tick), "grid")
        canvas.text(_LEFT - 6, address.at(tick) + 4, short(tick), "tick", anchor="end")
    for buffer in plan["buffers"]:
        x = _LEFT + buffer["first"] * column
        width = (buffer["last"] - buffer["first"] + 1) * column
        top = address.at(buffer["offset"] + buffer["bytes"])
        height = address.at(buffer["offset"]) - top
        hot = buffer["first"] <= peak <= buffer["last"]
        tip = (
            f"{buffer['name']}: {buffer['bytes']:,} bytes at {buffer['offset']:,}, from {ops[buffer['first']]} to"
            f" {ops[buffer['last']]}"
        )
        canvas.rect(x + 1, top, width - 2, max(height - 0.5, 0.6), "buffer hot" if hot else "buffer", tip=tip)
        if height >= 14 and text_width(buffer["name"]) <= width - 6:
            style = "on-buffer" if hot else "label"
            canvas.text(x + width / 2, top + height / 2 + 4, buffer["name"], style, anchor="middle")
    canvas.line(_LEFT, _TOP + _HEIGHT, right, _TOP + _HEIGHT, "axis")
    for index, name in enumerate(ops):
        x = _LEFT + (index + 0.5) * column
        canvas.text(x + 4, _TOP + _HEIGHT + 14, name, "strong" if index == peak else "tick", anchor="end", turn=-45)
    canvas.text(14, _TOP + _HEIGHT / 2, "bytes", anchor="middle", turn=-90)
    return canvas
