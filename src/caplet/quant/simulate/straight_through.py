"""Quantization that can be trained: the values of fake-quant, and gradients that pass straight through the rounding.

Rounding has a derivative of zero almost everywhere. Its gradient is taken to be that of the identity where the value
is inside the format's range and zero where it is clipped (Bengio, Leonard and Courville 2013, "Estimating or
propagating gradients through stochastic neurons"); integer squash and softmax have the gradient of the float functions.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from caplet.errors import ModelError
from caplet.fixed import ChannelFormat, FixedFormat, LogFormat, PlanFormat, Rounding
from caplet.nn.functional import no_autocast, squash_backward
from caplet.nn.points import Handler, PointSpec, Role, Storage
from caplet.nn.routing import agreement, weighted_sum
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.simulate.fake_quant import FakeQuant, quantize_in_place, quantized_constant

_Compute = Callable[[FakeQuant, str, Tensor, int, int], Tensor]
_CELL = 0.45
"""Fraction of a step on either side of a value that is safely rounded to it."""


def clipping_edges(fmt: PlanFormat, rounding: Rounding) -> tuple[float, float]:
    """The values below and above which a format clips: where rounding would give a code that it does not have.

    With exponents per output channel they are those of values scaled by ``2**shift``.

    >>> clipping_edges(FixedFormat(2, 0, True), Rounding.NEAREST)
    (-2.5, 1.5)
    """
    if isinstance(fmt, ChannelFormat):
        return clipping_edges(fmt.base, rounding)
    if isinstance(fmt, LogFormat):
        return 1.5 * fmt.min_value, 1.5 * fmt.max_value
    below, above = (0.0, fmt.step) if rounding is Rounding.TRUNCATE else (fmt.step / 2, fmt.step / 2)
    return fmt.min_value - below, fmt.max_value + above


class StraightThrough(Handler):
    """A :class:`~caplet.nn.points.Handler` whose values are exactly those of
    :class:`~caplet.quant.simulate.fake_quant.FakeQuant`, with straight-through gradients.

    A clipped constant may move back into the range, but no further out of it; a clipped computed value has no gradient.

    Args:
        plan: must cover the points; may be replaced between two passes (:attr:`plan`).
        specs: the model's points by key.
        exponents: trained scales by point key: scalar parameters whose gradient is that of the loss by log2 of the
            point's step (Esser et al. 2020, "Learned step size quantization", equation 3, times step * ln 2). The
            values come from the plan; who trains them keeps both in step.
    """

    fixed_point = True

    def __init__(
        self, plan: QuantPlan, specs: Mapping[str, PointSpec], exponents: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        self.specs = specs
        self.exponents = exponents or {}
        self.plan = plan

    @property
    def plan(self) -> QuantPlan:
        """The formats in use."""
        return self.fake.plan

    @plan.setter
    def plan(self, plan: QuantPlan) -> None:
        self.fake = FakeQuant(plan, self.specs)

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if value is self._exact:
            self._exact = None
            return value
        value = value.float()
        if spec.role is Role.IMAGE:
            return self.fake.tap(key, spec, value, iteration)
        rounded: Tensor = _Round.apply(value, self.exponents.get(key), self.fake, key, spec, iteration)
        return rounded

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        self._exact = _Straight.apply(logits, self.fake, FakeQuant.softmax, key, dim, iteration)
        return self._exact

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        self._exact = _Straight.apply(capsules, self.fake, FakeQuant.squash, key, dim, iteration)
        return self._exact

    def route(self, layer: str, votes: Tensor, bias: Tensor | None, iterations: int) -> Tensor:
        """A whole routing in one operation: the values of the steps one by one, a cheaper gradient."""
        scales = [self.exponents.get(f"{layer}.{point}") for point in ("preactivation", "logits")]
        result: Tensor = _StraightRoute.apply(votes, bias, *scales, self.fake, layer, iterations)
        return result

    _exact: Tensor | None = None  # what softmax or squash just returned: already on the grid


def _rounded(fake: FakeQuant, key: str, value: Tensor, iteration: int) -> Tensor:
    """A new tensor with the values that fake-quant puts in place of a computed ``value``."""
    return fake.tap(key, fake.specs[key], value.clone(), iteration)


def _scale_grad(grad: Tensor, inside: Tensor, value: Tensor, rounded: Tensor) -> Tensor:
    """dL / d log2(step), given the gradients before and after clipping: rounding error inside, code * step outside."""
    return math.log(2) * (grad * rounded).addcmul_(inside, value, value=-1.0).sum()


def _rounded_constant(plan: QuantPlan, key: str, spec: PointSpec, value: Tensor) -> Tensor:
    """A new tensor with the values that fake-quant puts in place of a weight, a bias or a batch-norm constant."""
    if bool(torch.isnan(value.max())):
        raise ModelError(f"point {key}: its float values hold NaN: training diverged; lower lr or set clip_norm")
    fmt, rounding = plan.points[key], plan.rounding_of(key, spec)
    if isinstance(fmt, FixedFormat) and rounding is not Rounding.STOCHASTIC:
        return quantize_in_place(value.clone(), fmt, rounding)
    return quantized_constant(plan, key, spec, value)


class _Round(torch.autograd.Function):
    """Rounding of a constant or of a computed tensor."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, exponent: Tensor | None, fake: FakeQuant, key: str, spec: PointSpec, iteration: int
    ) -> Tensor:
        fmt = fake.plan.points[key]
        ctx.constant = spec.storage is Storage.FLASH
        if ctx.constant:
            rounded = _rounded_constant(fake.plan, key, spec, value)
        else:
            rounded = _rounded(fake, key, value, iteration)
        ctx.edges = clipping_edges(fmt, fake.plan.rounding_of(key, spec))
        ctx.shifts = _shift_factors(fmt, value) if isinstance(fmt, ChannelFormat) else None
        ctx.save_for_backward(value, rounded if exponent is not None else None)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, rounded = ctx.saved_tensors
        low, high = ctx.edges
        if ctx.shifts is not None:
            value = value * ctx.shifts
        scale = None
        if rounded is not None or not ctx.constant:
            inside = torch.ops.aten.hardtanh_backward(grad, value, low, high)
            scale = None if rounded is None else _scale_grad(grad, inside, value, rounded)
        if ctx.constant:
            outwards = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
            inside = grad.masked_fill(outwards, 0.0)
        return inside, scale, None, None, None, None


def _shift_factors(fmt: ChannelFormat, value: Tensor) -> Tensor:
    """``2**shift`` of every output channel, shaped to multiply ``value``."""
    shape = [-1 if axis == fmt.axis else 1 for axis in range(value.ndim)]
    return torch.exp2(torch.tensor(fmt.shifts, dtype=value.dtype, device=value.device)).view(shape)


def steps(fmt: PlanFormat, value: Tensor) -> Tensor:
    """The distance of a fixed-point format's neighbouring values, shaped to multiply ``value``."""
    step = torch.full((), fmt.step)
    return step / _shift_factors(fmt, value) if isinstance(fmt, ChannelFormat) else step


def towards(rounded: Tensor, exact: Tensor, fmt: PlanFormat) -> Tensor:
    """The value nearest to ``exact`` that still rounds to ``rounded`` (values of ``fmt``): where training goes on.

    Weights in the middle of their cells would all be half a step away from any other code.
    """
    step = _CELL * steps(fmt, rounded)
    return rounded + torch.minimum(torch.maximum(exact - rounded, -step), step)


class _Straight(torch.autograd.Function):
    """The integer softmax or squash, with the gradient of the float function of the same values."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, fake: FakeQuant, compute: _Compute, key: str, dim: int, iteration: int
    ) -> Tensor:
        ctx.save_for_backward(value)
        ctx.gradient, ctx.dim = squash_backward if compute is FakeQuant.squash else _softmax_backward, dim
        return fake.tap(key, fake.specs[key], compute(fake, key, value, dim, iteration), iteration)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        return ctx.gradient(value, grad, ctx.dim), None, None, None, None, None


def _softmax_backward(logits: Tensor, grad: Tensor, dim: int) -> Tensor:
    coupling = torch.softmax(logits, dim)
    slope = grad * coupling
    return slope - coupling * slope.sum(dim, keepdim=True)


class _StraightRoute(torch.autograd.Function):
    """:func:`caplet.nn.functional.route_reference` with fake-quant's values and straight-through gradients.

    As in :class:`caplet.nn.routing.RouteFunction`, the gradient of the votes, by far the largest tensor, is one
    matrix product over stacked factors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        votes: Tensor,
        bias: Tensor | None,
        preactivation_exponent: Tensor | None,
        logits_exponent: Tensor | None,
        fake: FakeQuant,
        layer: str,
        iterations: int,
    ) -> Tensor:
        keys = {point: f"{layer}.{point}" for point in ("coupling", "preactivation", "activation", "logits")}
        _, out_capsules, in_capsules, _ = votes.shape
        uniform = votes.new_full((1, out_capsules, in_capsules), 1.0 / out_capsules)
        coupling = fake.tap(keys["coupling"], fake.specs[keys["coupling"]], uniform, 0)
        couplings: list[Tensor] = []
        sums: list[Tensor] = []  # preactivations and logits before their rounding ...
        updates: list[Tensor] = []
        preactivations: list[Tensor] = []  # ... and after it
        logits: list[Tensor] = []
        activations: list[Tensor] = []
        with no_autocast(votes):
            for iteration in range(iterations):
                if logits:
                    coupling = fake.softmax(keys["coupling"], logits[-1], 1, iteration)
                    coupling = fake.tap(keys["coupling"], fake.specs[keys["coupling"]], coupling, iteration)
                sums.append(weighted_sum(coupling, votes))
                if bias is not None:
                    sums[-1] = sums[-1] + bias
                preactivations.append(_rounded(fake, keys["preactivation"], sums[-1], iteration))
                activation = fake.squash(keys["activation"], preactivations[-1], -1, iteration)
                activation = fake.tap(keys["activation"], fake.specs[keys["activation"]], activation, iteration)
                couplings.append(coupling)
                activations.append(activation)
                if iteration < iterations - 1:
                    update = agreement(activation, votes)
                    updates.append(update if not logits else logits[-1] + update)
                    logits.append(_rounded(fake, keys["logits"], updates[-1], iteration))
        ctx.save_for_backward(votes, *couplings, *sums, *preactivations, *activations, *updates, *logits)
        plan = fake.plan
        ctx.edges = {
            point: clipping_edges(plan.points[keys[point]], plan.rounding.alone)
            for point in ("preactivation", "logits")
            if keys[point] in plan.points
        }
        ctx.iterations = iterations
        ctx.biased = bias is not None
        ctx.scaled = (preactivation_exponent is not None, logits_exponent is not None)
        return activations[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        votes, *saved = ctx.saved_tensors
        count: int = ctx.iterations
        couplings, sums, preactivations, activations = (saved[i * count : (i + 1) * count] for i in range(4))
        updates, logits = saved[4 * count : 5 * count - 1], saved[5 * count - 1 :]
        left: list[Tensor] = []  # factors (B, G, I) of the votes' gradient
        right: list[Tensor] = []  # their partners (B, G, D)
        scales = [grad.new_zeros(()) if scaled else None for scaled in ctx.scaled]
        bias_grad = torch.zeros_like(sums[0]) if ctx.biased else None
        carried: Tensor | None = None  # gradient of the logits through the next iteration's logits
        for iteration in reversed(range(count)):
            rounded = preactivations[iteration]
            grad = squash_backward(rounded, grad, -1)
            grad, scales[0] = _clip(grad, sums[iteration], rounded, ctx.edges["preactivation"], scales[0])
            if bias_grad is not None:
                bias_grad += grad
            left.append(couplings[iteration].expand(votes.shape[:3]))
            right.append(grad)
            if iteration == 0:
                break
            slope = _softmax_backward(logits[iteration - 1], agreement(grad, votes), 1)
            slope = slope if carried is None else slope + carried
            before = iteration - 1
            carried, scales[1] = _clip(slope, updates[before], logits[before], ctx.edges["logits"], scales[1])
            left.append(carried)
            right.append(activations[before])
            grad = weighted_sum(carried, votes)
        votes_grad = torch.matmul(torch.stack(left, -1), torch.stack(right, -2))
        bias_sum = None if bias_grad is None else bias_grad.sum(0)
        return votes_grad, bias_sum, *scales, None, None, None


def _clip(
    grad: Tensor, value: Tensor, rounded: Tensor, edges: tuple[float, float], scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Back through a rounding: the gradient inside the range, and ``scale`` with this rounding's part added."""
    inside = torch.ops.aten.hardtanh_backward(grad, value, *edges)
    return inside, None if scale is None else scale + _scale_grad(grad, inside, value, rounded)
