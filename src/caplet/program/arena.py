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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caplet.errors import PlanError
from caplet.fixed.rounding import Rounding
from caplet.program.bands import (
    ALIGNMENT,
    Bands,
    Choices,
    OpChain,
    buffers,
    chain_lead,
    lead,
    products,
    segments,
    stages_of,
)
from caplet.program.lifetimes import Buffer, Requests, after, aligned, requests
from caplet.program.ops import Convolution, Routing
from caplet.program.program import Program
from caplet.program.scratch import divide, workspace
from caplet.program.verify import Proof, verify


@dataclass(frozen=True)
class MemoryMap:
    """The memory plan of a Program.

    buffers: every buffer with its place, in order of first use. shared: tensors that lie in another tensor's buffer ->
    that buffer's name. bytes: the size of the arena. peak_op: the op during which most bytes are in use, and ``peak``
    the buffers then, largest first; of an input that is partly written over, the rest. stored: votes tensor -> input
    capsules whose votes are stored. rooms: convolution -> bytes in which its scratch is chosen. behind: ops that write
    over the input that they have read -> the bytes of it that their output takes at last. bands: chains of ops that are
    computed some rows at a time; the maps between them are never whole.
    """

    buffers: tuple[Buffer, ...]
    shared: Mapping[str, str]
    bytes: int
    peak_op: str
    peak: tuple[tuple[str, int], ...]
    stored: Mapping[str, int]
    rooms: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, int] = field(default_factory=dict)
    bands: tuple[Bands, ...] = ()

    @property
    def code_bytes(self) -> int:
        """Flash that bands take more, for Cortex-M4: their code, and a row of a table for each op."""
        return sum(52 * len(bands.ops) for bands in self.bands) + (1_250 if self.bands else 0)

    def __str__(self) -> str:
        """The arena's size, and what is computed in bands.

        >>> str(MemoryMap((), {}, 1200, "", (), {}, bands=(Bands(("conv1", "affine", "conv2"), 4, {}, 0, 0),)))
        '1,200 bytes; conv1 to conv2 in bands of 4 rows'
        """
        parts = [
            f"{bands.ops[0]} to {bands.ops[-1]} in bands of {bands.rows} row{'s' * (bands.rows > 1)}"
            for bands in self.bands
        ]
        return "; ".join([f"{self.bytes:,} bytes", *parts])

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
            "bands": [{**vars(bands), "held": dict(bands.held)} for bands in self.bands],
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
    planner = Planner(program, proof or verify(program), in_place)
    votes = planner.votes
    if ram == "fast":
        return planner.grown(votes, least=1 / 32)
    none = dict.fromkeys(votes, 0)
    if ram == "small":
        return planner.small(planner.place(none))
    if not isinstance(ram, int):
        raise PlanError(f"memory plan: ram is {ram!r}; the rule is 'fast', 'small' or a number of bytes")
    least = planner.within(ram)
    if least.bytes > ram:
        largest = ", ".join(f"{name} {size}" for name, size in least.peak[:3])
        raise PlanError(
            f"memory plan: {ram} bytes of RAM, but {program.name} needs {least.bytes}, during "
            f"{least.peak_op} ({largest} bytes); use fewer bits there, prune, or give more RAM"
        )
    best, chains = least, planner.chains(least)
    for name in sorted(votes, key=lambda key: program.tensors[key].bytes):
        # As many of its input capsules as fit, by bisection; all of them if those fit.
        low, high = 0, votes[name]
        carries = program.tensors[name].rounding is Rounding.CARRY  # made from the first one on, or not at all
        while low < high:
            middle = high if carries or (low, high) == (0, votes[name]) else (low + high + 1) // 2
            plan = planner.place({**best.stored, name: middle}, chains=chains)
            if plan.bytes <= ram:
                best, low = plan, middle
            else:
                high = low if carries else middle - 1
    found = planner.grown(best.stored, ram, chains=chains)
    if any(found.stored.values()) or (small := planner.small(planner.place(none))).bytes > ram:
        return found
    return min(found, small, key=planner.instructions)


@dataclass(frozen=True)
class Planner:
    """Places the buffers of one Program. known: what has been computed before."""

    program: Program
    proof: Proof
    in_place: bool
    known: dict[Any, Any] = field(default_factory=dict)

    def once(self, function: Callable[..., Any], *key: Any) -> Any:
        if (function, key) not in self.known:
            self.known[function, key] = function(*key)
        return self.known[function, key]

    def lead(self, index: int) -> tuple[int, int] | None:
        return lead(self.program.ops[index], self.program.tensors, self.proof)

    def chain_lead(self, chain: OpChain) -> int:
        return chain_lead(self.program, chain)

    def requests(
        self,
        stored: Mapping[str, int],
        rooms: Mapping[str, int] | None = None,
        behind: Collection[str] = (),
        chains: tuple[OpChain, ...] = (),
    ) -> Requests:
        """What is to be placed. behind: ops that write over their input, which takes scratch for all filters."""
        names = [op.name for op in self.program.ops]

        def scratch_of(index: int, made: bool) -> dict[str, int]:
            room = (rooms or {}).get(names[index], 0)
            found: dict[str, int] = self.once(self.workspace, index, room, made, names[index] in behind)
            return found

        return requests(self.program, stored, self.in_place, chains, scratch_of)

    def workspace(self, index: int, room: int, made: bool, whole: bool) -> dict[str, int]:
        return workspace(self.program.ops[index], self.program.tensors, self.proof, room, made, whole)

    def small(self, plain: MemoryMap) -> MemoryMap:
        """The plan with bands, and with scratch, of the least product of instructions and bytes squared, by rough
        estimates; ``plain`` with little more scratch where no other spares an eighth of that."""

        def price(choice: tuple[MemoryMap, int]) -> float:
            return choice[1] ** 2 * self.instructions(*choice)

        least = (plain, plain.bytes * 33 // 32)
        others = [(plan, int(plan.bytes * more)) for plan in self.banded(plain) for more in (33 / 32, 1.25, 1.5, 2)]
        if others and price(best := min(others, key=price)) <= price(least) * 7 / 8:
            return self.grown(plain.stored, best[1], chains=self.chains(best[0]))
        return self.grown(plain.stored, least=1 / 32)

    @property
    def votes(self) -> dict[str, int]:
        """Votes tensor -> its input capsules."""
        ops = self.program.ops
        return {op.votes: self.program.tensors[op.votes].shape[0] for op in ops if isinstance(op, Routing)}

    def within(self, limit: int) -> MemoryMap:
        """The plan in ``limit`` bytes without stored votes, with bands of the fewest instructions where it needs them;
        where there is none, the smallest, also with all votes stored: their sources may take more than they do."""
        plain = self.place(dict.fromkeys(self.votes, 0))
        if plain.bytes <= limit:
            return plain
        plans = [plain, *self.banded(plain)]
        fitting = [plan for plan in plans if plan.bytes <= limit]
        if not fitting:
            return min(*plans, self.place(self.votes), key=lambda plan: plan.bytes)
        return min(fitting, key=lambda plan: self.instructions(plan, limit))

    def instructions(self, plan: MemoryMap, limit: int | None = None) -> float:
        """Roughly, of the convolutions, with scratch in what is free of ``limit`` bytes, or in the plan's own rooms."""
        total, ops = sum(bands.cost for bands in plan.bands) + 1.0, self.program.ops
        for index, free in self.free(plan, limit or 0).items():
            room = plan.rooms.get(ops[index].name, 0) if limit is None else free
            total += self.once(self.slowness, index, room, ops[index].name in plan.behind)
        return total

    def slowness(self, index: int, room: int, whole: bool) -> float:
        """Instructions of a convolution."""
        op = self.program.ops[index]
        assert isinstance(op, Convolution)
        way = divide(op, room, whole)
        return products(op, self.program.tensors) * (1.3 + way.cost + 130 / (way.block * way.taps))

    def banded(self, plain: MemoryMap) -> Iterator[MemoryMap]:
        """Plans with bands, those of least cost first. plain: without bands, and without stored votes."""
        if not self.in_place:
            return
        choices = self.choices(plain)
        least, seen = choices.least(), set[tuple[OpChain, ...]]([()])
        for factor in (4, 3, 2.5, 2, 1.75, 1.5, 1.35, 1.2, 1.1, 1.05, 1.02, 1):  # what is in use may not lie close
            chains = choices.cheapest(int(factor * least)) or ()
            if chains not in seen:
                seen.add(chains)
                yield self.place(plain.stored, chains=chains)

    def choices(self, plain: MemoryMap) -> Choices:
        """Which chains the Program can have, without stored votes."""
        ops, tensors = self.program.ops, self.program.tensors
        asked = self.requests(plain.stored)
        wanted, shared = asked.found.values(), asked.shared
        alone = [
            sum(aligned(b.bytes) for b in wanted if b.first <= index <= b.last) - plain.behind.get(op.name, 0)
            for index, op in enumerate(ops)
        ]
        taken = {}
        for chain in segments(self.program):
            most = max(alone[chain.first : chain.last + 1])
            names = {name for op in chain.ops(self.program) for name in (*op.outputs, f"{op.name}/scratch")}
            source, target = (tensors[name] for name in (ops[chain.first].inputs[0], ops[chain.last].outputs[0]))
            host = shared.get(source.name, source.name)
            others = [b for b in wanted if b.name not in names and b.first <= chain.last and b.last >= chain.first]
            size = sum(aligned(b.bytes) for b in others)
            size += max(self.once(self.workspace, i, 0, False, False).get("scratch", 0) for i in chain.indices)
            dies = any(b.name == host and b.last <= chain.last for b in others)
            size += max(0, target.bytes - source.bytes) if dies else target.bytes
            if size >= most:
                continue
            *middle, _ = buffers(self.program, chain).items()
            for name, (_, rows) in middle:
                size += aligned(tensors[name].bytes // tensors[name].shape[0] * rows)
            if dies and size < most:
                size -= max(0, target.bytes - source.bytes)
                size += max(target.bytes - source.bytes, min(self.once(self.chain_lead, chain), target.bytes))
            if size < most:
                taken[chain] = size
        return Choices(self.program, alone, taken)

    def chains(self, plan: MemoryMap) -> tuple[OpChain, ...]:
        """The chains of a plan."""
        places = {op.name: index for index, op in enumerate(self.program.ops)}
        spans = [(places[one.ops[0]], places[one.ops[-1]], one.rows) for one in plan.bands]
        return tuple(OpChain(*span, stages_of(self.program, *span[:2]) or ()) for span in spans)

    def grown(
        self, stored: Mapping[str, int], limit: int = 0, least: float = 0, chains: tuple[OpChain, ...] = ()
    ) -> MemoryMap:
        """Place everything; convolutions take scratch that makes them faster from what is free while they run.

        limit: bytes that the plan may take, if it does not take more anyway. least: a part of these bytes that each may
        take even where everything is in use, as too little would make it several times slower.
        """
        plan = self.place(stored, chains=chains)
        limit, room = max(limit, plan.bytes), int(least * plan.bytes)
        rooms = {self.program.ops[index].name: max(room, free) for index, free in self.free(plan, limit).items()}
        while any(rooms.values()):
            plans = [each for each in self.placed(stored, rooms, chains) if each.bytes <= limit + room]
            if plans:  # what fills free bytes alone is not what the RAM is needed for
                wider = min(plans, key=lambda each: (self.instructions(each), each.bytes))
                same = wider.bytes == plan.bytes
                return replace(wider, peak_op=plan.peak_op, peak=plan.peak) if same else wider
            rooms = {name: room * 3 // 4 for name, room in rooms.items()}  # free, but not in one piece
        return plan

    def free(self, plan: MemoryMap, limit: int) -> dict[int, int]:
        """Convolution -> bytes of ``limit`` that nothing else needs while it runs."""
        live = [0] * len(self.program.ops)
        for buffer in plan.buffers:
            for index in range(buffer.first, buffer.last + 1):
                live[index] += aligned(buffer.bytes)
        found, buffers = {}, {buffer.name: buffer for buffer in plan.buffers}
        for index, op in enumerate(self.program.ops):
            if isinstance(op, Convolution):
                scratch = f"{op.name}/scratch"
                own = buffers[plan.shared.get(scratch, scratch)]
                found[index] = limit - max(live[own.first : own.last + 1]) + aligned(own.bytes)
        return found

    def place(
        self, stored: Mapping[str, int], rooms: Mapping[str, int] | None = None, chains: tuple[OpChain, ...] = ()
    ) -> MemoryMap:
        """The smallest of some plans; one without ops that write over their input where that saves nothing."""
        return min(self.placed(stored, rooms, chains), key=lambda one: one.bytes)

    def placed(
        self, stored: Mapping[str, int], rooms: Mapping[str, int] | None = None, chains: tuple[OpChain, ...] = ()
    ) -> Iterator[MemoryMap]:
        """Plans without and with ops that write over their input, where they may."""
        yield self._placed(stored, rooms or {}, frozenset(), chains)
        for backwards in (False, True) if self.in_place else ():
            names = frozenset(op.name for op in self.program.ops)
            while True:  # until every op that is to do so does: the others need no scratch for it
                plan = self._placed(stored, rooms or {}, names, chains, backwards)
                if names == plan.behind.keys():
                    break
                names = frozenset(plan.behind)
            yield plan

    def _placed(
        self,
        stored: Mapping[str, int],
        rooms: Mapping[str, int],
        behind: frozenset[str],
        chains: tuple[OpChain, ...],
        backwards: bool = False,
    ) -> MemoryMap:
        """behind: ops that may write over their input. backwards: last buffers are placed first, not large ones."""
        ops, program = self.program.ops, self.program
        behind = behind - {ops[index].name for chain in chains for index in chain.indices}
        asked = self.requests(stored, rooms, behind, chains)
        found, shared = asked.found, asked.shared
        pairs: dict[tuple[str, str], tuple[int, int]] = {}
        spans: dict[tuple[str, str], Sequence[int]] = {}  # the ops that read the one and write the other
        chained = {chain.first: chain for chain in chains}
        for index, op in enumerate(ops):
            chain = chained.get(index)
            source = found.get(shared.get(op.inputs[0], op.inputs[0]))
            last = index if chain is None else chain.last
            if source is None or source.last != last or any(index in one for one in chains) > (chain is not None):
                continue
            way = (self.once(self.chain_lead, chain), ALIGNMENT) if chain else None
            if chain is None and op.name in behind:
                way = self.once(self.lead, index)
            if way is not None:
                output = ops[last].outputs[0]
                pairs[source.name, shared.get(output, output)] = way
                spans[source.name, shared.get(output, output)] = range(index, last + 1)
        placed: list[Buffer] = []
        for request in sorted(found.values(), key=lambda b: (-b.first if backwards else 0, -b.bytes, b.first, b.name)):
            clashes = [b for b in placed if b.first <= request.last and request.first <= b.last]
            offset, before = 0, -1
            while offset != before:
                before = offset
                for other in clashes:
                    offset = after(replace(request, offset=offset), other, pairs)
            placed.append(replace(request, offset=offset))
        places = {b.name: b for b in placed}
        over: dict[tuple[str, int], int] = {}  # bytes of a buffer that an op does not need
        outputs: dict[str, int] = {}
        for host, output in pairs:
            ends = (places[name].offset + places[name].bytes for name in (host, output))
            both = min(ends) - max(places[host].offset, places[output].offset)
            if both > 0:
                outputs |= {ops[spans[host, output][-1]].name: both}
                over |= {(host, index): both for index in spans[host, output]}
        live = [
            [(b.name, b.bytes - over.get((b.name, i), 0)) for b in placed if b.first <= i <= b.last]
            for i in range(len(ops))
        ]
        busiest = max(range(len(live)), key=lambda index: sum(size for _, size in live[index]))
        peak = sorted(live[busiest], key=lambda item: (-item[1], item[0]))
        size = aligned(max(b.offset + b.bytes for b in placed))
        placed.sort(key=lambda b: (b.first, b.offset))
        bands = tuple(chain.described(program, outputs.pop(ops[chain.last].name, 0)) for chain in chains)
        name = ops[busiest].name
        return MemoryMap(
            tuple(placed),
            shared,
            size,
            name,
            tuple(peak),
            dict(stored),
            dict(rooms),
            dict(sorted(outputs.items())),
            bands,
        )
