"""Which buffers a Program needs, and from which op to which, before any of them has a place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from caplet.program.bands import ALIGNMENT, IN_PLACE, OpChain, buffers
from caplet.program.ops import ConvVotes, DenseVotes, Routing
from caplet.program.program import Program
from caplet.program.scratch import routing_rows


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


@dataclass
class Requests:
    """Buffers without offsets.

    found: by name, in the order of the ops. shared: tensors that lie in another tensor's buffer -> that buffer's name.
    """

    found: dict[str, Buffer]
    shared: dict[str, str]


def requests(
    program: Program,
    stored: Mapping[str, int],
    in_place: bool,
    chains: tuple[OpChain, ...],
    scratch_of: Callable[[int, bool], Mapping[str, int]],
) -> Requests:
    """Of all ops, with ``stored`` input capsules' votes. scratch_of: (op, are votes made again) -> its scratch."""
    tensors, ops = program.tensors, program.ops
    last = _last_reads(program, stored)
    for chain in chains:
        last |= {name: chain.last for name, index in last.items() if index in chain}
    chain_of = {index: chain for chain in chains for index in chain.indices}
    made = Requests({}, {})
    found, shared = made.found, made.shared

    def add(name: str, size: int, first: int, end: int) -> None:
        found[name] = Buffer(name, size, first, end)

    for index, op in enumerate(ops):
        scratch = scratch_of(index, isinstance(op, Routing) and stored[op.votes] < tensors[op.votes].shape[0])
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
        if index in chain_of:
            if index == chain_of[index].first:
                _request_rows(program, chain_of[index], last, made)
            _share_scratch(program, chain_of[index], index, scratch, made)
            continue
        for what, size in scratch.items():
            add(f"{op.name}/{what}", size, index, index)
        skip = (op.coupling,) if isinstance(op, Routing) else ()
        for name in op.outputs:
            host = _host(program, index, name, last) if in_place and name not in shared else None
            if host is not None and host != program.input:
                root = shared[name] = shared.get(host, host)
                found[root] = replace(found[root], last=max(found[root].last, last[name]))
            elif name not in skip:
                add(name, tensors[name].bytes, index, last[name])
    return made


def _request_rows(program: Program, chain: OpChain, last: Mapping[str, int], made: Requests) -> None:
    """Buffers of what the ops of a chain write."""
    for root, (names, rows) in buffers(program, chain).items():
        size = program.tensors[root].bytes // program.tensors[root].shape[0] * rows
        made.found[root] = Buffer(root, size, chain.first, max(last[name] for name in names))
        made.shared.update(dict.fromkeys(names[1:], root))


def _share_scratch(program: Program, chain: OpChain, index: int, scratch: Mapping[str, int], made: Requests) -> None:
    """The ops of a chain run in turns: one scratch does for all of them."""
    one = f"{program.ops[chain.first].name}/scratch"
    for what, size in scratch.items():
        own = f"{program.ops[index].name}/{what}"
        before = made.found.get(one, Buffer(one, 0, chain.first, chain.last))
        made.found[one] = replace(before, bytes=max(before.bytes, size))
        if own != one:
            made.shared[own] = one


def _host(program: Program, index: int, name: str, last: Mapping[str, int]) -> str | None:
    """The tensor in whose buffer op ``index`` can write ``name``, if there is one."""
    op, tensors = program.ops[index], program.tensors
    hosts = op.inputs if isinstance(op, IN_PLACE) else ()
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


def after(request: Buffer, other: Buffer, pairs: Mapping[tuple[str, str], tuple[int, int]]) -> int:
    """The first place from ``request.offset`` on where it does not disturb ``other``, of a place of its own."""
    start, end = request.offset, aligned(other.offset + other.bytes)
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


def aligned(size: int) -> int:
    """``size`` bytes, up to the next place where a buffer may start."""
    return -(-size // ALIGNMENT) * ALIGNMENT
