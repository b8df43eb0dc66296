"""Exponents of a network whose weights are still being trained: chosen again by squared error, or learned.

A plan's exponents come from a float model. Under narrow weights the tensors behind them have other ranges, and weights
in training move, so that their formats have to follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from caplet.fixed import AnyFormat, FixedFormat, LogFormat, PlanFormat, Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import PointSpec, Role, Storage
from caplet.quant.plan.formats import Histogram, best_format
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.simulate.fake_quant import FakeQuant
from caplet.quant.simulate.straight_through import clipping_edges

HYSTERESIS = 0.6
"""A learned exponent changes when the parameter is this far from it: half an octave would flicker between two."""
REACH = 4
"""Octaves by which a learned exponent may leave the one it started with."""


def movable(plan: QuantPlan, specs: Mapping[str, PointSpec]) -> tuple[str, ...]:
    """Keys of the points whose exponent can follow the values.

    Not those with a declared bound, nor weights with an exponent per channel, which the plan's maker chose.
    """
    free = (key for key, spec in specs.items() if spec.bound is None)
    return tuple(key for key in free if isinstance(plan.points[key], FixedFormat | LogFormat))


@dataclass
class Observed:
    """What a point's tensor was before its rounding: its histogram, and how many elements were clipped or became 0."""

    histogram: Histogram = field(default_factory=Histogram)
    elements: int = 0
    clipped: int = 0
    zeros: int = 0

    def add(self, value: Tensor, fmt: PlanFormat, rounding: Rounding) -> None:
        low, high = clipping_edges(fmt, rounding)
        self.histogram.add(value)
        self.elements += value.numel()
        self.clipped += int(((value < low) | (value > high)).sum())
        self.zeros += int((value.abs() < fmt.step / 2).sum())

    @property
    def clipped_part(self) -> float:
        """Fraction of the elements that were outside the format's range."""
        return self.clipped / max(self.elements, 1)

    @property
    def silent(self) -> bool:
        return self.zeros == self.elements


class Observing(FakeQuant):
    """Fake-quant that counts every tensor whose exponent can move, before it is rounded."""

    def __init__(self, plan: QuantPlan, specs: Mapping[str, PointSpec]) -> None:
        super().__init__(plan, specs)
        self.points = {key: Observed() for key in movable(plan, specs)}

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        point = self.points.get(key)
        if point is not None and (spec.storage is Storage.RAM or not point.elements):
            point.add(value.detach(), self.plan.points[key], self.plan.rounding_of(key, spec).alone)
        return super().tap(key, spec, value, iteration)


def observe(model: CapsNet, plan: QuantPlan, images: Tensor, batch_size: int = 64) -> dict[str, Observed]:
    """What every movable point holds before its rounding when ``model`` computes ``images`` under ``plan``.

    Args:
        images: float (N, C, H, W).

    Raises:
        ModelError: a NaN or an infinity at a point.
    """
    handler = Observing(plan, model.points())
    with torch.no_grad(), model.handle(handler):
        for batch in torch.split(images, batch_size):
            model(batch)
    return handler.points


def recalibrate(plan: QuantPlan, specs: Mapping[str, PointSpec], observed: Mapping[str, Observed]) -> QuantPlan:
    """The plan with the exponents of least squared error on what was observed; no width changes."""
    moved: dict[str, AnyFormat] = {}
    for key, point in observed.items():
        fmt = plan.points[key]
        assert isinstance(fmt, FixedFormat | LogFormat)  # see movable
        moved[key] = best_format(specs[key], point.histogram, fmt, plan.rounding_of(key, specs[key]).alone)
    return plan.with_formats(moved)


class LearnedScales:
    """Trained scales of a plan's movable fixed-point formats, one scalar parameter each: log2 of the step.

    Biases and batch-norm constants, wide and few, are left to the plan.

    Attributes:
        parameters: by point key, in the order of the points.
    """

    def __init__(self, plan: QuantPlan, specs: Mapping[str, PointSpec]) -> None:
        constants = (Role.BIAS, Role.SCALE, Role.OFFSET)
        keys = [key for key in movable(plan, specs) if specs[key].role not in constants]
        keys = [key for key in keys if isinstance(plan.points[key], FixedFormat)]
        self.parameters = {key: nn.Parameter(torch.zeros(())) for key in keys}
        self.start(plan)

    def start(self, plan: QuantPlan) -> None:
        """Begin at the exponents of ``plan``."""
        first = {key: -float(plan.points[key].frac_bits) for key in self.parameters}
        self.restore({"first": first, "now": first})

    def state(self) -> dict[str, dict[str, float]]:
        """Where it began and where it is, for a checkpoint."""
        now = {key: float(value.detach()) for key, value in self.parameters.items()}
        return {"first": dict(self.first), "now": now}

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from what :meth:`state` gave."""
        self.first = dict(state["first"])
        for key, parameter in self.parameters.items():
            parameter.fill_(state["now"][key])

    @torch.no_grad()
    def follow(self, plan: QuantPlan) -> QuantPlan:
        """The plan with each exponent moved to its parameter's nearest integer, where that is clearly another one."""
        moved: dict[str, AnyFormat] = {}
        for key, parameter in self.parameters.items():
            fmt = plan.points[key]
            assert isinstance(fmt, FixedFormat)
            parameter.clamp_(self.first[key] - REACH, self.first[key] + REACH)
            if abs(float(parameter.detach()) + fmt.frac_bits) > HYSTERESIS:
                moved[key] = replace(fmt, frac_bits=-round(float(parameter.detach())))
        return plan.with_formats(moved) if moved else plan
