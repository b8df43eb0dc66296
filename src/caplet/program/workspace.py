"""Scratch memory that the ops need on a device, beyond the tensors they read and write."""

from __future__ import annotations

from caplet.fixed.format import FixedFormat
from caplet.program.op import Op, Tensors
from caplet.program.ops import Convolution, DenseVotes, Routing
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


def filters_together(weight: Constant) -> int:
    """Filters that a convolution takes at once: 4, or fewer where 4 unpacked ones would fill more than 4 KiB."""
    if not needs_unpacking(weight):
        return 4
    return max(1, min(4, 4096 // (weight.codes[0].size * unpacked_bytes(weight))))


def routing_rows(outputs: int) -> int:
    """Input capsules that a routing to ``outputs`` capsules takes together: up to 8, while their scratch is small."""
    return max(1, min(8, 256 // outputs))


def workspace(op: Op, tensors: Tensors, proof: Proof) -> dict[str, int]:
    """Scratch of one op: purpose -> bytes.

    * ``filter`` (convolutions): the filters of :func:`filters_together` output channels, unpacked.
    * ``acc`` and ``row`` (dense votes): the accumulators of one input capsule's votes, and unpacked rows of G * D
      weights, for up to four input components.
    * ``acc``, ``coupling``, ``exponentials`` (routing): the accumulators of the weighted sum over all G * D, and the G
      coupling codes and G uint32 exponentials (several iterations only) of :func:`routing_rows` input capsules.
    """
    if isinstance(op, Convolution):
        size = op.weight.codes[0].size * unpacked_bytes(op.weight)
        return {"filter": filters_together(op.weight) * size} if needs_unpacking(op.weight) else {}
    if isinstance(op, DenseVotes):
        _, in_dim, votes = op.weight.shape
        widest = max(proof.find(op.name, f"acc:{source}").bytes for source in op.sources)
        row = {"row": min(in_dim, 4) * votes * unpacked_bytes(op.weight)} if needs_unpacking(op.weight) else {}
        return {"acc": votes * widest, **row}
    if isinstance(op, Routing):
        _, outputs, dim = tensors[op.votes].shape
        count = routing_rows(outputs) * outputs
        several = {"exponentials": 4 * count} if op.iterations > 1 else {}
        acc = outputs * dim * proof.find(op.name, "acc").bytes
        return {"acc": acc, "coupling": count * tensors[op.coupling].element_bytes, **several}
    return {}
