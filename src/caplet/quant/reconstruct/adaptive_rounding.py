"""Rounding by coordinate descent: codes of a linear map that minimise its output error on real inputs.

The error is a sum of squares over rows (images x output positions), ``|X Q - Y|^2`` with X the inputs as quantized, Q
the weights on their grid and Y what the float weights W give on the float inputs. It is minimised one weight at a
time: with the others fixed, the best value is the grid point nearest to ``q - gradient / curvature``. All output
channels move at once, and the gradient is kept up to date inside a block of columns by the block's second moments, so
that a sweep costs three products of the size of the layer itself, whatever the number of weights.

Source: the objective is AdaRound's (Nagel et al. 2020) and GPTQ's (Frantar et al. 2022), cyclic coordinate descent on
it is QuantEase's (Behdin et al. 2023). Differs: inputs and targets come from different (quantized and float) chains,
and second moments are shrunk towards independent inputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caplet.fixed import ChannelFormat, FixedFormat, PlanFormat

_EPSILON = 1e-12
_TOGETHER = 32  # columns whose moves reach the gradient of later ones in one product


class Linear(Protocol):
    """A layer's weights as independent groups of linear maps, their input columns in blocks, on some rows.

    Attributes:
        blocks: number of blocks of columns.
        unit: consecutive columns that belong together (a capsule's components); shrinking keeps their correlations.
        scale: float (groups, rows, 1): the weight of each row in the error, already part of :meth:`columns`.
        same: whether quantization did nothing to the inputs.
        nbytes: memory of what is held of the inputs.
        moments: second moments of the columns, one tensor for each block, as far as a fit has computed them.
    """

    blocks: int
    unit: int
    scale: Tensor
    same: bool
    nbytes: int
    moments: list[Tensor]

    def columns(self, block: int) -> Tensor:
        """The inputs as quantized, float (groups, rows, columns)."""
        ...

    def difference(self, block: int) -> Tensor:
        """What quantization did to the inputs: :meth:`columns` less those of the float inputs."""
        ...

    def split(self, weight: Tensor) -> list[Tensor]:
        """A weight tensor as one matrix (groups, columns, outputs) per block."""
        ...

    def join(self, matrices: list[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        ...


@dataclass(frozen=True)
class Grid:
    """The values that weights may take: ``step`` times an integer from ``low`` to ``high``.

    Attributes:
        step: float (groups, outputs), either of which may be 1.
        low, high: codes.
    """

    step: Tensor
    low: int
    high: int

    def snap(self, values: Tensor) -> Tensor:
        """The nearest grid values (ties up) of float (groups, columns, outputs)."""
        step = self.step.unsqueeze(1)
        return torch.floor(values / step + 0.5).clamp_(self.low, self.high) * step


def weight_grid(fmt: PlanFormat, groups: int, device: torch.device | None = None) -> Grid:
    """The grid of a weight's format, on ``device``; exponents per channel are dealt out to the groups in order."""
    assert isinstance(fmt, FixedFormat | ChannelFormat)
    if isinstance(fmt, FixedFormat):
        return Grid(torch.full((1, 1), fmt.step, device=device), fmt.min_code, fmt.max_code)
    steps = torch.tensor([fmt.step * 2.0**-shift for shift in fmt.shifts], device=device)
    return Grid(steps.view(groups, -1), fmt.min_code, fmt.max_code)


@dataclass(frozen=True)
class RoundingFit:
    """The outcome of a fit.

    Attributes:
        weight: on the grid, the parameter's shape.
        shift: what to add to the bias, float (groups, outputs); zeros where it was to be left alone.
        before, after: mean squared output error (per row and output) with weights rounded to nearest and the bias
            left alone, and with the result.
    """

    weight: Tensor
    shift: Tensor
    before: float
    after: float


def fit(linear: Linear, weight: Tensor, grid: Grid, *, sweeps: int, shrink: float, correct_bias: bool) -> RoundingFit:
    """Choose grid weights for ``linear`` so that its outputs come near those of the float ``weight``.

    Args:
        sweeps: passes over all weights; 0 rounds to nearest.
        correct_bias: also take the mean error out through the bias.
    """
    wanted = linear.split(weight)
    nearest = [grid.snap(matrix) for matrix in wanted]
    groups, rows, _ = linear.scale.shape
    error = linear.scale.new_zeros(groups, rows, wanted[0].shape[2])  # of the quantized inputs with float weights
    for block, exact in enumerate([] if linear.same else wanted):
        error.baddbmm_(linear.difference(block), exact)
    plain = error.clone()
    for block, (rounded, exact) in enumerate(zip(nearest, wanted, strict=True)):
        plain.baddbmm_(linear.columns(block), rounded - exact)
    before = float(plain.square().mean())
    shift = error.new_zeros(error.shape[0], error.shape[2])
    best_shift = shift + centred(plain, linear.scale) if correct_bias else shift
    best, after = nearest, float(plain.square().mean())
    del plain
    if sweeps:
        chosen = [matrix.clone() for matrix in wanted]
        moments = linear.moments
        for _ in range(sweeps):
            for block in range(linear.blocks):
                inputs = linear.columns(block)
                if len(moments) == block:
                    moments.append(torch.bmm(inputs.transpose(1, 2), inputs) / inputs.shape[1])
                moved = _round_block(inputs, moments[block], error, chosen[block], wanted[block], grid, linear, shrink)
                error.baddbmm_(inputs, moved)
            if correct_bias:
                shift += centred(error, linear.scale)
            reached = float(error.square().mean())
            if reached < after:
                best, best_shift, after = [matrix.clone() for matrix in chosen], shift.clone(), reached
    return RoundingFit(linear.join(best), best_shift, before, after)


def centred(error: Tensor, scale: Tensor) -> Tensor:
    """Take the best constant per output out of ``error`` (in place); returns its negative, float (groups, outputs)."""
    power = scale.square().sum(1).clamp_min(_EPSILON)
    shift = -torch.bmm(scale.transpose(1, 2), error).squeeze(1) / power
    error.baddbmm_(scale, shift.unsqueeze(1))
    return shift


def _round_block(
    inputs: Tensor,
    moments: Tensor,
    error: Tensor,
    chosen: Tensor,
    wanted: Tensor,
    grid: Grid,
    linear: Linear,
    shrink: float,
) -> Tensor:
    """One pass over the columns of a block; changes ``chosen`` in place and returns by how much, same shape."""
    pull = shrink * _within_units(moments, linear.unit)
    pull.diagonal(dim1=1, dim2=2).add_(_EPSILON)
    curvature = moments + pull  # symmetric
    diagonal = curvature.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    gradient = torch.bmm(inputs.transpose(1, 2), error) / inputs.shape[1] + torch.bmm(pull, chosen - wanted)
    before = chosen.clone()
    gradients, pulls, values, inverses = (of.unbind(1) for of in (gradient, curvature, chosen, 1.0 / diagonal))
    step, count = grid.step, len(values)
    for first in range(0, count, _TOGETHER):
        last = min(first + _TOGETHER, count)
        for column in range(first, last):
            old = values[column]
            target = torch.addcmul(old, gradients[column], inverses[column], value=-1.0).div_(step).add_(0.5)
            new = target.floor_().clamp_(grid.low, grid.high).mul_(step)
            coming = slice(column + 1, last)  # gradients of columns that have had their turn are not read again
            gradient[:, coming].baddbmm_(pulls[column][:, coming, None], new.sub(old).unsqueeze(1))
            old.copy_(new)
        gradient[:, last:].baddbmm_(curvature[:, last:, first:last], chosen[:, first:last] - before[:, first:last])
    return chosen - before


def _within_units(moments: Tensor, unit: int) -> Tensor:
    """``moments`` with everything between different units set to zero."""
    index = torch.arange(moments.shape[1], device=moments.device) // unit
    return moments * (index[:, None] == index)
