"""How a width becomes a format: the rules by which a point's exponent is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from caplet.errors import PlanError
from caplet.fixed import AnyFormat, FixedFormat, LogFormat, Rounding
from caplet.fixed.format import MAX_BITS, MAX_LOG_BITS
from caplet.nn.points import PointSpec, Role, Storage
from caplet.quant.choices import Exponents
from caplet.quant.plan.histogram import Histogram, fixed_error, log_error

MIN_FRAC_BITS, MAX_FRAC_BITS = -12, 30
"""Exponents that are tried: what the integer squash accepts at any width and dimension."""
_OCTAVES = 14
CONSTANT_BITS = 8
"""Least bits of biases and batch-norm constants: they are few (about one in ten thousand of ShallowCaps' parameters),
but each of them shifts a whole output channel, so that narrow ones cost more accuracy than memory."""


@dataclass(frozen=True)
class FormatRule:
    """How widths become formats.

    Attributes:
        exponents: the rule for fixed-point formats.
        log2_weights: weights are signed powers of two (2 to 5 bits; wider widths count as 5). Biases, batch-norm
            constants and computed tensors stay fixed-point.
    """

    exponents: Exponents = Exponents.BOUND
    log2_weights: bool = False


class FormatSource(Protocol):
    """What turns the width of a point into a format: a calibration, or a tuner on top of one."""

    def format(
        self, key: str, width: int, rule: FormatRule | None = None, rounding: Rounding = Rounding.NEAREST
    ) -> AnyFormat:
        """The format of point ``key`` at ``width`` bits."""
        ...


def bits_of(spec: PointSpec, width: int, rule: FormatRule) -> int:
    """The bits that a point really gets when its width is set to ``width``.

    Signed computed tensors have at least 2 bits (1 bit would hold no positive value); powers of two have 2 to 5.
    Biases and batch-norm constants have at least :data:`CONSTANT_BITS`, but with the paper's formats the width itself.

    Raises:
        PlanError: the width is outside 1..16.
    """
    if not 1 <= width <= MAX_BITS:
        raise PlanError(f"point {spec.name}: a width of {width} bits; the rule is 1 to {MAX_BITS}")
    if rule.log2_weights and spec.role is Role.WEIGHT:
        return min(max(width, 2), MAX_LOG_BITS)
    if spec.role in (Role.BIAS, Role.SCALE, Role.OFFSET):
        return width if rule.exponents is Exponents.PAPER else max(width, CONSTANT_BITS)
    return max(width, 2) if spec.storage is Storage.RAM and spec.signed else width


def choose_format(spec: PointSpec, histogram: Histogram, width: int, rule: FormatRule, rounding: Rounding) -> AnyFormat:
    """The format of ``width`` bits for a point, by ``rule``.

    The exponent of least error may clip the largest values. Ties go to the wider range.
    """
    bits = bits_of(spec, width, rule)
    if rule.log2_weights and spec.role is Role.WEIGHT:
        return best_log_format(histogram, bits)
    if rule.exponents is Exponents.PAPER:
        return FixedFormat(bits, bits - 1, spec.signed)
    if rule.exponents is Exponents.BOUND and spec.bound is not None:
        return bound_format(spec, bits)
    return best_fixed_format(histogram, bits, spec.signed, rounding, *_limits(spec))


def best_format(spec: PointSpec, histogram: Histogram, like: AnyFormat, rounding: Rounding) -> AnyFormat:
    """The format of least squared error among those of the kind and width of ``like`` that the point can have."""
    if isinstance(like, LogFormat):
        return best_log_format(histogram, like.bits)
    return best_fixed_format(histogram, like.bits, spec.signed, rounding, *_limits(spec))


def _limits(spec: PointSpec) -> tuple[int, int]:
    """Least and most fraction bits: what the integer functions accept."""
    if spec.role is Role.COUPLING:
        return 0, 16
    if spec.role is Role.ACTIVATION:
        return 0 if "dim" in spec.dims else MIN_FRAC_BITS, 24
    return MIN_FRAC_BITS, MAX_FRAC_BITS


def bound_format(spec: PointSpec, bits: int) -> FixedFormat:
    """The format whose range is the point's declared bound; the bound itself saturates.

    >>> from caplet.nn.points import ram
    >>> bound_format(ram("coupling", Role.COUPLING, ("out",), (10,), signed=False, bound=(0.0, 1.0)), 8)
    FixedFormat(bits=8, frac_bits=8, signed=False)
    """
    assert spec.bound is not None
    reach = math.ceil(math.log2(max(abs(edge) for edge in spec.bound)))
    return FixedFormat(bits, bits - int(spec.signed) - reach, spec.signed)


def best_fixed_format(
    histogram: Histogram,
    bits: int,
    signed: bool,
    rounding: Rounding,
    low: int = MIN_FRAC_BITS,
    high: int = MAX_FRAC_BITS,
) -> FixedFormat:
    """The fixed-point format of least expected squared error, clipping included; frac_bits within ``low .. high``."""
    first = bits - int(signed)
    if histogram.largest > 0:
        first -= math.ceil(math.log2(histogram.largest)) + 1
    tried = sorted({min(max(frac, low), high) for frac in range(first, first + _OCTAVES)})
    formats = [FixedFormat(bits, frac, signed) for frac in tried]
    return min(formats, key=lambda fmt: fixed_error(histogram, fmt, rounding))


def best_log_format(histogram: Histogram, bits: int) -> LogFormat:
    """The powers-of-two format of least squared error."""
    top = math.ceil(math.log2(histogram.largest)) if histogram.largest > 0 else 0
    top = min(max(top, MIN_FRAC_BITS), MAX_FRAC_BITS)
    formats = [LogFormat(bits, exponent) for exponent in range(top, top - 6, -1)]
    return min(formats, key=lambda fmt: log_error(histogram, fmt))
