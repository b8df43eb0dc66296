"""The static memory plan: which bytes of one arena every tensor and every scratch buffer occupies, and when.

Lifetimes are counted in ops: a tensor lives from the op that writes it to the last op that reads it (the class capsules
and their lengths to the end). The raw image lies outside the arena, as do all constants. Coupling is never stored
whole (see :func:`workspace`). Squash, channel affine, LeakyReLU and add work in place where their input dies with them
and an element keeps its size; so do preactivation and activation of a routing. Convolutions and pools may write over
the part of a dying input that they have read: their output then starts some bytes before it (see :func:`lead`).

Votes need not be stored whole. Of the votes of I input capsules the first ``stored[votes]`` are stored; the others are
recomputed, one input capsule at a time, in every iteration. With all of them stored the votes op runs once, before the
routing; otherwise it runs within the routing, and its sources stay alive until then. The integers are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import numpy as np

from caplet.errors import PlanError
from caplet.program.op import Op, Tensors
from caplet.program.ops import (
    Add,
    ChannelAffine,
    Conv2d,
    Convolution,
    ConvVotes,
    DenseVotes,
    LeakyRelu,
    MaxPool2d,
    Routing,
    Squash,
)
from caplet.program.program import Program
from caplet.program.scratch import routing_rows, unpacked_bytes, workspace
from caplet.program.tensor import WideFormat
from caplet.program.verify import Proof, verify

ALIGNMENT = 8
"""Every buffer starts at a multiple of this many bytes."""


@dataclass(frozen=True)
class Buffer:
    """Bytes ``offset .. offset + bytes - 1`` of the arena, in use from op ``first`` to op ``last`` inclusive.

    name: a tensor's name, ``"<op>/<purpose>"`` for scratch, ``"<op>/vote_rows"`` for recomputed votes.
    """

    name: str
    bytes: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True)
class MemoryMap:
    """The memory plan of a Program.

    buffers: every buffer with its place, in order of first use. shared: tensors that lie in another tensor's buffer ->
    that buffer's name. bytes: the size of the arena. peak_op: the op during which most bytes are in use, and ``peak``
    the buffers then, largest first; of an input that is partly written over, the rest. stored: votes tensor -> input
    capsules whose votes are stored. rooms: convolution -> bytes in which its scratch is chosen. behind: ops that write
    over the input that they have read -> the bytes of it that their output takes at last.
    """

    buffers: tuple[Buffer, ...]
    shared: Mapping[str, str]
    bytes: int
    peak_op: str
    peak: tuple[tuple[str, int], ...]
    stored: Mapping[str, int]
    rooms: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, int] = field(default_factory=dict)

    def offset(self, name: str) -> int:
        """Where a tensor or scratch buffer starts. Raises KeyError where it has no place in the arena."""
        return {buffer.name: buffer.offset for buffer in self.buffers}[self.shared.get(name, name)]

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "peak_op": self.peak_op,
            "peak": [{"name": name, "bytes": size} for name, size in self.peak],
            "stored_votes": dict(self.stored),
            "shared": dict(self.shared),
            "behind": dict(self.behind),
            "buffers": [vars(buffer).copy() for buffer in self.buffers],
        }


def plan_memory(
    program: Program, ram: str | int = "fast", *, proof: Proof | None = None, in_place: bool = True
) -> MemoryMap:
    """Place every buffer of a Program.

    ram: ``"fast"`` stores all votes, ``"small"`` none; a number of bytes stores as many votes as fit in it.
    Convolutions that more scratch makes faster take what is free while they run, and with "fast" and "small" a
    thirty-second of the RAM more where nothing is.
    proof: of ``verify(program)``, made here if None. in_place: False keeps every tensor in a buffer of its own, for
    debugging. Raises PlanError when the Program does not verify, or does not fit the given number of bytes.
    """
    planner = _Planner(program, proof or verify(program), in_place)
    votes = {op.votes: program.tensors[op.votes].shape[0] for op in program.ops if isinstance(op, Routing)}
    if ram == "fast":
        return planner.grown(votes, least=1 / 32)
    none = dict.fromkeys(votes, 0)
    if ram == "small":
        return planner.grown(none, least=1 / 32)
    if not isinstance(ram, int):
        raise PlanError(f"memory plan: ram is {ram!r}; the rule is 'fast', 'small' or a number of bytes")
    small = planner.place(none)
    if small.bytes > ram:
        largest = ", ".join(f"{name} {size}" for name, size in small.peak[:3])
        raise PlanError(
            f"memory plan: {ram} bytes of RAM, but without stored votes {program.name} needs {small.bytes}, during "
            f"{small.peak_op} ({largest} bytes); use fewer bits there, prune, or give more RAM"
        )
    best = small
    for name in sorted(votes, key=lambda key: program.tensors[key].bytes):
        # As many of its input capsules as fit, by bisection; all of them if those fit.
        low, high = 0, votes[name]
        while low < high:
            middle = high if (low, high) == (0, votes[name]) else (low + high + 1) // 2
            plan = planner.place({**best.stored, name: middle})
            if plan.bytes <= ram:
                best, low = plan, middle
            else:
                high = middle - 1
    return planner.grown(best.stored, ram)


@dataclass(frozen=True)
class _Planner:
    """Places the buffers of one Program."""

    program: Program
    proof: Proof
    in_place: bool

    @property
    def scratch(self) -> dict[str, str]:
        """Convolution -> the name of its scratch."""
        return {op.name: f"{op.name}/scratch" for op in self.program.ops if isinstance(op, Convolution)}

    def grown(self, stored: Mapping[str, int], limit: int = 0, least: float = 0) -> MemoryMap:
        """Place everything; convolutions take scratch that makes them faster from what is free while they run.

        limit: bytes that the plan may take, if it does not take more anyway. least: a part of these bytes that each may
        take even where everything is in use, as too little would make it several times slower.
        """
        plan = self.place(stored)
        limit, room = max(limit, plan.bytes), int(least * plan.bytes)
        rooms = {}
        for name, scratch in self.scratch.items():
            own = next(buffer for buffer in plan.buffers if buffer.name == scratch)
            others = [buffer for buffer in plan.buffers if buffer is not own]
            live = (
                sum(_aligned(buffer.bytes) for buffer in others if buffer.first <= index <= buffer.last)
                for index in range(own.first, own.last + 1)
            )
            rooms[name] = max(room, limit - max(live))
        while any(rooms.values()):
            wider = self.place(stored, rooms)
            if wider.bytes <= limit + room:  # what fills free bytes alone is not what the RAM is needed for
                same = wider.bytes == plan.bytes
                return replace(wider, peak_op=plan.peak_op, peak=plan.peak) if same else wider
            rooms = {name: room * 3 // 4 for name, room in rooms.items()}  # free, but not in one piece
        return plan

    def place(self, stored: Mapping[str, int], rooms: Mapping[str, int] | None = None) -> MemoryMap:
        """The smallest of some plans; one without ops that write over their input where that saves nothing."""
        best = self._placed(stored, rooms or {}, frozenset())
        if not self.in_place:
            return best
        for backwards in (False, True):
            names = frozenset(op.name for op in self.program.ops)
            while True:  # until every op that is to do so does: the others need no scratch for it
                plan = self._placed(stored, rooms or {}, names, backwards)
                if names == plan.behind.keys():
                    break
                names = frozenset(plan.behind)
            best = min(best, plan, key=lambda one: one.bytes)
        return best

    def _placed(
        self, stored: Mapping[str, int], rooms: Mapping[str, int], behind: frozenset[str], backwards: bool = False
    ) -> MemoryMap:
        """behind: ops that may write over their input. backwards: last buffers are placed first, not large ones."""
        ops, tensors = self.program.ops, self.program.tensors
        requests, shared = _requests(self.program, self.proof, stored, self.in_place, rooms, behind)
        found = {buffer.name: buffer for buffer in requests}
        pairs = {}
        for index, op in enumerate(ops):
            source = found.get(shared.get(op.inputs[0], op.inputs[0]))
            if source is None or source.last != index or op.name not in behind:
                continue
            if (way := lead(op, tensors, self.proof)) is not None:
                pairs[source.name, op.outputs[0]] = way
        placed: list[Buffer] = []
        for request in sorted(requests, key=lambda b: (-b.first if backwards else 0, -b.bytes, b.first, b.name)):
            clashes = [b for b in placed if b.first <= request.last and request.first <= b.last]
            offset, before = 0, -1
            while offset != before:
                before = offset
                for other in clashes:
                    offset = _after(replace(request, offset=offset), other, pairs)
            placed.append(replace(request, offset=offset))
        places = {b.name: b for b in placed}
        over = {}
        for host, output in pairs:
            ends = (places[name].offset + places[name].bytes for name in (host, output))
            both = min(ends) - max(places[host].offset, places[output].offset)
            if both > 0:
                over[host, output] = both

        def needed(buffer: Buffer, index: int) -> int:
            return buffer.bytes - over.get((buffer.name, ops[index].outputs[0]), 0)

        live = [[(b.name, needed(b, i)) for b in placed if b.first <= i <= b.last] for i in range(len(ops))]
        busiest = max(range(len(live)), key=lambda index: sum(size for _, size in live[index]))
        peak = sorted(live[busiest], key=lambda item: (-item[1], item[0]))
        size = _aligned(max(b.offset + b.bytes for b in placed))
        placed.sort(key=lambda b: (b.first, b.offset))
        outputs = {output: both for (_, output), both in over.items()}
        found_behind = {op.name: outputs[op.outputs[0]] for op in ops if op.outputs[0] in outputs}
        name = ops[busiest].name
        return MemoryMap(tuple(placed), shared, size, name, tuple(peak), dict(stored), dict(rooms), found_behind)


def _after(request: Buffer, other: Buffer, pairs: Mapping[tuple[str, str], tuple[int, int]]) -> int:
    """The first place from ``request.offset`` on where it does not disturb ``other``, of a place of its own."""
    start, end = request.offset, _aligned(other.offset + other.bytes)
    if start + request.bytes <= other.offset or start >= end:
        return start
    if way := pairs.get((request.name, other.name)):  # read while the other is written
        return min(end, other.offset + _multiple(max(way[0], start - other.offset), way[1]))
    if way := pairs.get((other.name, request.name)):
        least = _multiple(way[0], way[1])
        behind = (other.offset - start) // way[1] * way[1]
        return other.offset - behind if behind >= least else end
    return end


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


POSITIONS = 4
"""Output positions whose windows a convolution gathers before it writes any of them, at most."""


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


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _requests(
    program: Program,
    proof: Proof,
    stored: Mapping[str, int],
    in_place: bool,
    rooms: Mapping[str, int],
    behind: frozenset[str],
) -> tuple[list[Buffer], dict[str, str]]:
    """Buffers without offsets, and the tensors that share another's buffer."""
    tensors, ops = program.tensors, program.ops
    last = _last_reads(program, stored)
    buffers: dict[str, Buffer] = {}
    shared: dict[str, str] = {}

    def add(name: str, size: int, first: int, end: int) -> None:
        buffers[name] = Buffer(name, size, first, end)

    for index, op in enumerate(ops):
        made = isinstance(op, Routing) and stored[op.votes] < tensors[op.votes].shape[0]
        scratch = workspace(op, tensors, proof, rooms.get(op.name, 0), made, op.name in behind)
        if isinstance(op, DenseVotes | ConvVotes):
            inputs, outputs, dim = tensors[op.output].shape
            rows, end, row = stored[op.output], last[op.output], outputs * dim * tensors[op.output].element_bytes
            first = index if rows == inputs else end
            if rows:
                add(op.output, rows * row, first, end)
            if rows < inputs:
                add(f"{op.name}/vote_rows", routing_rows(outputs, made=True) * row, end, end)
            for what, size in scratch.items():
                add(f"{op.name}/{what}", size, first, first)
            continue
        for what, size in scratch.items():
            add(f"{op.name}/{what}", size, index, index)
        skip = (op.coupling,) if isinstance(op, Routing) else ()
        for name in op.outputs:
            host = _host(program, index, name, last) if in_place and name not in shared else None
            if host is not None and host != program.input:
                root = shared[name] = shared.get(host, host)
                buffers[root] = replace(buffers[root], last=max(buffers[root].last, last[name]))
            elif name not in skip:
                add(name, tensors[name].bytes, index, last[name])
    return list(buffers.values()), shared


def _host(program: Program, index: int, name: str, last: Mapping[str, int]) -> str | None:
    """The tensor in whose buffer op ``index`` can write ``name``, if there is one."""
    op, tensors = program.ops[index], program.tensors
    hosts = op.inputs if isinstance(op, Squash | ChannelAffine | LeakyRelu | Add) else ()
    if isinstance(op, Routing) and name == op.activation:
        hosts = (op.preactivation,)
    fits = (host for host in hosts if last[host] == index and tensors[host].bytes == tensors[name].bytes)
    return next(fits, None)


def _last_reads(program: Program, stored: Mapping[str, int]) -> dict[str, int]:
    """Tensor -> the last op that needs it (the op that writes it, if none reads it)."""
    last: dict[str, int] = {}
    routings = {op.votes: index for index, op in enumerate(program.ops) if isinstance(op, Routing)}
    for index, op in enumerate(program.ops):
        last.update(dict.fromkeys((*op.outputs, *op.inputs), index))
    for index, op in enumerate(program.ops):
        if isinstance(op, DenseVotes | ConvVotes) and stored[op.output] < program.tensors[op.output].shape[0]:
            for name in op.inputs:
                last[name] = max(last[name], routings[op.output], index)
    last[program.output] = last[program.lengths] = len(program.ops) - 1
    return last
