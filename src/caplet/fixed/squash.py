"""Squash in integers: v = s * |s| / (1 + |s|**2), one square root and one reciprocal per capsule.

The algorithm, for one capsule of D codes x_1 .. x_D in the format (bits, f), and an output format (bits2, f2):

1. ``q = x_1**2 + ... + x_D**2`` (below 2**38; uint32 suffices where D * max(|code|)**2 < 2**32, else uint64).
   q = 0 gives zeros.
2. With ``a = max(-f, 0)`` and ``F = max(f, 0)``: ``Q = q << 2a``, ``den = Q + (1 << 2F)``; both below 2**62 (uint64).
3. ``k = (62 - bit_length(Q)) >> 1``, ``r = isqrt(Q << 2k)``: r in [2**30, 2**31).
4. ``j = bit_length(den) - 31``; ``dn = den >> j`` (``den << -j`` for negative j): dn in [2**30, 2**31).
5. ``mult = (r << 30) // dn``: in (2**29, 2**31), the one division (uint64 / uint32).
6. ``shift = min(30 + k + j - a - f2, 62)``; at least 5 by the limits on f2.
7. ``v_d = rounding_shift(x_d * mult, shift)``: a 17 x 31 bit product (int64, below 2**47), saturated to the output.

Before the last rounding the relative error of v lies between -(2**-29 + 2**-30) (steps 5 and 3 round down) and 2**-30
(step 4 rounds the divisor down): below 2**-13 of a code at 16 bits and 2**-21 at 8 bits. The result therefore equals
the correctly rounded squash except where that lies closer to a rounding boundary than this, and then it is one code
off.
"""

from array_api_compat import array_namespace

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat
from caplet.fixed.integer import bit_length, in_blocks, isqrt, squared_length
from caplet.fixed.rounding import Array, Rounding, rounding_shift

MAX_DIMS = 64
MAX_SHIFT = 62


def check_squash_formats(fmt: FixedFormat, out: FixedFormat, dims: int) -> None:
    """Raise PlanError unless :func:`squash` accepts these formats and this number of dimensions."""
    if not 1 <= dims <= MAX_DIMS:
        raise PlanError(f"squash: capsules of {dims} dimensions; the rule is 1..{MAX_DIMS}")
    largest = max(-fmt.min_code, fmt.max_code)
    wide = (dims * largest * largest).bit_length() + 2 * max(-fmt.frac_bits, 0)
    if wide > 61 or fmt.frac_bits > 30:
        raise PlanError(
            f"squash: input format {fmt} with {dims} dimensions; the rule is frac_bits <= 30 and a sum of squares, in "
            f"units of one, below 2**61 (found {wide} bits)"
        )
    if not 0 <= out.frac_bits <= 24:
        raise PlanError(f"squash: output format {out}; the rule is frac_bits from 0 to 24, as |v| < 1")


def squash_factor(q: Array, frac_bits: int, out_frac_bits: int) -> tuple[Array, Array]:
    """Steps 2 to 6: the factor of a capsule, ``mult * 2**-shift = 2**(f2 - f) * |s| / (1 + |s|**2)``.

    q: squared lengths in codes, int64, any shape, within the limits of :func:`check_squash_formats`.
    Returns int64 arrays (mult, shift) of q's shape; for q = 0 those of q = 1.
    """
    xp = array_namespace(q)
    up = max(-frac_bits, 0)
    units = xp.clip(q, 1, None) << (2 * up)
    den = units + (1 << (2 * max(frac_bits, 0)))
    k = (62 - bit_length(units)) >> 1
    r = isqrt(units << (2 * k))
    j = bit_length(den) - 31
    dn = (den >> xp.clip(j, 0, None)) << xp.clip(-j, 0, None)
    return (r << 30) // dn, xp.clip(30 + k + j - up - out_frac_bits, None, MAX_SHIFT)


def squash(
    codes: Array, fmt: FixedFormat, out: FixedFormat, rounding: Rounding = Rounding.NEAREST, noise: Array = None
) -> Array:
    """Squash the last axis of capsule codes, by the algorithm of this module.

    codes: int32 codes of ``fmt``, shape (..., D), D = 1..64. noise: for stochastic rounding, broadcasts against codes.
    Returns int32 codes of ``out``, codes' shape and kind. Raises PlanError as :func:`check_squash_formats` does.
    Source: Sabour et al. 2017, equation 1, in the form that divides |s|**2 out of s / |s|.

    >>> import numpy as np
    >>> squash(np.array([[0, 0], [3, 4]]), FixedFormat(8, 0, True), FixedFormat(8, 7, True))
    array([[ 0,  0],
           [74, 98]], dtype=int32)
    """
    check_squash_formats(fmt, out, codes.shape[-1])
    xp = array_namespace(codes)

    def block(x: Array, draw: Array) -> Array:
        wide = xp.astype(x, xp.int64)
        mult, shift = squash_factor(squared_length(wide), fmt.frac_bits, out.frac_bits)
        v = rounding_shift(wide * mult[..., None], shift[..., None], rounding, draw)
        return xp.astype(out.saturate(v), xp.int32)

    return in_blocks(block, codes, noise)
