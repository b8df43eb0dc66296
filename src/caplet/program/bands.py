"""Chains of ops that are computed a few rows at a time, so that the maps between them are never whole in memory.

In a chain nothing else reads what its ops write, but for the last one. They work in turns: the last one that has the
rows it reads computes its next ``rows`` rows. Of a map between ops the arena holds the rows that are still to be read;
those move to the front of their buffer before more are written. The codes are the same, no product is computed twice.
What it costs are calls: each prepares the scales of all filters again and unpacks weights again, and fills its last
four positions less well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import lcm

import numpy as np

from caplet.fixed.rounding import Rounding
from caplet.program.op import Op, Tensors
from caplet.program.ops import (
    Add,
    ChannelAffine,
    Conv2d,
    Convolution,
    ConvVotes,
    InputQuantize,
    LeakyRelu,
    MaxPool2d,
    Squash,
)
from caplet.program.program import Program
from caplet.program.scratch import needs_unpacking, unpacked_bytes
from caplet.program.tensor import WideFormat
from caplet.program.verify import Proof

ALIGNMENT = 8
"""Every buffer starts at a multiple of this many bytes."""

ROWS = (1, 2, 4, 8)
"""Rows that a chain computes at a time."""
STAGES = 24
"""Ops of a chain, at most: CAPLET_STAGES."""
POSITIONS = 4
"""Output positions whose windows a convolution gathers before it writes any of them, at most."""
IN_PLACE = (Squash, ChannelAffine, LeakyRelu, Add)
"""Ops that can write over their (first) input, element by element."""


@dataclass(frozen=True)
class OpChain:
    """Ops ``first`` to ``last`` of a Program, which are ``stages``, ``rows`` rows at a time."""

    first: int
    last: int
    rows: int
    stages: "tuple[RowStage, ...]" = field(compare=False, repr=False)

    def __contains__(self, index: int) -> bool:
        return self.first <= index <= self.last

    @property
    def indices(self) -> range:
        return range(self.first, self.last + 1)

    def ops(self, program: Program) -> tuple[Op, ...]:
        return program.ops[self.first : self.last + 1]

    def described(self, program: Program, over: int) -> "Bands":
        """The chain in a plan; over: as there."""
        ops = self.ops(program)
        *middle, _ = buffers(program, self).items()
        cost = sum(extra_cost(op, program.tensors, self.rows) for op in ops)
        return Bands(tuple(op.name for op in ops), self.rows, {name: rows for name, (_, rows) in middle}, over, cost)


@dataclass(frozen=True)
class Bands:
    """A chain in a memory plan.

    ops: their names. rows: of each op at a time. held: tensor between two ops -> rows that its buffer holds. over:
    bytes of the chain's input that its output takes at last. cost: instructions more than without bands, a rough
    estimate.
    """

    ops: tuple[str, ...]
    rows: int
    held: Mapping[str, int]
    over: int
    cost: int


@dataclass(frozen=True)
class RowWindow:
    """Which of ``in_rows`` rows an op reads for which of its ``out_rows``."""

    kernel: int
    stride: int
    padding: int
    in_rows: int
    out_rows: int

    def first(self, row: int) -> int:
        """The first row that is read for ``row``."""
        return min(max(row * self.stride - self.padding, 0), self.in_rows)

    def end(self, end: int) -> int:
        """The first row that is not read for the rows before ``end``."""
        return min((end - 1) * self.stride + self.kernel - self.padding, self.in_rows)


def window(op: Op, tensors: Tensors) -> RowWindow | None:
    """None where ``op`` cannot be computed row by row: its rows depend on their places, or it reads whole maps."""
    shapes = [tensors[name].shape for name in (op.inputs[0], op.outputs[0])]
    if any(len(shape) != 3 for shape in shapes) or tensors[op.outputs[0]].rounding is Rounding.STOCHASTIC:
        return None
    sizes = (shapes[0][0], shapes[1][0])
    if isinstance(op, Conv2d | MaxPool2d):
        kernel = op.kernel if isinstance(op, MaxPool2d) else op.weight.shape[1]
        return RowWindow(kernel, op.stride, op.padding, *sizes) if kernel <= 255 else None
    return RowWindow(1, 1, 0, *sizes) if isinstance(op, (*IN_PLACE, InputQuantize)) else None


@dataclass(frozen=True)
class RowStage:
    """One op of a chain. source, second: the ops of the chain whose rows it reads, -1 for a map that is whole.
    in_place: it writes over the rows of ``source``, which nothing else reads."""

    window: RowWindow
    source: int
    second: int
    in_place: bool


READERS = 2
"""Ops that read a map which is not whole, at most."""


def stages_of(program: Program, first: int, last: int) -> tuple[RowStage, ...] | None:
    """Ops ``first`` to ``last`` as a chain; None where they are none: an op that cannot be computed row by row, or a
    map between them that others need."""
    ops, tensors = program.ops[first : last + 1], program.tensors
    if isinstance(ops[0], IN_PLACE):
        return None
    writers = {op.outputs[0]: index for index, op in enumerate(ops)}
    inner = [op.outputs[0] for op in ops[:-1]]
    read = [name for op in ops for name in op.inputs]
    if any(name in (program.output, program.lengths) or not 1 <= read.count(name) <= READERS for name in inner):
        return None
    outside = {name for op in (*program.ops[:first], *program.ops[last + 1 :]) for name in op.inputs}
    if not outside.isdisjoint(inner):
        return None
    found = []
    for op in ops:
        one = window(op, tensors)
        if one is None or len(set(op.inputs)) < len(op.inputs):
            return None
        source, second = [writers.get(name, -1) for name in (*op.inputs, "")][:2]
        same = tensors[op.inputs[0]].bytes == tensors[op.outputs[0]].bytes and read.count(op.inputs[0]) == 1
        found.append(RowStage(one, source, second, isinstance(op, IN_PLACE) and source >= 0 and same))
    return tuple(found)


@dataclass(frozen=True)
class Turns:
    """What happens in a chain. held: of every op, rows of its output that the arena holds at most, 0 for an op that
    works in place. written: how many rows of the last tensor have been written, and how many of each op's, in turn."""

    held: tuple[int, ...]
    written: tuple[tuple[int, tuple[int, ...]], ...]


def readers_of(stages: tuple[RowStage, ...], index: int) -> list[int]:
    """The ops that read what op ``index``, and those that work in place behind it, have written."""
    for later, stage in enumerate(stages):
        if stage.in_place and stage.source == index:
            return readers_of(stages, later)
    return [later for later, stage in enumerate(stages) if index in (stage.source, stage.second)]


@lru_cache(4096)
def turns(stages: tuple[RowStage, ...], rows: int) -> Turns:
    """A chain's ops take turns, ``rows`` rows at a time, as ``caplet_run_bands`` lets them."""
    count = len(stages)
    done, held, written = [0] * count, [0] * count, []
    readers = [readers_of(stages, index) for index in range(count)]
    while done[-1] < stages[-1].window.out_rows:
        index = count - 1
        while True:
            stage = stages[index]
            end = min(done[index] + rows, stage.window.out_rows)
            if stage.source >= 0 and done[stage.source] < stage.window.end(end):
                index = stage.source
            elif stage.second >= 0 and done[stage.second] < end:
                index = stage.second
            else:
                break
        if not readers[index]:  # the last tensor, or a buffer that it takes over
            written.append((end, tuple(done)))
        if not stage.in_place:
            base = done[index]
            for reader in readers[index]:
                main = head_of(stages, stages[reader].source) == index
                base = min(base, stages[reader].window.first(done[reader]) if main else done[reader])
            held[index] = max(held[index], end - (base if readers[index] else 0))
        done[index] = end
    return Turns(tuple(held), tuple(written))


def head_of(stages: tuple[RowStage, ...], index: int) -> int:
    """The op in whose buffer op ``index`` works."""
    while index >= 0 and stages[index].in_place:
        index = stages[index].source
    return index


def segments(program: Program) -> Iterator[OpChain]:
    """Every chain that spares a map."""
    able = [window(op, program.tensors) is not None for op in program.ops]
    for first in range(len(program.ops)):
        for last in range(first, min(len(program.ops), first + STAGES)):
            if not able[last]:
                break
            stages = stages_of(program, first, last)
            if stages and any(readers_of(stages, index) for index in range(len(stages))):
                yield from (OpChain(first, last, rows, stages) for rows in ROWS)


def buffers(program: Program, chain: OpChain) -> dict[str, tuple[tuple[str, ...], int]]:
    """The tensors that ops of a chain write: the first in a buffer -> all in it, and the rows that it holds (all of the
    chain's output, which is in the last one)."""
    stages = chain.stages
    names = [op.outputs[0] for op in chain.ops(program)]
    held = turns(stages, chain.rows).held
    heads = [head_of(stages, index) for index in range(len(stages))]
    inside = {head: tuple(name for name, one in zip(names, heads, strict=True) if one == head) for head in heads}
    order = sorted(inside, key=lambda head: head == heads[-1])
    return {names[head]: (inside[head], held[head]) for head in order}


def lead(op: Op, tensors: Tensors, proof: Proof) -> tuple[int, int] | None:
    """How many bytes before its input the output of ``op`` starts at least, to be written over what has been read, and
    of what number they are a multiple; None where the op needs its whole input to the end.

    Position by position, all channels at once, is the order of pools and of convolutions in one group whose scratch is
    for all filters; in depthwise ones every channel keeps to itself, if the distance is one of whole positions.
    """
    source, target = tensors[op.inputs[0]], tensors[op.outputs[0]]
    step = ALIGNMENT
    if isinstance(op, Conv2d):
        # Others go filter by filter.
        wide = isinstance(source.format, WideFormat) or source.format.max_code > 32767 or unpacked_bytes(op.weight) > 1
        if wide or proof.find(op.name, "acc").products >> 31:
            return None
        if op.groups > 1:
            if not op.groups == source.shape[2] == target.shape[2] or source.element_bytes != target.element_bytes:
                return None
            step = lcm(step, source.shape[2] * source.element_bytes)
    elif not isinstance(op, MaxPool2d):
        return None
    rows, columns, channels = target.shape
    firsts = [np.maximum(np.arange(count) * op.stride - op.padding, 0) for count in (rows, columns)]
    read = (firsts[0][:, None] * source.shape[1] + firsts[1]).reshape(-1) * source.shape[2] * source.element_bytes
    ahead = np.minimum.accumulate(read[::-1])[::-1]  # the first byte that this position or a later one reads
    written = np.minimum(np.arange(rows * columns) + POSITIONS, rows * columns) * channels * target.element_bytes
    return max(0, int((written - ahead).max())), step


def chain_lead(program: Program, chain: OpChain) -> int:
    """How many bytes before its input a chain's output starts at least, to be written over the rows that were read."""
    stages, ops = chain.stages, chain.ops(program)
    source, target = program.tensors[ops[0].inputs[0]], program.tensors[ops[-1].outputs[0]]
    row, out_row = source.bytes // source.shape[0], target.bytes // target.shape[0]
    ahead = 0
    for end, done in turns(stages, chain.rows).written:
        unread = source.shape[0]
        for op, stage, rows in zip(ops, stages, done, strict=True):
            if source.name in op.inputs and rows < stage.window.out_rows:
                unread = min(unread, stage.window.first(rows) if op.inputs[0] == source.name else rows)
        ahead = max(ahead, end * out_row - unread * row)
    return ahead


def products(op: Op, tensors: Tensors) -> int:
    """Multiply-accumulates of a convolution; 0 of other ops."""
    if not isinstance(op, Convolution):
        return 0
    rows, columns = op.positions(tensors)
    return rows * columns * op.weight.codes.size * (op.in_types if isinstance(op, ConvVotes) else 1)


def extra_cost(op: Op, tensors: Tensors, rows: int) -> int:
    """Instructions that an op takes more ``rows`` rows at a time than in one call: roughly, of an M4."""
    one = window(op, tensors)
    assert one is not None
    calls = -(-one.out_rows // rows)
    row = tensors[op.inputs[0]].bytes // one.in_rows
    cost = calls * (150 + max(0, one.kernel - one.stride) * row * 3)  # the move
    if isinstance(op, Conv2d):
        columns, filters = tensors[op.output].shape[1:]
        cost += (calls - 1) * (100 * filters + 200 * op.groups)
        cost += (calls - 1) * op.weight.codes.size * (3 if needs_unpacking(op.weight) else 0)
        idle = calls * (-columns * rows % POSITIONS)
        cost += 3 * idle * op.weight.codes.size // 2
    if isinstance(op, ChannelAffine):
        cost += (calls - 1) * 60 * tensors[op.output].shape[2]
    return cost


@dataclass(frozen=True)
class Choices:
    """Which chains a Program can have, and what they take.

    alone: for every op, bytes that are in use while it runs without bands. taken: for every chain, while it runs.
    """

    program: Program
    alone: Sequence[int]
    taken: Mapping[OpChain, int]
    costs: dict[OpChain, int] = field(default_factory=dict)

    def cost(self, chain: OpChain) -> int:
        if chain not in self.costs:
            ops, tensors = chain.ops(self.program), self.program.tensors
            self.costs[chain] = sum(extra_cost(op, tensors, chain.rows) for op in ops)
        return self.costs[chain]

    def cheapest(self, limit: int) -> tuple[OpChain, ...] | None:
        """The chains of least cost with which at most ``limit`` bytes are in use at a time; None if none will do."""
        best: list[tuple[int, tuple[OpChain, ...]] | None] = [(0, ())]
        ending: dict[int, list[OpChain]] = {}
        for chain, size in self.taken.items():
            if size <= limit:
                ending.setdefault(chain.last, []).append(chain)
        for index, size in enumerate(self.alone):
            found = [before] if size <= limit and (before := best[index]) is not None else []
            for chain in ending.get(index, []):
                if (before := best[chain.first]) is not None:
                    found.append((before[0] + self.cost(chain), (*before[1], chain)))
            best.append(min(found, key=lambda item: item[0]) if found else None)
        return None if best[-1] is None else best[-1][1]

    def least(self) -> int:
        """The least number of bytes for which :meth:`cheapest` finds something."""
        sizes = sorted({*self.alone, *self.taken.values()})
        low, high = 0, len(sizes) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.cheapest(sizes[middle]) is not None else (middle + 1, high)
        return sizes[low]
