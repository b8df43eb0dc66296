"""Integer helpers on arrays: bit length, square root, squared length. numpy arrays or torch tensors (array API)."""

from collections.abc import Callable
from math import prod

from array_api_compat import array_namespace

from caplet.fixed.rounding import Array

_BLOCK = 1 << 18


def bit_length(n: Array) -> Array:
    """``int.bit_length`` of every element: n int64 in [0, 2**62) -> int64, same shape.

    >>> import numpy as np
    >>> bit_length(np.array([0, 1, 2, 3, 4, 2**61 - 1, 2**61]))
    array([ 0,  1,  2,  2,  3, 61, 62])
    """
    xp = array_namespace(n)
    guess = xp.astype(xp.floor(xp.log2(xp.astype(xp.clip(n, 1, None), xp.float64))), xp.int64)
    # The float logarithm can be one off on either side of a power of two; the integers decide.
    one = xp.ones_like(n)
    guess = guess - xp.astype((one << guess) > n, xp.int64)
    guess = xp.clip(guess, 0, None)
    guess = guess + xp.astype((one << (guess + 1)) <= n, xp.int64)
    return xp.where(n == 0, xp.zeros_like(n), guess + 1)


def isqrt(n: Array) -> Array:
    """Floor of the square root, exact: n int64 in [0, 2**62) -> int64 in [0, 2**31), same shape.

    The float64 square root is within one of the answer over this range (the root is below 2**31, both roundings are
    below 2**-52 relative), and integer comparisons settle it. C computes the same function bit by bit.

    >>> import numpy as np
    >>> isqrt(np.array([0, 1, 15, 16, 2**62 - 1]))
    array([         0,          1,          3,          4, 2147483647])
    """
    xp = array_namespace(n)
    root = xp.astype(xp.floor(xp.sqrt(xp.astype(n, xp.float64))), xp.int64)
    root = xp.clip(root, 0, (1 << 31) - 1)
    root = root - xp.astype(root * root > n, xp.int64)
    # (root + 1)**2 <= 2**62 still fits; at root + 1 == 2**31 it exceeds every n, so the step is never taken there.
    return root + xp.astype((root + 1) * (root + 1) <= n, xp.int64)


def squared_length(codes: Array) -> Array:
    """Sum of squares over the last axis: codes of at most 16 bits, shape (..., D), D <= 64 -> int64, shape (...).

    Below 2**38, so exact. In the codes' format the value is ``result * 2**(-2 * frac_bits)``.
    """
    xp = array_namespace(codes)
    if codes.dtype == xp.int32:
        # Each square is below 2**32 (16 unsigned bits), hence int64 before squaring.
        codes = xp.astype(codes, xp.int64)
    return xp.sum(codes * codes, axis=-1)


def in_blocks(function: Callable[..., Array], codes: Array, noise: Array) -> Array:
    """``function(codes, noise)`` along the first axis in cache-sized blocks; function must treat that axis as a batch.

    noise is None, or broadcasts against codes; it is cut along with codes only where it has that axis in full.
    """
    step = max(1, _BLOCK // max(1, prod(codes.shape[1:])))
    if codes.ndim < 2 or codes.shape[0] <= step:
        return function(codes, noise)
    per_row = noise is not None and noise.ndim == codes.ndim and noise.shape[0] == codes.shape[0]
    rows = [slice(start, start + step) for start in range(0, codes.shape[0], step)]
    parts = [function(codes[part], noise[part] if per_row else noise) for part in rows]
    return array_namespace(codes).concat(parts, axis=0)
