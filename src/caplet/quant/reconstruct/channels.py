"""An exponent for every output channel of a weight: each channel's own best range, for one small shift each."""

from __future__ import annotations

import torch
from torch import Tensor

from caplet.fixed import ChannelFormat, FixedFormat
from caplet.fixed.format import MAX_FRAC_BITS, SHIFT_BITS

_REACH = 4
"""Exponents are tried this far on both sides of the whole tensor's."""


def channel_format(weight: Tensor, fmt: FixedFormat, axis: int) -> ChannelFormat:
    """The format of the same width in which every output channel has the exponent of least squared error.

    Ties go to the wider range; a channel of zeros keeps the tensor's exponent.

    Args:
        weight: float, output channels on ``axis``.
        fmt: the whole tensor's format, from whose exponent the search starts.
    """
    channels = weight.detach().movedim(axis, 0).flatten(1)
    low, high = max(fmt.frac_bits - _REACH, -MAX_FRAC_BITS), min(fmt.frac_bits + _REACH, MAX_FRAC_BITS)
    tried = range(low, high + 1)
    errors = torch.stack([_error(channels, FixedFormat(fmt.bits, frac, fmt.signed)) for frac in tried])
    best = torch.tensor(list(tried))[errors.argmin(0)]
    best[~channels.any(1)] = fmt.frac_bits
    base = int(best.min())
    shifts = (best - base).clamp_max((1 << SHIFT_BITS) - 1)
    return ChannelFormat(fmt.bits, base, fmt.signed, tuple(shifts.tolist()), axis)


def _error(channels: Tensor, fmt: FixedFormat) -> Tensor:
    """Squared rounding error of every channel, float (channels,)."""
    return (fmt.quantize(channels) - channels).square().sum(1)
