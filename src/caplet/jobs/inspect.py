"""What a model consists of: layer groups, stored tensors, widths, bytes. Of a float model or of a Program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.runs.records import program_tensors, tensor_row

FLOAT_BITS = 32
TABLE = "table"
"""Role of a constant that is no trained weight."""


def inspect_model(model: CapsNet | Program, path: Path | None = None) -> dict[str, Any]:
    """A description as JSON values: ``title``, ``groups``, ``points``, ``file_bytes``, ``notes``.

    Groups are layer groups; a point is one tensor that the device stores, its ``format`` as in a ``.caplet`` file:
    ``s8.5`` is signed, 8 bits, 5 of them after the point. ``bytes`` of a point is its count in bits
    over 8 (as packed), the shifts of output channels (``shift_bits``) included; widths are 32 bits for a float model.
    Groups count what the papers count: not the input's table.
    """
    program = isinstance(model, Program)
    points = list(program_tensors(model) if isinstance(model, Program) else _model_points(model))
    groups: dict[str, dict[str, Any]] = {}
    for row in points:
        if row["role"] == TABLE:
            continue
        group = groups.setdefault(
            row["point"].split(".")[0],
            {"weights": 0, "activations": 0, "weight_bits": 0, "activation_bits": 0, "_w": set(), "_a": set()},
        )
        kind, widths = ("weight", "_w") if row["storage"] == "flash" else ("activation", "_a")
        group[f"{kind}s"] += row["elements"]
        group[f"{kind}_bits"] += row["elements"] * row["bits"] + row["shift_bits"]
        group[widths].add(row["bits"])
    rows = [{"group": name, **_plain(group)} for name, group in groups.items()]
    totals = {
        key: sum(row[key] for row in rows) for key in ("weights", "activations", "weight_bits", "activation_bits")
    }
    rows.append({"group": "total", **totals, "weight_widths": "", "activation_widths": ""})
    return {
        "title": _title(model),
        "kind": "program" if program else "float",
        "groups": rows,
        "points": points,
        "file_bytes": None if path is None else path.stat().st_size,
        "notes": _notes(model),
    }


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    weights, activations = group.pop("_w"), group.pop("_a")
    return {**group, "weight_widths": _span(weights), "activation_widths": _span(activations)}


def _span(widths: set[int]) -> str:
    if not widths:
        return ""
    return str(min(widths)) if len(widths) == 1 else f"{min(widths)}-{max(widths)}"


def _title(model: CapsNet | Program) -> str:
    if isinstance(model, Program):
        return f"Program {model.name}: {'x'.join(map(str, model.image_shape))} images, {model.classes} classes"
    image = "x".join(map(str, model.config.image))
    return f"{model.family}: {image} images, {model.config.classes} classes, {model.parameter_count():,} parameters"


def _notes(model: CapsNet | Program) -> dict[str, str]:
    if not isinstance(model, Program):
        return {"float weights": f"{4 * model.parameter_count():,} bytes"}
    from caplet.program.arena import plan_memory
    from caplet.program.verify import verify

    memory = plan_memory(model)
    wide = [f"{bound.op} {bound.what}" for bound in verify(model).accumulators if bound.c_type.endswith("64_t")]
    largest = ", ".join(f"{name} {size:,}" for name, size in memory.peak[:3])
    return {
        "flash": f"{model.flash_bytes:,} bytes of packed constants; about {model.firmware_bytes:,} with code, in C",
        "peak RAM": f"{memory.bytes:,} bytes during {memory.peak_op} ({largest})",
        "64-bit accumulators": ", ".join(wide) or "none",
    }


def _model_points(model: CapsNet) -> Iterator[dict[str, Any]]:
    for key, spec in model.points().items():
        yield tensor_row(key, str(spec.role), spec.shape, str(spec.storage), "float32", FLOAT_BITS)
