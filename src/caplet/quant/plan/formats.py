"""How a width becomes a format: by a rule, or by the squared error on a histogram of the point's values."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.errors import ModelError, PlanError
from caplet.fixed import AnyFormat, FixedFormat, LogFormat, PlanFormat, Rounding
from caplet.fixed.format import MAX_BITS, MAX_LOG_BITS
from caplet.nn.points import PointSpec, Role, Storage
from caplet.quant.choices import Exponents

MIN_FRAC_BITS, MAX_FRAC_BITS = -12, 30
"""Exponents that are tried: what the integer squash accepts at any width and dimension."""
_OCTAVES = 14
CONSTANT_BITS = 8
"""Least bits of biases and batch-norm constants: they are few (about one in ten thousand of ShallowCaps' parameters),
but each of them shifts a whole output channel, so that narrow ones cost more accuracy than memory."""
HALF = 4096
"""Bins on each side of zero."""
_CHUNK = 1 << 24  # torch.histc counts in float32, exact up to here
_LOWEST_EXPONENT = -60
LARGEST = 2.0**100  # far beyond any format; bins still have float32 edges


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
    """What turns the width of a point into a format: a calibration, or what chooses better on top of one."""

    def format(
        self, key: str, width: int, rule: FormatRule = FormatRule(), rounding: Rounding = Rounding.NEAREST
    ) -> PlanFormat:
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


def choose_format(
    spec: PointSpec, histogram: "Histogram", width: int, rule: FormatRule, rounding: Rounding
) -> AnyFormat:
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


def best_format(spec: PointSpec, histogram: "Histogram", like: AnyFormat, rounding: Rounding) -> AnyFormat:
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
    histogram: "Histogram",
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


def best_log_format(histogram: "Histogram", bits: int) -> LogFormat:
    """The powers-of-two format of least squared error."""
    top = math.ceil(math.log2(histogram.largest)) if histogram.largest > 0 else 0
    top = min(max(top, MIN_FRAC_BITS), MAX_FRAC_BITS)
    formats = [LogFormat(bits, exponent) for exponent in range(top, top - 6, -1)]
    return min(formats, key=lambda fmt: log_error(histogram, fmt))


@dataclass
class Histogram:
    """Counts of a tensor's values in ``2 * HALF`` bins of width ``2**exponent`` around zero, exact zeros apart.

    Bin i covers ``[(i - HALF) * width, (i - HALF + 1) * width)``. A value beyond the last bin makes the bins merge
    pairwise until it fits, so no value is ever lost. A value within a float32 rounding error (of the whole range) of a
    bin's edge may be counted on its other side.

    Attributes:
        counts: int64 (2 * HALF,), without the zeros.
        exponent: of the bin width; None until the first non-zero value.
        zeros: values that are exactly 0.
        low, high: smallest and largest value seen (0 at the start).
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF, dtype=np.int64))
    exponent: int | None = None
    zeros: int = 0
    low: float = 0.0
    high: float = 0.0

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum()) + self.zeros

    @property
    def largest(self) -> float:
        """Largest magnitude seen."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: Tensor) -> None:
        """Count all elements of a float tensor of any shape. Raises ModelError on NaN or infinity."""
        if values.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(values))
        if not -LARGEST < low <= high < LARGEST:
            raise ModelError(f"cannot count values from {low} to {high}: NaN, infinite or beyond 2**100")
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = values.numel() - int(torch.count_nonzero(values))
        self.zeros += zeros
        if self.largest == 0:
            return
        self._widen(max(_LOWEST_EXPONENT, math.ceil(math.log2(self.largest)) - int(math.log2(HALF))))
        assert self.exponent is not None
        edge = HALF * 2.0**self.exponent
        for part in torch.split(in_memory_order(values)[0].reshape(-1), _CHUNK):
            self.counts += torch.histc(part, 2 * HALF, -edge, edge).cpu().numpy().astype(np.int64)
        self.counts[HALF] -= zeros

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(HALF, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[HALF // 2 : HALF // 2 + HALF] = merged
            self.exponent += 1

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
        """(centres, counts, width) of the bins that hold something."""
        index = np.flatnonzero(self.counts)
        width = 2.0 ** (self.exponent or 0)
        centres = (index.astype(np.float64) - (HALF - 0.5)) * width
        return centres, self.counts[index], width


def in_memory_order(value: Tensor, last: int | None = None) -> tuple[Tensor, list[int]]:
    """``value`` with its axes permuted to the order in which they lie in memory, and that permutation.

    Args:
        last: an axis to put last whatever its place in memory.
    """
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda axis: (axis == last, -strides[axis], axis))
    return value.permute(order), order


def fixed_error(histogram: Histogram, fmt: FixedFormat, rounding: Rounding) -> float:
    """Expected squared error, summed over all values, of rounding them to ``fmt``; values are uniform within a bin.

    Bins and steps are both powers of two: a bin lies inside one cell of the format, or holds a whole number of cells.
    """
    centres, counts, width = histogram.occupied()
    step, rounding = fmt.step, rounding.alone
    # A bin within one cell adds its own spread; a bin of many cells has the error of a uniform value in a cell.
    if rounding is Rounding.NEAREST:
        codes = np.floor(centres / step + 0.5)
        inside = (centres - codes * step) ** 2 + width**2 / 12 if step >= 2 * width else np.full_like(centres, step**2)
        inside = inside if step >= 2 * width else inside / 12
    elif rounding is Rounding.TRUNCATE:
        codes = np.floor(centres / step)
        inside = (centres - codes * step) ** 2 + width**2 / 12 if step >= width else np.full_like(centres, step**2 / 3)
    else:
        codes = np.floor(centres / step)
        part = centres / step - codes
        exact = (part * (1 - part) - (width / step) ** 2 / 12) * step**2
        inside = exact if step >= width else np.full_like(centres, step**2 / 6)
    clipped = np.clip(centres, fmt.min_value, fmt.max_value)
    top = fmt.max_code - (rounding is Rounding.STOCHASTIC)  # from the last code up, rounding up saturates
    outside = (codes < fmt.min_code) | (codes > top)
    error = np.where(outside, (centres - clipped) ** 2 + width**2 / 12, inside)
    return float(error @ counts)


def log_error(histogram: Histogram, fmt: LogFormat) -> float:
    """Squared error, summed over all values at their bins' centres, of rounding them to powers of two."""
    centres, counts, _ = histogram.occupied()
    return float((centres - fmt.quantize(centres)) ** 2 @ counts) if len(centres) else 0.0
