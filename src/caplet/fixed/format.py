"""What a number is: fixed-point formats, and for weights signed powers of two and one exponent per output channel.

Every format turns real numbers into integer codes and back, on numpy arrays or torch tensors alike (array API).
The first two kinds also say what the device multiplies with: ``value = integers(codes) * 2**-frac_bits``.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_namespace

from caplet.errors import ModelError, PlanError
from caplet.fixed.rounding import Array, Rounding

MAX_BITS = 16
MAX_FRAC_BITS = 64
MAX_LOG_BITS = 5
SHIFT_BITS = 4
"""Bits that one output channel's shift takes in the memory count; shifts are 0 .. 2**SHIFT_BITS - 1."""


def _as_real(x: Array) -> tuple[Array, Any]:
    """``x`` as a float32/float64 array and its namespace; Python numbers become float64. Raises ModelError on NaN."""
    if isinstance(x, int | float | list | tuple):
        x = np.asarray(x, dtype=np.float64)
    xp = array_namespace(x)
    if x.dtype not in (xp.float32, xp.float64):
        x = xp.astype(x, xp.float64 if is_numpy_namespace(xp) else xp.float32)
    # max() propagates NaN, and reads the data once without a temporary.
    if 0 not in x.shape and bool(xp.isnan(xp.max(x))):
        raise ModelError(f"cannot encode NaN: a tensor of shape {tuple(x.shape)} has some; find where they arose")
    return x, xp


def _require_int(owner: str, name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanError(f"{owner}: {name} is {value!r}; the rule is an integer from {low} to {high}")


class _Format:
    """What all formats have: plain data (their kind and their fields), and real numbers to codes and back."""

    kind: ClassVar[str]

    @property
    def step(self) -> float:
        """The value of one code step; of powers of two, the smallest magnitude other than zero."""
        raise NotImplementedError

    def encode(self, x: Array, rounding: Rounding = Rounding.NEAREST, noise: Array = None) -> Array:
        """Real numbers -> codes: int32, x's shape and kind; values outside the range saturate, infinities too.

        Exact: the result is the rounded true value of each float, with no double rounding. noise: for stochastic
        rounding, integers in [0, 2**32) that broadcast against x. Raises ModelError when x holds NaN; PlanError for a
        rounding that the format does not have, or for other channels than it has.
        """
        codes, xp, _ = self._rounded(x, rounding, noise)
        return xp.astype(codes, xp.int32)

    def quantize(self, x: Array, rounding: Rounding = Rounding.NEAREST, noise: Array = None) -> Array:
        """The representable value that ``encode`` chooses, in x's own float dtype: ``decode(encode(x))``."""
        codes, xp, dtype = self._rounded(x, rounding, noise)
        values = xp.astype(self.integers(codes), dtype, copy=False)
        values *= self.step  # in place: large tensors are limited by memory traffic
        return values

    def decode(self, codes: Array) -> Array:
        """Codes -> values: float32 for torch tensors, float64 for numpy arrays. Exact for every code."""
        xp = array_namespace(codes)
        return xp.astype(self.integers(codes), xp.float64 if is_numpy_namespace(xp) else xp.float32) * self.step

    def integers(self, codes: Array) -> Array:
        """The integers that the device multiplies with; ``value = integers(codes) * 2**-frac_bits``."""
        return codes

    def _rounded(self, x: Array, rounding: Rounding, noise: Array) -> tuple[Array, Any, Any]:
        """The codes of x, a new array of integers or floats; namespace and float dtype of x."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]  # a dataclass
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"kind": self.kind, **plain}


@dataclass(frozen=True)
class _TwosComplement(_Format):
    """Codes in two's complement, ``code * 2**-frac_bits`` (for a format with shifts, of a channel with shift 0)."""

    bits: int
    frac_bits: int
    signed: bool

    def __post_init__(self) -> None:
        owner = type(self).__name__
        _require_int(owner, "bits", self.bits, 1, MAX_BITS)
        _require_int(owner, "frac_bits", self.frac_bits, -MAX_FRAC_BITS, MAX_FRAC_BITS)
        if not isinstance(self.signed, bool):
            raise PlanError(f"{owner}: signed is {self.signed!r}; the rule is true or false")

    @property
    def min_code(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max_code(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def step(self) -> float:
        return 2.0**-self.frac_bits

    @property
    def min_value(self) -> float:
        return self.min_code * self.step

    @property
    def max_value(self) -> float:
        return self.max_code * self.step


@dataclass(frozen=True)
class FixedFormat(_TwosComplement):
    """Two's complement fixed point: ``value = code * 2**-frac_bits``.

    bits: 1..16, the sign included; a signed format of 1 bit holds the codes -1 and 0.
    frac_bits: -64..64; may be negative or exceed bits.
    Raises PlanError when a field is out of range.

    >>> FixedFormat(8, 5, True).encode([-9.0, 0.1, 0.109375, 9.0])
    array([-128,    3,    4,  127], dtype=int32)
    """

    kind: ClassVar[str] = "fixed"

    def saturate(self, integers: Array) -> Array:
        """Clip integers of any width to the range of codes; dtype kept."""
        return array_namespace(integers).clip(integers, self.min_code, self.max_code)

    def _rounded(self, x: Array, rounding: Rounding, noise: Array) -> tuple[Array, Any, Any]:
        x, xp = _as_real(x)
        if rounding is Rounding.NEAREST:
            # floor(y + 1/2) written as floor((floor(2y) + 1) / 2): y + 1/2 itself rounds up just below one half.
            codes = xp.floor(x * 2.0 ** (self.frac_bits + 1))
            codes += 1.0
            codes *= 0.5
            codes = xp.floor(codes)
        elif rounding is Rounding.TRUNCATE:
            codes = xp.floor(x * 2.0**self.frac_bits)
        else:
            if noise is None:
                raise PlanError("stochastic rounding: no noise was given; pass stochastic_noise(seed, key, count)")
            # y + noise / 2**32 >= floor(y) + 1; within the clip, the right side below is exact in float64.
            y = xp.clip(xp.astype(x, xp.float64) * 2.0**self.frac_bits, -(2.0**17), 2.0**17)
            above = xp.floor(y) + 1.0
            up = y >= above - xp.astype(noise, xp.float64) * 2.0**-32
            codes = xp.astype(xp.where(up, above, above - 1.0), x.dtype)
        return xp.clip(codes, float(self.min_code), float(self.max_code)), xp, x.dtype


@dataclass(frozen=True)
class LogFormat(_Format):
    """Signed powers of two ("log2" weights): code 0 is zero, codes +-m are ``+-2**(max_exponent - (m - 1))``.

    A number gets the code that is nearest in value, of two the one away from zero; there is no other rounding.

    bits: 2..5, the sign included, so m = 1 .. 2**(bits-1) - 1 and code 1 is the largest magnitude. Five bits already
    span 15 octaves; more would not fit the 16-bit integers that the device multiplies with.
    max_exponent: -64..64. Raises PlanError when a field is out of range.

    >>> LogFormat(3, 0).encode([0.0, 1.0, -0.5, 0.25, 0.7, 0.12])
    array([ 0,  1, -2,  3,  2,  0], dtype=int32)
    """

    kind: ClassVar[str] = "log2"
    signed: ClassVar[bool] = True

    bits: int
    max_exponent: int

    def __post_init__(self) -> None:
        _require_int("LogFormat", "bits", self.bits, 2, MAX_LOG_BITS)
        _require_int("LogFormat", "max_exponent", self.max_exponent, -MAX_FRAC_BITS, MAX_FRAC_BITS)

    @property
    def max_code(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def min_code(self) -> int:
        return -self.max_code

    @property
    def frac_bits(self) -> int:
        """Fraction bits of ``integers``: the smallest magnitude is ``2**-frac_bits``."""
        return self.max_code - 1 - self.max_exponent

    @property
    def step(self) -> float:
        return 2.0**-self.frac_bits

    @property
    def max_value(self) -> float:
        return 2.0**self.max_exponent

    @property
    def min_value(self) -> float:
        return -self.max_value

    def integers(self, codes: Array) -> Array:
        """``+-2**(max_code - m)`` for code +-m and 0 for code 0: integers of at most 16 bits, codes' dtype.

        ``value = integers(codes) * 2**-frac_bits``, so a multiplication by a weight is a shift on the device.
        """
        xp = array_namespace(codes)
        magnitude = xp.abs(codes)
        power = xp.ones_like(codes) << (self.max_code - xp.clip(magnitude, 1, None))
        return xp.sign(codes) * power

    def _rounded(self, x: Array, rounding: Rounding, noise: Array) -> tuple[Array, Any, Any]:
        if rounding is not Rounding.NEAREST:
            raise PlanError(f"LogFormat: rounding {rounding!s} is not defined for powers of two; use nearest")
        x, xp = _as_real(x)
        count = self.max_code
        low = self.max_exponent - count + 1
        # Ascending midpoints between neighbouring magnitudes: 2**low / 2, then 0.75 * 2**e. Exact in float32.
        midpoints = [2.0 ** (low - 1)] + [0.75 * 2.0**e for e in range(low + 1, self.max_exponent + 1)]
        edges = xp.asarray(midpoints, dtype=x.dtype, device=device(x))
        magnitude = xp.abs(x)
        if not is_numpy_namespace(xp):
            magnitude = magnitude.contiguous()  # torch's search copies, and warns, otherwise
        passed = xp.searchsorted(edges, magnitude, side="right")
        magnitude = xp.where(passed == 0, xp.zeros_like(passed), count + 1 - passed)
        return xp.where(x < 0, -magnitude, magnitude), xp, x.dtype


@dataclass(frozen=True)
class ChannelFormat(_TwosComplement):
    """Fixed point with an exponent per output channel: ``value = code * 2**-(frac_bits + shifts[channel])``.

    For weights: the device adds a channel's shift where it rounds that channel's sum. Codes, rounding and saturation
    are those of :attr:`base` on values scaled by ``2**shifts[channel]``.

    bits, frac_bits, signed: as :class:`FixedFormat`, of a channel with shift 0.
    shifts: one integer from 0 to 15 per output channel.
    axis: the axis of the tensor that counts output channels.
    Raises PlanError when a field is out of range.

    >>> ChannelFormat(3, 1, True, (0, 2), 0).quantize(np.array([[1.1, 9.0], [0.3, 9.0]])).tolist()
    [[1.0, 1.5], [0.25, 0.375]]
    """

    kind: ClassVar[str] = "channels"

    shifts: tuple[int, ...]
    axis: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_int("ChannelFormat", "axis", self.axis, 0, 7)
        if not isinstance(self.shifts, tuple) or not self.shifts:
            rule = "a list of integers, one per output channel"
            raise PlanError(f"ChannelFormat: shifts are {self.shifts!r:.100}; the rule is {rule}")
        for shift in self.shifts:
            _require_int("ChannelFormat", "a shift", shift, 0, (1 << SHIFT_BITS) - 1)

    @property
    def base(self) -> FixedFormat:
        return FixedFormat(self.bits, self.frac_bits, self.signed)

    @property
    def shift_bits(self) -> int:
        """Bits that the shifts take in memory."""
        return SHIFT_BITS * len(self.shifts)

    def quantize(self, x: Array, rounding: Rounding = Rounding.NEAREST, noise: Array = None) -> Array:
        return self._scaled(super().quantize(x, rounding, noise), -1)

    def decode(self, codes: Array) -> Array:
        return self._scaled(super().decode(codes), -1)

    def _rounded(self, x: Array, rounding: Rounding, noise: Array) -> tuple[Array, Any, Any]:
        return self.base._rounded(self._scaled(x, 1), rounding, noise)

    def _scaled(self, x: Array, sign: int) -> Array:
        """``x * 2**(sign * shift)`` of each channel: exact."""
        if x.ndim <= self.axis or x.shape[self.axis] != len(self.shifts):
            expected = f"{len(self.shifts)} channels on axis {self.axis}"
            raise PlanError(f"ChannelFormat: a tensor of shape {tuple(x.shape)}; the rule is {expected}")
        xp = array_namespace(x)
        factors = xp.asarray([2.0 ** (sign * shift) for shift in self.shifts], dtype=x.dtype, device=device(x))
        return x * xp.reshape(factors, (-1,) + (1,) * (x.ndim - self.axis - 1))


AnyFormat = FixedFormat | LogFormat
"""A format in which one exponent holds for a whole tensor: what tensors and constants of a Program have."""
PlanFormat = FixedFormat | LogFormat | ChannelFormat
"""What a plan can give to a point."""
_KINDS: dict[str, type[PlanFormat]] = {kind.kind: kind for kind in (FixedFormat, LogFormat, ChannelFormat)}


def format_from_json(data: object) -> PlanFormat:
    """Read what ``to_json`` of any format wrote; the field ``kind`` says which. Raises PlanError otherwise."""
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str) or data["kind"] not in _KINDS:
        raise PlanError(f"format: found {data!r:.200}; the rule is an object whose kind is one of {sorted(_KINDS)}")
    kind = _KINDS[data["kind"]]
    names = [item.name for item in fields(kind)]
    if set(data) != {"kind", *names}:
        raise PlanError(f"format: found {data!r:.200}; a {kind.kind} format has exactly the fields kind, {names}")
    values: dict[str, Any] = {name: tuple(data[name]) if isinstance(data[name], list) else data[name] for name in names}
    return kind(**values)
