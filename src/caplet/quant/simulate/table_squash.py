"""The integer squash on float tensors by a table: for narrow capsules, as many results in a quarter of the time.

The factor of a capsule (steps 2 to 6 of :mod:`caplet.fixed.squash`) depends on its squared length in codes alone, an
integer below 2**17 where codes have few bits. All factors are computed once, by the integer functions themselves. A
product of a code (17 bits) and a factor (31 bits) is exact in float64, and so is its rounding.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from caplet.fixed import FixedFormat, Rounding
from caplet.fixed.squash import check_squash_formats, squash_factor

LARGEST = 1 << 17
"""Longer tables are not made."""
_BLOCK = 1 << 17  # elements at a time: they stay in the cache through all passes


def table_length(fmt: FixedFormat, dims: int) -> int:
    """Entries that a table for capsules of ``dims`` codes in ``fmt`` needs: their squared lengths, 0 to the largest."""
    largest = max(-fmt.min_code, fmt.max_code)
    return dims * largest * largest + 1


def table_squash(capsules: Tensor, fmt: FixedFormat, out: FixedFormat, rounding: Rounding) -> Tensor | None:
    """Squash capsules along the last axis to exactly the values that :func:`caplet.fixed.squash` gives.

    Args:
        capsules: float32 values of ``fmt``, shape (..., D), contiguous.
        rounding: nearest or truncate.

    Returns:
        A new float32 tensor of values of ``out``; None where a table would not pay: wide codes, few capsules.

    Raises:
        PlanError: formats that squash does not accept.
    """
    dims = capsules.shape[-1]
    check_squash_formats(fmt, out, dims)
    entries = table_length(fmt, dims)
    if entries > min(LARGEST, capsules.numel() // dims):
        return None
    factors = _factors(entries, fmt.frac_bits, out.frac_bits)
    result = torch.empty_like(capsules)
    rows, wanted = capsules.view(-1, dims), result.view(-1, dims)
    step = max(1, _BLOCK // dims)
    for low in range(0, len(rows), step):
        codes = rows[low : low + step] * 2.0**fmt.frac_bits
        length = (codes * codes).sum(-1).to(torch.int64)  # exact: below 2**24
        values = codes.double().mul_(torch.take(factors, length).unsqueeze(-1))
        if rounding is Rounding.NEAREST:  # half up without a rounded sum, as FixedFormat does
            values.mul_(2.0).floor_().add_(1.0).mul_(0.5)
        values.floor_().clamp_(out.min_code, out.max_code).mul_(out.step)
        wanted[low : low + step] = values
    return result


@lru_cache(maxsize=256)
def _factors(entries: int, frac_bits: int, out_frac_bits: int) -> Tensor:
    """The factor of every squared length, float64 (entries,), exact: 31 bits times a power of two."""
    mult, shift = squash_factor(torch.arange(entries), frac_bits, out_frac_bits)
    result: Tensor = mult.double() * torch.exp2(-shift.double())
    return result
