"""Chains of ops in bands, as the tables that ``caplet_run_bands`` takes."""

from collections.abc import Mapping

from caplet.program.arena import MemoryMap
from caplet.program.bands import READERS, Bands, readers_of, stages_of
from caplet.program.c.structure import Ref, Struct, Value
from caplet.program.ops import Add, Conv2d
from caplet.program.program import Program

IMAGE = 1
"""The place of the image: CAPLET_IMAGE."""


def stages(program: Program, plan: MemoryMap, bands: Bands, symbols: Mapping[str, str]) -> tuple[Struct, ...]:
    """A ``caplet_stage`` for every op of a chain. symbols: op name -> the C name of its descriptor."""
    tensors, places = program.tensors, {op.name: index for index, op in enumerate(program.ops)}
    first, last = places[bands.ops[0]], places[bands.ops[-1]]
    chain = stages_of(program, first, last)
    assert chain is not None

    def place(name: str | None) -> int:
        return IMAGE if name == program.input else plan.offset(name) if name else 0

    def row(name: str | None) -> int:
        return tensors[name].bytes // tensors[name].shape[0] if name else 0

    found = []
    for index, (op, stage) in enumerate(zip(program.ops[first : last + 1], chain, strict=True)):
        one, other = stage.window, op.b if isinstance(op, Add) else None
        readers = [] if stage.in_place else [reader + 1 for reader in readers_of(chain, index)]
        fields: dict[str, Value] = {
            "run": Ref(f"caplet_{op.kind}_rows"),
            "op": Ref(f"&{symbols[op.name]}"),
            "input": place(op.inputs[0]),
            "other": place(other),
            "output": place(op.outputs[0]),
            "scratch": place(f"{op.name}/scratch" if isinstance(op, Conv2d) else None),
            "in_row_bytes": row(op.inputs[0]),
            "other_row_bytes": row(other),
            "out_row_bytes": row(op.outputs[0]),
            "in_rows": one.in_rows,
            "out_rows": one.out_rows,
            "kernel": one.kernel,
            "stride": one.stride,
            "padding": one.padding,
            "in_place": int(stage.in_place),
            "source": stage.source + 1,
            "second": stage.second + 1,
            **{f"readers[{k}]": (*readers, 0, 0)[k] for k in range(READERS)},
        }
        found.append(Struct("caplet_stage", fields))
    return tuple(found)
