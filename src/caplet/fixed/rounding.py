"""The one rounding shift: every requantization in caplet, in Python and in C, goes through it.

All functions take numpy arrays or torch tensors (array API) and return the same kind. Arithmetic is two's complement;
``>>`` is the arithmetic shift, that is, division by a power of two rounded to minus infinity.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from caplet.errors import PlanError

Array = Any
"""A numpy array or a torch tensor; the array API has no common base class to name here."""

_MASK32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193


class Rounding(StrEnum):
    """How a value between two codes is resolved.

    ``carry`` rounds to nearest, and carries what that takes away from a vote on to the next input capsule's: see
    :func:`carried_shift`. All other tensors are then rounded to nearest.
    """

    NEAREST = "nearest"
    TRUNCATE = "truncate"
    STOCHASTIC = "stochastic"
    CARRY = "carry"

    @property
    def alone(self) -> "Rounding":
        """How a value is rounded that has no next one to carry to."""
        return Rounding.NEAREST if self is Rounding.CARRY else self


def rounding_shift(acc: Array, shift: int | Array, mode: Rounding = Rounding.NEAREST, noise: Array = None) -> Array:
    """Divide integers by ``2**shift``, rounded by ``mode``; a negative shift is an exact multiplication.

    * nearest, half up: ``(acc + 2**(shift - 1)) >> shift``
    * truncate (floor): ``acc >> shift``
    * stochastic: ``(acc + r) >> shift`` where r is the top ``shift`` bits of the element's 32 random bits
      (``noise >> (32 - shift)``, or ``noise << (shift - 32)`` beyond 32)

    acc: int32 or int64, any shape. The caller guarantees that ``acc`` plus the rounding term, and a left-shifted
    ``acc``, fit the dtype (``caplet.program.verify`` proves it for a Program).
    shift: one integer, or an integer array of acc's kind and dtype that broadcasts against acc.
    noise: only for stochastic: integers in [0, 2**32), broadcasting against acc; int64 where acc is a torch tensor.
    Returns the dtype of ``acc`` (int64 for stochastic, whose sum needs up to 33 bits on the way).
    Raises PlanError when the mode is stochastic and there is no noise.

    >>> rounding_shift(np.array([-3, -2, -1, 1, 2, 3]), 1)
    array([-1, -1,  0,  1,  1,  2])
    """
    if mode is Rounding.STOCHASTIC:
        return _stochastic_shift(acc, shift, noise)
    if isinstance(shift, int):
        if shift <= 0:
            return acc if shift == 0 else acc << -shift
        return (acc + (1 << (shift - 1))) >> shift if mode is Rounding.NEAREST else acc >> shift
    xp = array_namespace(acc)
    right = xp.clip(shift, 0, None)
    lifted = acc << xp.clip(-shift, 0, None)
    if mode is Rounding.NEAREST:
        lifted = lifted + ((xp.ones_like(right) << right) >> 1)
    return lifted >> right


def carried_shift(acc: Array, shift: int | Array, axis: int) -> Array:
    """Divide integers by ``2**shift``, rounded so that sums along ``axis`` stay within half a code of the exact ones.

    Element i is ``R(s[i]) - R(s[i - 1])`` with s the running sums and R rounding to nearest: what rounding takes away
    from one element is carried on to the next. Of sums of many elements with slowly changing weights, as in routing,
    most of the rounding error cancels, and many small elements do not vanish.

    acc: int64, any shape. shift: as for :func:`rounding_shift`, the same along ``axis``. The caller guarantees that
    running sums fit. Returns int64.

    Source: error feedback is common in audio (noise shaping) and printing (Floyd and Steinberg 1976); its use for votes
    is caplet's.

    >>> carried_shift(np.array([1, 1, 1, 1, -3]), 2, 0)
    array([ 0,  1,  0,  0, -1])
    """
    xp = array_namespace(acc)
    rounded = rounding_shift(xp.cumulative_sum(acc, axis=axis), shift)
    first = (slice(None),) * (axis % acc.ndim)
    return xp.concat([rounded[*first, :1], rounded[*first, 1:] - rounded[*first, :-1]], axis=axis)


def _stochastic_shift(acc: Array, shift: int | Array, noise: Array) -> Array:
    if noise is None:
        raise PlanError("stochastic rounding: no noise was given; pass stochastic_noise(seed, key, count)")
    xp = array_namespace(acc)
    wide = xp.astype(acc, xp.int64)
    bits = xp.astype(noise, xp.int64)
    if isinstance(shift, int):
        shift = xp.asarray(shift, dtype=xp.int64)
    shift = xp.astype(shift, xp.int64)
    right = xp.clip(shift, 0, None)
    # Each of the two shifts of the noise is 0 where the other one acts; a shift of 0 leaves noise >> 32 = 0.
    term = (bits >> xp.clip(32 - right, 0, None)) << xp.clip(right - 32, 0, None)
    return ((wide << xp.clip(-shift, 0, None)) + term) >> right


def fnv1a32(text: str) -> int:
    """The 32-bit FNV-1a hash of the UTF-8 bytes of ``text`` (Fowler, Noll, Vo).

    >>> hex(fnv1a32("a"))
    '0xe40c292c'
    """
    value = _FNV_OFFSET
    for byte in text.encode("utf-8"):
        value = ((value ^ byte) * _FNV_PRIME) & _MASK32
    return value


def _mix32(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The finalizer of MurmurHash3 (Appleby): a bijection of uint32 in which every input bit stirs every output bit."""
    value = value ^ (value >> np.uint32(16))
    value = value * np.uint32(0x85EBCA6B)
    value = value ^ (value >> np.uint32(13))
    value = value * np.uint32(0xC2B2AE35)
    value = value ^ (value >> np.uint32(16))
    return value


def noise_keys(seed: int, point_key: str) -> tuple[int, int]:
    """The two uint32 constants from which the noise of one tensor is drawn; C code receives just these.

    With k the FNV-1a hash of the key and m the MurmurHash3 finalizer, they are ``m(seed ^ k)`` and
    ``m(seed + 0x9E3779B9 * (k | 1))`` modulo 2**32. Raises PlanError unless 0 <= seed < 2**32.
    """
    if not 0 <= seed <= _MASK32:
        raise PlanError(f"stochastic rounding: seed {seed} is outside 0 .. 2**32 - 1; choose a 32-bit seed")
    key = fnv1a32(point_key)
    raw = np.array([seed ^ key, (seed + _GOLDEN * (key | 1)) & _MASK32], dtype=np.uint32)
    first, second = _mix32(raw).tolist()
    return first, second


def stochastic_noise(seed: int, point_key: str, count: int, first: int = 0) -> NDArray[np.uint32]:
    """32 random bits for each of ``count`` elements of one image's tensor: uint32, shape (count,).

    ``noise[j] = m(m(i + a) ^ b)`` modulo 2**32 with i = first + j, (a, b) = ``noise_keys(seed, point_key)`` and m the
    MurmurHash3 finalizer: a counter-based generator, so any element is drawn alone, in any order, with uint32
    arithmetic only. The element counts within one image's tensor in the tensor's own layout; all images of a batch
    share the draw, so results never depend on the batch.

    On floats the same rounding is ``floor(x * 2**frac_bits + noise / 2**32)``.
    """
    a, b = noise_keys(seed, point_key)
    index = (np.arange(first, first + count, dtype=np.int64) & _MASK32).astype(np.uint32)
    return _mix32(_mix32(index + np.uint32(a)) ^ np.uint32(b))
