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
from functools import partial
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
        moves: by how much each output's exponent was moved, int64 (groups, outputs).
    """

    weight: Tensor
    shift: Tensor
    before: float
    after: float
    moves: Tensor


def fit(
    linear: Linear,
    weight: Tensor,
    grid: Grid,
    *,
    sweeps: int,
    shrink: float,
    correct_bias: bool,
    moves: tuple[int, ...] = (0,),
) -> RoundingFit:
    """Choose grid weights for ``linear`` so that its outputs come near those of the float ``weight``.

    Args:
        sweeps: passes over all weights; 0 rounds to nearest.
        correct_bias: also take the mean error out through the bias.
        moves: each output's exponent is moved by whichever of these leaves it the least error, the first of equals,
            after one pass; more than one for a grid with a step for every output. The first is 0.
    """
    exact = linear.split(weight)
    groups, rows, _ = linear.scale.shape
    outputs, variants = exact[0].shape[2], len(moves)
    if variants > 1:  # each variant's outputs stand beside each other; outputs do not depend on one another
        grid = Grid(torch.cat([grid.step * 2.0**-move for move in moves], 1), grid.low, grid.high)
    error = linear.scale.new_zeros(groups, rows, outputs)  # of the quantized inputs with float weights
    for block, matrix in enumerate([] if linear.same else exact):
        error.baddbmm_(linear.difference(block), matrix)
    error, wanted = error.repeat(1, 1, variants), [matrix.repeat(1, 1, variants) for matrix in exact]
    best = [grid.snap(matrix) for matrix in wanted]
    plain = error.clone()
    for block, (rounded, matrix) in enumerate(zip(best, wanted, strict=True)):
        plain.baddbmm_(linear.columns(block), rounded - matrix)
    before = float(plain.square().mean(1)[:, :outputs].mean())
    shift = error.new_zeros(groups, 1, outputs * variants)
    best_shift = shift + centred(plain, linear.scale) if correct_bias else shift
    least = plain.square().mean(1, keepdim=True)
    del plain
    chosen = [matrix.clone() for matrix in wanted]
    moved = torch.zeros_like(least, dtype=torch.int64)
    for sweep in range(sweeps + 1):
        if sweep:
            for block in range(linear.blocks):
                inputs = linear.columns(block)
                if len(linear.moments) == block:
                    linear.moments.append(torch.bmm(inputs.transpose(1, 2), inputs) / inputs.shape[1])
                step = _round_block(
                    inputs, linear.moments[block], error, chosen[block], wanted[block], grid, linear, shrink
                )
                error.baddbmm_(inputs, step)
            if correct_bias:
                shift = shift + centred(error, linear.scale)
            reached = error.square().mean(1, keepdim=True)
            better = reached < least
            best = [torch.where(better, new, old) for new, old in zip(chosen, best, strict=True)]
            best_shift, least = torch.where(better, shift, best_shift), torch.minimum(reached, least)
        if variants > 1 and sweep == min(sweeps, 1):
            number = least.view(groups, 1, variants, outputs).argmin(2, keepdim=True)
            pick = partial(_picked, number=number)
            error, shift, best_shift, least = map(pick, (error, shift, best_shift, least))
            chosen, wanted, best = ([*map(pick, each)] for each in (chosen, wanted, best))
            grid = Grid(pick(grid.step.unsqueeze(1)).squeeze(1), grid.low, grid.high)
            moved = torch.tensor(moves, device=number.device)[number.squeeze(2)]
    return RoundingFit(linear.join(best), best_shift.squeeze(1), before, float(least.mean()), moved.squeeze(1))


def _picked(tensor: Tensor, number: Tensor) -> Tensor:
    """Of ``tensor`` (groups, n, variants * outputs), each output's variant ``number`` (groups, 1, 1, outputs)."""
    groups, rows, _ = tensor.shape
    outputs = number.shape[3]
    return tensor.view(groups, rows, -1, outputs).gather(2, number.expand(groups, rows, 1, outputs)).squeeze(2)


def centred(error: Tensor, scale: Tensor) -> Tensor:
    """Take the best constant per output out of ``error`` (in place); returns its negative, (groups, 1, outputs)."""
    power = scale.square().sum(1, keepdim=True).clamp_min(_EPSILON)
    shift = -torch.bmm(scale.transpose(1, 2), error) / power
    error.baddbmm_(scale, shift)
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
