"""The static memory plan: which bytes of one arena every tensor and every scratch buffer occupies, and when.

Lifetimes are counted in ops: a tensor lives from the op that writes it to the last op that reads it (the class capsules
and their lengths to the end). The raw image lies outside the arena, as do all constants. Coupling is never stored
whole (see :func:`workspace`). Squash, channel affine, LeakyReLU and add work in place where their input dies with them
and an element keeps its size; so do preactivation and activation of a routing.

Votes need not be stored whole. Of the votes of I input capsules the first ``stored[votes]`` are stored; the others are
recomputed, one input capsule at a time, in every iteration. With all of them stored the votes op runs once, before the
routing; otherwise it runs within the routing, and its sources stay alive until then. The integers are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat
from caplet.program.op import Op, Tensors
from caplet.program.ops import (
    Add,
    ChannelAffine,
    Conv2d,
    Convolution,
    ConvVotes,
    DenseVotes,
    LeakyRelu,
    Routing,
    Squash,
)
from caplet.program.program import Program
from caplet.program.tensor import Constant
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
    the buffers then, largest first. stored: votes tensor -> input capsules whose votes are stored. rooms: convolution
    -> bytes in which its scratch is chosen.
    """

    buffers: tuple[Buffer, ...]
    shared: Mapping[str, str]
    bytes: int
    peak_op: str
    peak: tuple[tuple[str, int], ...]
    stored: Mapping[str, int]
    rooms: Mapping[str, int] = field(default_factory=dict)

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
                grew = wider.bytes > plan.bytes
                return wider if grew else replace(wider, peak_op=plan.peak_op, peak=plan.peak)
            rooms = {name: room * 3 // 4 for name, room in rooms.items()}  # free, but not in one piece
        return plan

    def place(self, stored: Mapping[str, int], rooms: Mapping[str, int] | None = None) -> MemoryMap:
        program, rooms = self.program, rooms or {}
        requests, shared = _requests(program, self.proof, stored, self.in_place, rooms)
        placed: list[Buffer] = []
        for request in sorted(requests, key=lambda b: (-b.bytes, b.first, b.name)):
            offset = 0
            clashes = [b for b in placed if b.first <= request.last and request.first <= b.last]
            for other in sorted(clashes, key=lambda b: b.offset):
                if offset + request.bytes <= other.offset:
                    break
                offset = max(offset, _aligned(other.offset + other.bytes))
            placed.append(replace(request, offset=offset))
        live = [[b for b in placed if b.first <= index <= b.last] for index in range(len(program.ops))]
        busiest = max(range(len(live)), key=lambda index: sum(b.bytes for b in live[index]))
        peak = sorted(((b.name, b.bytes) for b in live[busiest]), key=lambda item: (-item[1], item[0]))
        size = _aligned(max(b.offset + b.bytes for b in placed))
        placed.sort(key=lambda b: (b.first, b.offset))
        return MemoryMap(tuple(placed), shared, size, program.ops[busiest].name, tuple(peak), dict(stored), dict(rooms))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _requests(
    program: Program, proof: Proof, stored: Mapping[str, int], in_place: bool, rooms: Mapping[str, int]
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
        scratch = workspace(op, tensors, proof, rooms.get(op.name, 0), made)
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


def unpacked_bytes(weight: Constant) -> int:
    """Bytes of one weight after unpacking: 1 where every integer fits int8, else 2."""
    if isinstance(weight.format, FixedFormat):
        return 1 if weight.format.bits + (not weight.format.signed) <= 8 else 2
    return 1 if 1 << (weight.format.max_code - 1) <= 127 else 2


def needs_unpacking(weight: Constant) -> bool:
    """Whether packed codes must be unpacked before use: not where they lie in flash as int8 or int16 already."""
    fmt = weight.format
    return not (isinstance(fmt, FixedFormat) and fmt.signed and fmt.bits in (8, 16))


@dataclass(frozen=True)
class Division:
    """How a convolution divides its work; ``block``, ``taps`` and ``held`` as in ``caplet_conv_op``.

    bytes: of scratch. cost: instructions per product beyond those of undivided work, a rough estimate.
    """

    block: int
    taps: int
    held: bool
    bytes: int
    cost: float


def divide(op: Convolution, room: int) -> Division:
    """The division of least cost in ``room`` bytes of scratch; the smallest one where none fits.

    A gathered element serves ``block`` filters; an interrupted sum is stored and loaded again every ``taps`` products;
    weights that are not held are unpacked again for every four positions.
    """
    groups = op.groups if isinstance(op, Conv2d) else 1
    filters, size = op.weight.shape[0] // groups, op.weight.codes.size // op.weight.shape[0]
    packed, width = needs_unpacking(op.weight), unpacked_bytes(op.weight)
    found = []
    for block in {filters, *(count for count in (2, 4, 8, 16, 32, 64, 128) if count < filters)}:
        for taps in {
            size,
            *(some for parts in (2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256) if (some := _part(size, parts))),
        }:
            fixed = 8 * (taps + taps % 2) + block * (8 if taps == size else 24)
            cost = 1.75 / block + (0 if taps == size else 7 / taps)
            if packed:
                once = width * size * block
                found.append(Division(block, taps, False, fixed + width * taps * min(2, block), cost + 0.6))
                found.append(Division(block, taps, True, fixed + once, cost))
            else:
                found.append(Division(block, taps, True, fixed, cost))
    fitting = [one for one in found if one.bytes <= room]
    if not fitting:
        return min(found, key=lambda one: (one.bytes, one.cost))
    return min(fitting, key=lambda one: (one.cost, one.bytes))


def _part(size: int, parts: int) -> int:
    """A multiple of 4 of which ``parts`` hold ``size``; 0 where it is less than 16 or no division."""
    some = -(-size // (4 * parts)) * 4
    return some if 16 <= some < size else 0


def votes_together(weight: Constant) -> int:
    """Dense votes whose weights are unpacked at once: all, or an even number that takes 512 bytes at most."""
    _, in_dim, votes = weight.shape
    fit = 512 // (in_dim * unpacked_bytes(weight))
    return votes if votes <= fit or not needs_unpacking(weight) else max(2, fit // 2 * 2)


def routing_rows(outputs: int, made: bool = False) -> int:
    """Input capsules that a routing to ``outputs`` capsules takes together, while their scratch is small: up to 16, or
    12 where votes are made again, which takes room for them, too."""
    return max(1, min(12 if made else 16, 256 // outputs))


def workspace(op: Op, tensors: Tensors, proof: Proof, room: int = 0, made: bool = False) -> dict[str, int]:
    """Scratch of one op: purpose -> bytes. made: a routing whose votes are not all stored.

    * ``scratch`` (convolutions): gathered windows, sums and unpacked filters, as :func:`divide` chooses in ``room``.
    * ``scratch`` (dense votes): unpacked weights of :func:`votes_together` votes.
    * ``acc``, ``coupling``, ``exponentials`` (routing): the accumulators of the weighted sum over all G * D, G
      coupling codes of 16 bits of each of :func:`routing_rows` input capsules, and G uint32 exponentials (several
      iterations only).
    """
    if isinstance(op, Convolution):
        return {"scratch": divide(op, room).bytes}
    if isinstance(op, DenseVotes):
        size = votes_together(op.weight) * op.weight.shape[1] * unpacked_bytes(op.weight)
        return {"scratch": size} if needs_unpacking(op.weight) else {}
    if isinstance(op, Routing):
        _, outputs, dim = tensors[op.votes].shape
        count = routing_rows(outputs, made) * outputs
        several = {"exponentials": 4 * outputs} if op.iterations > 1 else {}
        acc = outputs * dim * proof.find(op.name, "acc").bytes
        return {"acc": acc, "coupling": 2 * count, **several}
    return {}
