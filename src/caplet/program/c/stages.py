"""Chains of ops in bands, as the tables that ``caplet_run_bands`` takes."""

from collections.abc import Callable, Mapping

from caplet.program.arena import MemoryMap
from caplet.program.bands import Bands, in_place, window
from caplet.program.c.structure import Ref, Struct, Value
from caplet.program.op import Op
from caplet.program.ops import Add
from caplet.program.program import Program

IMAGE = 1
"""The place of the image: CAPLET_IMAGE."""


def stages(program: Program, plan: MemoryMap, bands: Bands, symbols: Mapping[str, str]) -> tuple[Struct, ...]:
    """A ``caplet_stage`` for every op of a chain. symbols: op name -> the C name of its descriptor."""
    ops = {op.name: op for op in program.ops}

    def place(name: str) -> int:
        return IMAGE if name == program.input else plan.offset(name)

    return tuple(_stage(program, ops[name], symbols[name], place, name != bands.ops[0]) for name in bands.ops)


def _stage(program: Program, op: Op, symbol: str, place: Callable[[str], int], later: bool) -> Struct:
    tensors, one = program.tensors, window(op, program.tensors)
    assert one is not None
    other = op.b if isinstance(op, Add) else None
    scratch = f"{op.name}/scratch" if op.kind == "conv2d" else None

    def row(name: str | None) -> int:
        return 0 if name is None else tensors[name].bytes // tensors[name].shape[0]

    fields: dict[str, Value] = {
        "run": Ref(f"caplet_{op.kind}_rows"),
        "op": Ref(f"&{symbol}"),
        "input": place(op.inputs[0]),
        "other": 0 if other is None else place(other),
        "output": place(op.outputs[0]),
        "scratch": 0 if scratch is None else place(scratch),
        "in_row_bytes": row(op.inputs[0]),
        "other_row_bytes": row(other),
        "out_row_bytes": row(op.outputs[0]),
        "in_rows": one.in_rows,
        "out_rows": one.out_rows,
        "kernel": one.kernel,
        "stride": one.stride,
        "padding": one.padding,
        "in_place": int(later and in_place(op, tensors)),
    }
    return Struct("caplet_stage", fields)
