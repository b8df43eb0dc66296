"""Straight-through quantization: fake-quant's values exactly, and the gradients of a plain autograd version."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caplet.data.imageset import to_float
from caplet.errors import ModelError
from caplet.fixed import ChannelFormat, FixedFormat, LogFormat, Rounding
from caplet.nn.functional import softmax, squash_reference
from caplet.nn.points import Handler, PointSpec, Role, Storage
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import FakeQuant, fake_quantized, point_noise, quantize_carried
from caplet.quant.simulate.straight_through import StraightThrough, clipping_edges
from caplet.train.initialise import initialise
from caplet.train.loss import margin_loss


def plan_of(case: Any, width: int, rounding: Rounding = Rounding.NEAREST, **more: Any) -> QuantPlan:
    return uniform_plan(case.model, case.calibration, width, rounding=rounding, **more)


GRADIENT = 1e-3
"""Relative difference of two orders of computing a gradient through a whole network in float32."""
SUM = 2.0**-21
"""Relative rounding error of a product and of a pairwise sum of up to 2**20 of them in float32."""


class Replaced(torch.autograd.Function):
    """The value of ``exact`` with the gradient of ``plain``; without the rounding of ``plain + (exact - plain)``."""

    @staticmethod
    def forward(ctx: Any, plain: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Plain(Handler):
    """The reference: one operation after the other, differentiated by autograd."""

    def __init__(self, plan: QuantPlan, specs: Mapping[str, PointSpec], exponents: Mapping[str, nn.Parameter]) -> None:
        self.plan, self.specs, self.exponents = plan, specs, exponents
        self.fake = FakeQuant(plan, specs)
        self.slack = dict.fromkeys(exponents, 0.0)
        """By trained scale, how far its gradient may be off: see :meth:`_allow`."""

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if spec.role is Role.IMAGE or (spec.role is Role.COUPLING and iteration == 0):  # no gradient: data, a constant
            return self.fake.tap(key, spec, value, iteration)
        if spec.role is Role.COUPLING or spec.bound == (-1.0, 1.0):  # already rounded by softmax or squash
            return value
        fmt, rounding = self.plan.points[key], self.plan.rounding_of(key, spec)
        noise = point_noise(self.plan.seed, key, spec, iteration) if rounding is Rounding.STOCHASTIC else None
        if rounding is Rounding.CARRY:
            rounded = quantize_carried(value.detach(), fmt)
        else:
            rounded = fmt.quantize(value.detach(), rounding, noise)
        low, high = clipping_edges(fmt, rounding)
        inside = (value > low) & (value < high)
        step = 2.0 ** self.exponents[key] if key in self.exponents else torch.tensor(fmt.step)
        units = torch.where(inside, value / step, (rounded / fmt.step).detach())
        result = Replaced.apply(Replaced.apply(units, rounded / fmt.step) * step, rounded)
        if key in self.exponents:
            held = torch.where(inside, value, 0.0).detach()
            result.register_hook(lambda grad: self._allow(key, grad, rounded, held))
        return result

    def _allow(self, key: str, grad: Tensor, rounded: Tensor, held: Tensor) -> None:
        """Add what one pass through a point contributes to the slack of its scale's gradient.

        That gradient is the sum of ``grad * (rounded - held)``, rounding errors of either sign that nearly cancel, so
        its error follows from the summands' magnitudes: each incoming gradient is as exact as the other gradients are
        (:data:`GRADIENT`), and the products and their sum are rounded to float32.
        """
        size = grad.abs().double()
        errors = (rounded - held).abs() * GRADIENT + (rounded.abs() + held.abs()) * SUM
        self.slack[key] += math.log(2) * float((size * errors).sum())

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        plain = softmax(logits, dim)
        with torch.no_grad():
            exact = self.fake.softmax(key, logits.detach(), dim, iteration)
        return Replaced.apply(plain, exact)

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        plain = squash_reference(capsules, dim)
        with torch.no_grad():
            exact = self.fake.squash(key, capsules.detach(), dim, iteration)
        return Replaced.apply(plain, exact)


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("width", [2, 5, 9])
def test_values_are_those_of_fake_quant(case: Any, rounding: Rounding, width: int) -> None:
    plan, images = plan_of(case, width, rounding, seed=3), to_float(case.images[:5])
    with torch.no_grad(), fake_quantized(case.model, plan):
        expected = case.model(images)
    with case.model.handle(StraightThrough(plan, case.model.points())):
        trained = case.model(images)
        with torch.no_grad():
            evaluated = case.model(images)
    assert trained.requires_grad
    assert torch.equal(trained, expected)
    assert torch.equal(evaluated, expected)


def test_values_of_powers_of_two(digits: Any) -> None:
    plan, images = plan_of(digits, 4, rule=FormatRule(log2_weights=True)), to_float(digits.images[:5])
    with torch.no_grad(), fake_quantized(digits.model, plan):
        expected = digits.model(images)
    with digits.model.handle(StraightThrough(plan, digits.model.points())):
        assert torch.equal(digits.model(images), expected)


@pytest.fixture
def living(case: Any) -> Any:
    """The case with signals of useful size in every layer, also where it is an untrained network."""
    if case.model.family == "shallow":
        return case
    model = copy.deepcopy(case.model)
    initialise(model, to_float(case.images))
    return replace(case, model=model, calibration=calibrate(model, case.images))


def gradients(case: Any, handler: Any, exponents: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    parameters = {**dict(case.model.named_parameters()), **exponents}
    with case.model.handle(handler):
        capsules = case.model(to_float(case.images[:6]))
        loss = margin_loss(capsules.square().sum(-1), case.labels[:6]) + capsules.sum()
        found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("rounding", list(Rounding))
def test_gradients_are_those_of_autograd(living: Any, rounding: Rounding) -> None:
    model, plan = living.model, plan_of(living, 7, rounding)
    specs = model.points()
    # Wide constants, so that none is clipped: clipped ones differ from the reference on purpose.
    wide = {key: FixedFormat(16, 11, True) for key, spec in specs.items() if spec.storage is Storage.FLASH}
    tight = {
        key: FixedFormat(fmt.bits, fmt.frac_bits + 1, fmt.signed)  # every computed tensor is clipped here and there
        for key, fmt in plan.points.items()
        if isinstance(fmt, FixedFormat) and specs[key].storage is Storage.RAM and specs[key].bound is None
    }
    plan = plan.with_formats({**wide, **tight})
    exponents = {
        key: nn.Parameter(torch.tensor(-float(fmt.frac_bits)))
        for key, fmt in plan.points.items()
        if isinstance(fmt, FixedFormat) and specs[key].bound is None
    }
    reference = Plain(plan, specs, exponents)
    fast = gradients(living, StraightThrough(plan, specs, exponents), exponents)
    plain = gradients(living, reference, exponents)
    for key, grad in plain.items():
        if key in exponents:
            assert abs(float(fast[key] - grad)) <= reference.slack[key], key
        else:
            largest = float(grad.abs().max())
            assert torch.allclose(fast[key], grad, rtol=GRADIENT, atol=1e-4 * largest + 1e-7), key
    factor = 1 - math.log(2)  # what a forgotten ln 2 would change
    resolved = [key for key, slack in reference.slack.items() if slack < factor * abs(float(plain[key]))]
    assert len(resolved) > len(exponents) / 2, "the bounds are too wide to see a wrong gradient"
    assert all(float(plain[key].abs().max()) > 0 for key in ("digit.votes", "digit.logits", "digit.preactivation"))


def test_a_clipped_constant_may_only_come_back() -> None:
    plan = QuantPlan({"a.weight": FixedFormat(2, 0, True)})
    spec = PointSpec("weight", Role.WEIGHT, ("out",), (6,), True, Storage.FLASH, None)  # type: ignore[arg-type]
    weight = nn.Parameter(torch.tensor([-4.0, -4.0, 0.2, 1.4, 4.0, 4.0]))
    rounded = StraightThrough(plan, {"a.weight": spec}).tap("a.weight", spec, weight, 0)
    assert rounded.tolist() == [-2.0, -2.0, 0.0, 1.0, 1.0, 1.0]
    rounded.backward(torch.tensor([1.0, -1.0, 3.0, -3.0, 1.0, -1.0]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, -1.0, 3.0, -3.0, 1.0, 0.0]


def test_clipping_follows_the_channels_exponents() -> None:
    fmt = ChannelFormat(2, 0, True, (0, 2), 0)
    spec = PointSpec("weight", Role.WEIGHT, ("out", "in"), (2, 3), True, Storage.FLASH, None)  # type: ignore[arg-type]
    weight = nn.Parameter(torch.tensor([[1.4, 1.6, -2.6], [0.36, 0.38, -0.64]]))
    rounded = StraightThrough(QuantPlan({"a.weight": fmt}), {"a.weight": spec}).tap("a.weight", spec, weight, 0)
    assert torch.equal(rounded, fmt.quantize(weight.detach()))
    rounded.backward(torch.tensor([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("fmt", [FixedFormat(4, 3, True), FixedFormat(3, -1, False), LogFormat(3, 1)])
@pytest.mark.parametrize("rounding", [Rounding.NEAREST, Rounding.TRUNCATE])
def test_edges_are_where_clipping_starts(fmt: Any, rounding: Rounding) -> None:
    rounding = Rounding.NEAREST if isinstance(fmt, LogFormat) else rounding
    low, high = clipping_edges(fmt, rounding)
    wider = LogFormat(5, 2) if isinstance(fmt, LogFormat) else FixedFormat(fmt.bits + 2, fmt.frac_bits, True)
    for edge, inner in ((low, -1e-4), (high, 1e-4)):
        clipped = [
            fmt.encode(x, rounding).item() * fmt.step != wider.encode(x, rounding).item() * wider.step
            if isinstance(fmt, FixedFormat)
            else float(fmt.quantize(x)) != float(wider.quantize(x))
            for x in (torch.tensor(edge - inner), torch.tensor(edge + inner))
        ]
        assert clipped == [False, True] or (isinstance(fmt, FixedFormat) and not fmt.signed and edge == low)


def test_nan_in_a_weight_is_an_alarm(digits: Any) -> None:
    plan, spec = plan_of(digits, 4), digits.model.points()["digit.weight"]
    weight = digits.model.digit.weight.detach().clone()
    weight[0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"digit\.weight: its float values hold NaN: training diverged"):
        StraightThrough(plan, digits.model.points()).tap("digit.weight", spec, weight, 0)
