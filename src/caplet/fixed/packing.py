"""Codes packed bit by bit: n codes of b bits take exactly ceil(n * b / 8) bytes.

Layout (the C runtime and the ``.caplet`` file read the same): code i occupies the bits i*b .. i*b + b - 1 of the
stream, least significant first, and bit k of the stream is bit k % 8 of byte k // 8. Signed codes are stored in two's
complement. The unused high bits of the last byte are zero.
"""

import numpy as np
from numpy.typing import NDArray

from caplet.errors import PlanError
from caplet.fixed.format import MAX_BITS

_CHUNK = 1 << 16  # codes per pass, a multiple of 8 so that every chunk starts on a byte


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take.

    >>> packed_size(3, 3)
    2
    """
    return (count * bits + 7) // 8


def pack_bits(codes: NDArray[np.integer], bits: int, signed: bool) -> NDArray[np.uint8]:
    """Pack integer codes of any shape, in C order: uint8, shape (packed_size(codes.size, bits),).

    Raises PlanError when bits is outside 1..16 or a code does not fit.

    >>> pack_bits(np.array([1, -1, 3]), 3, signed=True)
    array([249,   0], dtype=uint8)
    """
    _check_bits(bits)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size:
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        least, most = int(flat.min()), int(flat.max())
        if least < low or most > high:
            kind = "signed" if signed else "unsigned"
            raise PlanError(f"pack_bits: codes span {least}..{most}, but {bits} {kind} bits hold {low}..{high}")
    if bits in (8, 16):
        return flat.astype("<u1" if bits == 8 else "<u2").view(np.uint8)
    packed = np.empty(packed_size(flat.size, bits), dtype=np.uint8)
    weights = np.arange(bits, dtype=np.uint16)
    for start in range(0, flat.size, _CHUNK):
        words = flat[start : start + _CHUNK].astype(np.uint16)
        planes = ((words[:, None] >> weights) & np.uint16(1)).astype(np.uint8)
        chunk = np.packbits(planes.reshape(-1), bitorder="little")
        packed[start * bits // 8 : start * bits // 8 + chunk.size] = chunk
    return packed


def unpack_bits(packed: NDArray[np.uint8], count: int, bits: int, signed: bool) -> NDArray[np.int32]:
    """Undo :func:`pack_bits`: int32, shape (count,).

    Raises PlanError when bits is outside 1..16, the length is not ``packed_size(count, bits)`` or an unused bit is set.

    >>> unpack_bits(np.array([249, 0], dtype=np.uint8), 3, 3, signed=True)
    array([ 1, -1,  3], dtype=int32)
    """
    _check_bits(bits)
    if packed.dtype != np.uint8 or packed.ndim != 1 or count < 0 or packed.size != packed_size(count, bits):
        raise PlanError(
            f"unpack_bits: found {packed.dtype} of shape {packed.shape}; {count} codes of {bits} bits are "
            f"uint8 of shape ({packed_size(max(count, 0), bits)},)"
        )
    spare = packed.size * 8 - count * bits
    if spare and int(packed[-1]) >> (8 - spare):
        raise PlanError(f"unpack_bits: the {spare} unused bits of the last byte must be zero; the data is damaged")
    words = np.empty(count, dtype=np.int32)
    if bits in (8, 16):
        words[:] = packed.view("<u1" if bits == 8 else "<u2")
    else:
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            raw = packed[start * bits // 8 : start * bits // 8 + packed_size(size, bits)]
            planes = np.unpackbits(raw, count=size * bits, bitorder="little").reshape(size, bits)
            words[start : start + size] = planes @ (1 << np.arange(bits, dtype=np.int32))
    if signed:
        sign = np.int32(1 << (bits - 1))
        words ^= sign
        words -= sign
    return words


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise PlanError(f"packing: bits is {bits}; the rule is 1..{MAX_BITS}")
