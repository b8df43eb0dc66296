"""The widths of all tensors: layers by roles."""

from __future__ import annotations

from caplet.report.charts import Tile, heat_map
from caplet.report.figure import Figure, Section, Table
from caplet.report.records import DETAILS, RunRecords

_ORDER = (
    *("image", "weight", "bias", "scale", "offset", "vote_bias"),
    *("votes", "logits", "coupling", "preactivation", "activation", "sum"),
)
_FULL = 8
"""Bits that have the strongest colour, unless a tensor has more."""


def widths(run: RunRecords) -> Section | str:
    """Bits of every stored tensor of the first shipped model."""
    if run.details is None:
        return f"Widths: the run has no {DETAILS}; quantize again to have it."
    tensors = [row for row in run.details["tensors"] if row["role"] != "table"]
    layers = list(dict.fromkeys(row["point"].rpartition(".")[0] for row in tensors))
    present = {row["role"] for row in tensors}
    roles = [role for role in _ORDER if role in present] + sorted(present - set(_ORDER))
    most = max(_FULL, *(row["bits"] for row in tensors))
    tiles = {}
    for row in tensors:
        layer, _, _ = row["point"].rpartition(".")
        shape = "x".join(map(str, row["shape"]))
        tip = f"{row['point']}: {row['format']}, {shape} in {row['storage']}, {row['bytes']:,} bytes packed"
        tiles[layers.index(layer), roles.index(row["role"])] = Tile(str(row["bits"]), row["bits"] / most, tip)
    columns = ("point", "role", "storage", "format", "bits", "elements", "bytes")
    table = Table("widths", columns, tuple(tuple(row[name] for name in columns) for row in tensors))
    figure = Figure(
        "Bits of every tensor",
        "Rows are layers, columns are what a tensor is for. Weights, biases, scales and offsets are packed in flash;"
        " the rest lies in RAM, in bytes of 8 or 16 bits.",
        (heat_map("Bits by layer and role", layers, roles, tiles),),
        table,
    )
    elements = sum(row["elements"] for row in tensors)
    mean = sum(row["bits"] * row["elements"] for row in tensors) / elements
    text = f"{len(tensors)} tensors with {elements:,} elements, {mean:.1f} bits each on average."
    return Section("Widths", text, (figure,))
