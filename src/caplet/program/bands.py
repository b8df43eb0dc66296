"""Chains of ops that are computed a few rows at a time, so that the maps between them are never whole in memory.

In a chain every op but the first reads what the one before it writes, and nothing else reads that. All of them work in
turns: the last one that has the rows it reads computes its next ``rows`` rows. Of a map between two ops the arena holds
the rows that are still to be read; those move to the front of their buffer before more are written. The codes are the
same, and no product is computed twice. What it costs are calls: each prepares the scales of all filters again and
unpacks weights again, and fills its last four positions less well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
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
STAGES = 16
"""Ops of a chain, at most: CAPLET_STAGES."""
POSITIONS = 4
"""Output positions whose windows a convolution gathers before it writes any of them, at most."""
IN_PLACE = (Squash, ChannelAffine, LeakyRelu, Add)
"""Ops that can write over their (first) input, element by element."""


@dataclass(frozen=True)
class OpChain:
    """Ops ``first`` to ``last`` of a Program, ``rows`` rows at a time."""

    first: int
    last: int
    rows: int

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


def in_place(op: Op, tensors: Tensors) -> bool:
    """Whether ``op`` writes the rows of a chain over those that it reads."""
    source, target = tensors[op.inputs[0]], tensors[op.outputs[0]]
    return isinstance(op, IN_PLACE) and source.bytes == target.bytes


@lru_cache(4096)
def held_rows(reader: RowWindow, rows: int) -> int:
    """Rows of its input that the arena holds at most, where ``reader`` and the op before it take ``rows`` at a time."""
    done = most = 0
    for start in range(0, reader.out_rows, rows):
        low = min(reader.first(start), done)
        need = reader.end(min(start + rows, reader.out_rows))
        while done < need:
            low = min(reader.first(start), done)
            done = min(done + rows, reader.in_rows)
            most = max(most, done - low)
    return most


def runs(program: Program) -> Iterator[tuple[int, int]]:
    """First and last op of every longest chain."""
    tensors, readers = program.tensors, [name for op in program.ops for name in op.inputs]
    kept = {program.output, program.lengths}
    start = 0
    for index, (before, op) in enumerate(pairwise(program.ops), 1):
        name = before.outputs[0]
        linked = op.inputs[0] == name and readers.count(name) == 1 and name not in kept and len(before.outputs) == 1
        if not (linked and window(before, tensors) and window(op, tensors)):
            if index - 1 > start:
                yield start, index - 1
            start = index


def segments(program: Program) -> Iterator[OpChain]:
    """Every chain that spares a map."""
    for start, end in runs(program):
        for first in range(start, end):
            if isinstance(program.ops[first], IN_PLACE):
                continue
            for last in range(first + 1, min(end, first + STAGES - 1) + 1):
                if all(in_place(op, program.tensors) for op in program.ops[first + 1 : last + 1]):
                    continue
                yield from (OpChain(first, last, rows) for rows in ROWS)


def buffers(program: Program, chain: OpChain) -> dict[str, tuple[tuple[str, ...], int]]:
    """The tensors that ops of a chain write: the first in a buffer -> all in it, and the rows that it holds (all of the
    chain's output)."""
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    root = ""
    for op in chain.ops(program):
        name = op.outputs[0]
        if root and in_place(op, program.tensors):
            found[root] = ((*found[root][0], name), 0)
            continue
        if root:
            reader = window(op, program.tensors)
            assert reader is not None
            found[root] = (found[root][0], held_rows(reader, chain.rows))
        root = name
        found[root] = ((name,), 0)
    names, _ = found[root]
    found[root] = (names, program.tensors[names[-1]].shape[0])
    return found


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
    ops, tensors = chain.ops(program), program.tensors
    windows = [window(op, tensors) for op in ops]
    source, target = tensors[ops[0].inputs[0]], tensors[ops[-1].outputs[0]]
    total = target.shape[0]
    end = np.minimum(np.arange(chain.rows, total + chain.rows, chain.rows), total)
    unread = np.full(len(end), source.shape[0])
    done = end
    for op, one in zip(reversed(ops), reversed(windows), strict=True):
        assert one is not None
        if isinstance(op, Add) and op.b == ops[0].inputs[0]:
            unread = np.minimum(unread, np.maximum(done - chain.rows, 0))
        if op is not ops[0]:
            need = np.minimum((done - 1) * one.stride + one.kernel - one.padding, one.in_rows)
            done = np.minimum(-(-need // chain.rows) * chain.rows, one.in_rows)
    first = windows[0]
    assert first is not None
    next_read = np.clip(done * first.stride - first.padding, 0, first.in_rows)
    unread = np.minimum(unread, np.where(done < first.out_rows, next_read, first.in_rows))
    ahead = end * (target.bytes // total) - unread * (source.bytes // source.shape[0])
    return max(0, int(ahead.max()))


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
