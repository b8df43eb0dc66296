"""Coupling coefficients: a softmax in integers, with one reciprocal per input capsule.

The algorithm, for the logits x_1 .. x_G of one input capsule, in the format (bits, f), with S = ``sum_bits(G)``:

1. ``d_g = max(x) - x_g``; 0 <= d < 2**16.
2. ``e_g = EXP(d_g)``, the value exp(-d * 2**-f) with S fraction bits (uint32, at most 2**S):
   a. ``p = d * 47274`` (uint32; 47274 = round(log2(e) * 2**15)).
   b. t = the exponent with 20 fraction bits: for f >= 5, ``t = min(p >> min(f - 5, 31), 2**25)``; for f < 5, with
      ``s = min(5 - f, 25)``, ``t = min(p, 2**25 >> s) << s``.
   c. ``n = t >> 20``, ``i = (t >> 13) & 127``, ``w = t & 8191``.
   d. ``y = T[i] - (((T[i] - T[i + 1]) * w + 4096) >> 13)`` with ``T[i] = round(2**24 * 2**(-i/128))``, i = 0..128
      (uint32; the product stays below 2**30).
   e. ``e = (y + half) >> (n + 24 - S)``, half = half of the divisor, or 0 where the shift is 0; 0 where n = 32.
3. ``sum = e_1 + ... + e_G`` in [2**S, 2**31].
4. ``R = floor(2**(S + 31) / sum)`` (at most 2**31): the one division.
5. ``c_g = rounding_shift(e_g * R, S + 31 - out.frac_bits)`` with a uint32 x uint32 -> uint64 product (at most
   2**55), saturated to the output format.

Error before the last rounding, for G <= 4096: at most 2**-15 + G * 2**-S in value; against the correctly rounded
softmax that is within one code for every output of at most 8 fraction bits, any logits format. Equal logits give
exactly the rounded 1 / G: R is then below 2**(S + 31) / (G * 2**S) by less than one part in 2**18, and 2**frac / G is
either a power of two (exact) or further than that from a rounding boundary.
"""

from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat
from caplet.fixed.integer import in_blocks
from caplet.fixed.rounding import Array, Rounding, rounding_shift

MAX_OUTPUTS = 4096
"""The largest number of output capsules that one softmax spans."""

LOG2_E_Q15 = 47274
EXP2_TABLE: NDArray[np.uint32] = np.floor(2.0**24 * np.exp2(-np.arange(129) / 128) + 0.5).astype(np.uint32)
"""``round(2**24 * 2**(-i/128))`` for i = 0..128."""


def sum_bits(outputs: int) -> int:
    """Fraction bits S of the exponentials: the most, up to 24, such that ``outputs`` of them sum to at most 2**31.

    >>> sum_bits(10), sum_bits(128), sum_bits(129), sum_bits(4096)
    (24, 24, 23, 19)
    """
    if not 1 <= outputs <= MAX_OUTPUTS:
        raise PlanError(f"softmax: {outputs} output capsules; the rule is 1..{MAX_OUTPUTS}")
    return min(24, 31 - (outputs - 1).bit_length())


def negative_exponential(distance: NDArray[np.integer], frac_bits: int, scale_bits: int) -> NDArray[np.int64]:
    """Step 2: exp(-d * 2**-frac_bits) with ``scale_bits`` (at most 24) fraction bits.

    distance: integers d in [0, 2**16), any shape. Returns int64 in [0, 2**scale_bits], same shape.

    >>> negative_exponential(np.array([0, 1, 100]), 0, 24).tolist()
    [16777216, 6172043, 0]
    """
    p = distance.astype(np.int64) * LOG2_E_Q15
    if frac_bits >= 5:
        t = np.minimum(p >> min(frac_bits - 5, 31), 1 << 25)
    else:
        s = min(5 - frac_bits, 25)
        t = np.minimum(p, (1 << 25) >> s) << s
    table = EXP2_TABLE.astype(np.int64)
    i = (t >> 13) & 127
    y = table[i] - (((table[i] - table[i + 1]) * (t & 8191) + 4096) >> 13)
    shift = (t >> 20) + (24 - scale_bits)
    return np.where(t >> 20 >= 32, 0, (y + ((np.int64(1) << shift) >> 1)) >> shift)


@lru_cache(maxsize=64)
def _exponentials(bits: int, frac_bits: int, scale_bits: int) -> NDArray[np.int32]:
    """Step 2 for every distance that logits of ``bits`` bits can have; the fast path looks them up."""
    return negative_exponential(np.arange(1 << bits), frac_bits, scale_bits).astype(np.int32)


def check_coupling_formats(logits: FixedFormat, coupling: FixedFormat) -> None:
    """Raise PlanError unless the formats are ones that :func:`softmax` accepts."""
    if coupling.signed or not 0 <= coupling.frac_bits <= 16:
        raise PlanError(f"softmax: coupling format {coupling}; the rule is unsigned with frac_bits from 0 to 16")
    if not isinstance(logits, FixedFormat):
        raise PlanError(f"softmax: logits format {logits!r}; the rule is a FixedFormat")


def softmax(
    logits: Array,
    fmt: FixedFormat,
    out: FixedFormat,
    axis: int = -1,
    rounding: Rounding = Rounding.NEAREST,
    noise: Array = None,
) -> Array:
    """Coupling codes of logit codes, by the algorithm of this module.

    logits: int32 codes of ``fmt`` (1..16 bits, any frac_bits), shape (..., G at ``axis``, ...), G <= 4096.
    out: an unsigned format with 0..16 fraction bits. noise: for stochastic rounding, broadcasts against logits.
    Returns int32 codes of ``out``, logits' shape and kind. The softmax axis must not be the first one when there is
    more than one axis. Raises PlanError when a format or G is out of range.

    >>> softmax(np.array([3, 3, 3]), FixedFormat(8, 4, True), FixedFormat(8, 8, False))
    array([85, 85, 85], dtype=int32)
    """
    check_coupling_formats(fmt, out)
    if logits.ndim > 1 and axis % logits.ndim == 0:
        raise PlanError("softmax: the axis is the first of several; move the batch axis to the front")
    xp = array_namespace(logits)
    scale = sum_bits(logits.shape[axis])
    table = xp.asarray(_exponentials(fmt.bits, fmt.frac_bits, scale), device=device(logits))

    def block(codes: Array, draw: Array) -> Array:
        distance = xp.max(codes, axis=axis, keepdims=True) - codes
        exponentials = xp.astype(xp.take(table, xp.reshape(distance, (-1,)), axis=0), xp.int64)
        exponentials = xp.reshape(exponentials, codes.shape)
        total = xp.sum(exponentials, axis=axis, keepdims=True)
        reciprocal = (xp.ones_like(total) << (scale + 31)) // total
        coupling = rounding_shift(exponentials * reciprocal, scale + 31 - out.frac_bits, rounding, draw)
        return xp.astype(out.saturate(coupling), xp.int32)

    return in_blocks(block, logits, noise)


def uniform_coupling(outputs: int, out: FixedFormat, rounding: Rounding = Rounding.NEAREST) -> int:
    """The coupling code of equal logits: 1 / outputs, rounded (nearest or truncate) and saturated.

    >>> uniform_coupling(10, FixedFormat(8, 8, False))
    26
    """
    zeros = np.zeros(outputs, dtype=np.int32)
    return int(softmax(zeros, FixedFormat(1, 0, True), out, rounding=rounding)[0])
