"""Scratch of single ops: how much of it each needs, and how a convolution divides its work in what there is."""

from dataclasses import dataclass

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.program.op import Op, Tensors
from caplet.program.ops import Conv2d, Convolution, DenseVotes, Routing
from caplet.program.tensor import Constant
from caplet.program.verify import Proof


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


def divide(op: Convolution, room: int, whole: bool = False) -> Division:
    """The division of least cost in ``room`` bytes of scratch; the smallest one where none fits. whole: of those that
    take all filters of a group at once.

    A gathered element serves ``block`` filters; an interrupted sum is stored and loaded again every ``taps`` products;
    weights that are not held are unpacked again for every four positions.
    """
    groups = op.groups if isinstance(op, Conv2d) else 1
    filters, size = op.weight.shape[0] // groups, op.weight.codes.size // op.weight.shape[0]
    packed, width = needs_unpacking(op.weight), unpacked_bytes(op.weight)
    found = []
    for block in {filters, *(count for count in (2, 4, 8, 16, 32, 64, 128) if count < filters and not whole)}:
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


def workspace(
    op: Op, tensors: Tensors, proof: Proof, room: int = 0, made: bool = False, whole: bool = False
) -> dict[str, int]:
    """Scratch of one op: purpose -> bytes. made: a routing whose votes are not all stored. whole: as in :func:`divide`.

    * ``scratch`` (convolutions): gathered windows, sums and unpacked filters, as :func:`divide` chooses in ``room``.
    * ``scratch`` (dense votes): what is carried on of each vote, and unpacked weights of :func:`votes_together` votes.
    * ``acc``, ``coupling``, ``exponentials`` (routing): the accumulators of the weighted sum over all G * D, G
      coupling codes of 16 bits of each of :func:`routing_rows` input capsules, and G uint32 exponentials (several
      iterations only).
    """
    if isinstance(op, Convolution):
        return {"scratch": divide(op, room, whole).bytes}
    if isinstance(op, DenseVotes):
        size = votes_together(op.weight) * op.weight.shape[1] * unpacked_bytes(op.weight)
        size = size if needs_unpacking(op.weight) else 0
        if tensors[op.output].rounding is Rounding.CARRY:
            size += op.weight.shape[2] * proof.find(op.name, f"acc:{op.sources[0]}").bytes
        return {"scratch": size} if size else {}
    if isinstance(op, Routing):
        _, outputs, dim = tensors[op.votes].shape
        count = routing_rows(outputs, made) * outputs
        several = {"exponentials": 4 * outputs} if op.iterations > 1 else {}
        acc = outputs * dim * proof.find(op.name, "acc").bytes
        return {"acc": acc, "coupling": 2 * count, **several}
    return {}
