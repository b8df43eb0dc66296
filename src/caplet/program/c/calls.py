"""What a model's run function consists of: one op call each, with its buffers' places in the arena; tables of ops in
bands, which ``caplet_run_bands`` takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from caplet.program.arena import MemoryMap
from caplet.program.bands import READERS, Bands, readers_of, stages_of
from caplet.program.c.structure import Ref, Struct, Value
from caplet.program.op import Op
from caplet.program.ops import Add, Conv2d, ConvVotes, DenseVotes, Routing, Squash
from caplet.program.program import Program

IMAGE = 1
"""The place of the image: CAPLET_IMAGE."""


@dataclass(frozen=True)
class Call:
    """The C statements of one op.

    lines: statements, to be indented. written: tensors that are complete in the arena afterwards.
    """

    op: Op
    lines: tuple[str, ...]
    written: tuple[str, ...]


class CallWriter:
    """Writes the calls of one Program.

    symbols: op name -> the C name of its descriptor. chains: the first op of every chain -> the C name of its stages.
    """

    def __init__(
        self, program: Program, plan: MemoryMap, symbols: Mapping[str, str], chains: Mapping[str, str]
    ) -> None:
        self._program = program
        self._plan = plan
        self._symbols = symbols
        self._chains = chains
        self._bands = {name: bands for bands in plan.bands for name in bands.ops}
        self._buffers = {buffer.name for buffer in plan.buffers} | set(plan.shared)

    def calls(self) -> list[Call]:
        """Every call, in order; none for a votes op that runs within its routing, one for a chain of ops in bands."""
        return [call for op in self._program.ops if (call := self._call(op)) is not None]

    def place(self, name: str) -> str:
        """The C expression of a buffer's address, NULL where the op needs none."""
        if name == self._program.input:
            return "image"
        return f"memory + {self._plan.offset(name)}" if name in self._buffers else "NULL"

    def _call(self, op: Op) -> Call | None:
        descriptor = f"&{self._symbols[op.name]}"
        if bands := self._bands.get(op.name):
            if op.name != bands.ops[-1]:
                return None
            arguments = [self._chains[bands.ops[0]], str(len(bands.ops)), str(bands.rows), "memory", "image"]
            return Call(op, (f"caplet_run_bands({', '.join(arguments)});",), op.outputs)
        if isinstance(op, DenseVotes | ConvVotes):
            if not self._all_stored(op):
                return None
            lines = [*self._provider(op), self._store(op)]
            return Call(op, _block(lines), op.outputs)
        if isinstance(op, Routing):
            return self._routing(op, descriptor)
        arguments = [self.place(name) for name in op.inputs] + [self.place(op.outputs[0])]
        if isinstance(op, Conv2d):
            arguments.append(self.place(f"{op.name}/scratch"))
        if isinstance(op, Squash):
            arguments.append("0")
        return Call(op, (f"caplet_{op.kind}({', '.join([descriptor, *arguments])});",), op.outputs)

    def _routing(self, op: Routing, descriptor: str) -> Call:
        maker = self._program.votes_op(op)
        stored = self._plan.stored[op.votes]
        written: tuple[str, ...] = () if op.logits is None else (op.logits,)
        if self._all_stored(maker):
            nulls = ", ".join(["NULL"] * 5)
            lines = [f"const caplet_votes votes = {{{self.place(op.votes)}, {nulls}, {stored}}};"]
        else:
            lines = self._provider(maker)
            if stored:
                lines.append(self._store(maker))
        several = op.iterations > 1
        places = [
            "NULL" if op.logits is None else self.place(op.logits),
            *(self.place(name) for name in (op.preactivation, op.activation, f"{op.name}/acc")),
            f"(uint16_t *)(void *)({self.place(f'{op.name}/coupling')})",
            f"(uint32_t *)(void *)({self.place(f'{op.name}/exponentials')})" if several else "NULL",
        ]
        lines.append(f"const caplet_routing_memory buffers = {{{', '.join(places)}}};")
        # Declarations come first, as older compilers like them.
        lines.sort(key=lambda line: not line.startswith("const "))
        lines.append(f"caplet_routing({descriptor}, &votes, &buffers);")
        if op.preactivation not in self._plan.shared and op.activation not in self._plan.shared:
            written += (op.preactivation,)
        return Call(op, _block(lines), (*written, op.activation))

    def _all_stored(self, op: DenseVotes | ConvVotes) -> bool:
        return self._plan.stored[op.output] == self._program.tensors[op.output].shape[0]

    def _provider(self, op: DenseVotes | ConvVotes) -> list[str]:
        """Declarations of ``votes``, which makes rows of votes with ``op``."""
        dense = isinstance(op, DenseVotes)
        stored = self._plan.stored[op.output]
        fields = [
            self.place(op.output) if stored else "NULL",
            self.place(f"{op.name}/vote_rows"),
            "caplet_make_dense_votes" if dense else "caplet_make_conv_votes",
            f"&{self._symbols[op.name]}",
            "sources",
            self.place(f"{op.name}/scratch"),
            f"{stored}",
        ]
        sources = ", ".join(self.place(name) for name in op.inputs)
        return [f"const void *const sources[] = {{{sources}}};", f"const caplet_votes votes = {{{', '.join(fields)}}};"]

    def _store(self, op: DenseVotes | ConvVotes) -> str:
        spec = self._program.tensors[op.output]
        row = spec.bytes // spec.shape[0]
        return f"caplet_store_votes(&votes, 0, {self._plan.stored[op.output]}, {self.place(op.output)}, {row});"


def _block(lines: list[str]) -> tuple[str, ...]:
    return ("{", *(f"    {line}" for line in lines), "}")


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
