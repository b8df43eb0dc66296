"""Histograms of tensors with power-of-two bins, and the squared error that a format would make on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.errors import ModelError
from caplet.fixed import FixedFormat, LogFormat, Rounding

HALF = 4096
"""Bins on each side of zero."""
_CHUNK = 1 << 24  # torch.histc counts in float32, exact up to here
_LOWEST_EXPONENT = -60


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
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError(f"cannot count values from {low} to {high}: a tensor holds a NaN or an infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = values.numel() - int(torch.count_nonzero(values))
        self.zeros += zeros
        if self.largest == 0:
            return
        self._widen(max(_LOWEST_EXPONENT, math.ceil(math.log2(self.largest)) - int(math.log2(HALF))))
        assert self.exponent is not None
        edge = HALF * 2.0**self.exponent
        for part in _dense(values).split(_CHUNK):
            self.counts += torch.histc(part, 2 * HALF, -edge, edge).numpy().astype(np.int64)
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


def _dense(values: Tensor) -> Tensor:
    """The elements as a vector in whatever order they lie in memory, without a copy where possible."""
    strides = values.stride()
    order = sorted(range(values.ndim), key=lambda axis: -strides[axis])
    return values.permute(order).reshape(-1)


def fixed_error(histogram: Histogram, fmt: FixedFormat, rounding: Rounding) -> float:
    """Expected squared error, summed over all values, of rounding them to ``fmt``; values are uniform within a bin.

    Bins and steps are both powers of two: a bin lies inside one cell of the format, or holds a whole number of cells.
    """
    centres, counts, width = histogram.occupied()
    step = fmt.step
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
