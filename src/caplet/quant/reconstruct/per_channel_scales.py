"""An exponent for every output channel of a weight: each channel's own best range, for one small shift each."""

from __future__ import annotations

import torch
from torch import Tensor

from caplet.fixed import ChannelFormat, FixedFormat
from caplet.fixed.format import MAX_FRAC_BITS, SHIFT_BITS
from caplet.quant.reconstruct.adaptive_rounding import Grid, Linear, centred

_REACH = 4
"""Exponents are tried this far on both sides of the whole tensor's."""
_MOVES = (0, -1, -2, -3, 1)
"""By how much an exponent may leave that of least squared error among the weights; the first of equals is taken."""


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
    return from_exponents(best, fmt.bits, fmt.signed, axis)


def output_channel_format(linear: Linear, weight: Tensor, start: ChannelFormat, *, correct_bias: bool) -> ChannelFormat:
    """Every output channel's exponent by the squared error of the layer's outputs instead of the weights'.

    The two differ most for few bits: clipping large weights costs little among the weights, but all of it goes in one
    direction, while rounding errors cancel in a sum.

    Args:
        linear: the layer on its inputs.
        weight: float.
        start: exponents near the best ones, e.g. :func:`channel_format`'s.
        correct_bias: the mean error does not count, as it will be taken out.
    """
    exponents = torch.tensor([start.frac_bits + shift for shift in start.shifts])
    wanted = linear.split(weight.detach())
    steps = torch.exp2(-exponents.float()).view(len(linear.scale), -1)
    errors = torch.zeros(len(_MOVES), *wanted[0].shape[::2], linear.scale.shape[1]).transpose(2, 3)
    for block, exact in enumerate(wanted):
        inputs = linear.columns(block)
        for error, move in zip(errors, _MOVES, strict=True):
            error.baddbmm_(inputs, Grid(steps * 2.0**-move, start.min_code, start.max_code).snap(exact) - exact)
    if correct_bias:
        for error in errors:
            centred(error, linear.scale)
    best = errors.square().sum(2).flatten(1).argmin(0)
    return from_exponents(exponents + torch.tensor(_MOVES)[best], start.bits, start.signed, start.axis)


def from_exponents(exponents: Tensor, bits: int, signed: bool, axis: int) -> ChannelFormat:
    """The format of these exponents, int64 (channels,), as far as shifts reach."""
    base = int(exponents.min())
    shifts = (exponents - base).clamp_max((1 << SHIFT_BITS) - 1)
    return ChannelFormat(bits, base, signed, tuple(shifts.tolist()), axis)


def _error(channels: Tensor, fmt: FixedFormat) -> Tensor:
    """Squared rounding error of every channel, float (channels,)."""
    return (fmt.quantize(channels) - channels).square().sum(1)
