"""Exponents tuned together: each moved while all others, and all widths, are as the device will have them.

:mod:`caplet.quant.measure.tune` chooses the exponent of one point while everything else is in float. Errors of several
points do not simply add up, so here the whole plan is quantized and one exponent after the other takes the step that
brings the lengths of the class capsules nearest to the float model's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import PlanError
from caplet.fixed import FixedFormat, PlanFormat
from caplet.models.base import CapsNet, State
from caplet.nn.functional import lengths
from caplet.nn.points import PointSpec, Storage
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.simulate.fake_quant import FakeQuant, WeightCache

_FARTHEST = 3
"""Steps that an exponent may move in one sweep."""
_HARM = 1e-2
"""A step that adds more than this share of the error is not tried again in a later sweep."""
_GAIN = 1e-3
"""A step must take away at least this share of the error, or it is no more than noise."""


class ComputedOnly(FakeQuant):
    """Fake-quant of computed tensors; constants pass as they are."""

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if spec.storage is Storage.FLASH:
            return value
        return super().tap(key, spec, value, iteration)


@dataclass(frozen=True)
class Tuned:
    """The outcome of a tuning.

    Attributes:
        plan: with the exponents found.
        before, after: mean squared difference of the class-capsule lengths to the float model's.
    """

    plan: QuantPlan
    before: float
    after: float


class ExponentTuner:
    """Tunes a plan's exponents on one model and a few images.

    Args:
        model: whose quantized form is tuned (its weights may be reconstructed already).
        source: the float model that gives the wanted lengths; it may be ``model`` itself.
        images: uint8 (N, C, H, W), a few dozen calibration images.
        constants: False leaves constants as they are while tuning.
    """

    def __init__(self, model: CapsNet, source: CapsNet, images: Tensor, *, constants: bool = True) -> None:
        self._model = model.eval()
        self._specs = model.points()
        self._stages = model.stages()
        self._stage_of = {
            key: i for i, stage in enumerate(self._stages) for layer in stage.layers for key in layer.points()
        }
        self._weights = WeightCache()
        self._handler = FakeQuant if constants else ComputedOnly
        self._images = to_float(images)
        self._harmful: set[tuple[str, PlanFormat]] = set()
        with torch.no_grad():
            self._wanted = lengths(source.eval()(self._images))

    def tune(self, plan: QuantPlan, keys: Iterable[str], sweeps: int = 2) -> Tuned:
        """Move the exponents of the fixed-point points ``keys``, in order of execution, until nothing helps.

        Args:
            sweeps: passes over all keys at most.
        """
        wanted = set(keys)
        order = [key for key in self._specs if key in wanted and isinstance(plan.points[key], FixedFormat)]
        states, error = self._run(plan, [(self._images,)])
        before = error
        self._harmful.clear()
        for _ in range(sweeps):
            start = plan
            for key in order:
                plan, states, error = self._move(plan, key, states, error)
            if plan == start:
                break
        return Tuned(plan, before, error)

    def _move(
        self, plan: QuantPlan, key: str, states: list[State], error: float
    ) -> tuple[QuantPlan, list[State], float]:
        """Step by step in the direction that helps."""
        fmt = plan.points[key]
        assert isinstance(fmt, FixedFormat)
        prefix = states[: self._stage_of[key] + 1]
        for direction in (1, -1):
            start = plan
            for distance in range(1, _FARTHEST + 1):
                tried = self._with_exponent(plan, key, replace(fmt, frac_bits=fmt.frac_bits + direction * distance))
                if tried is None or (key, tried.points[key]) in self._harmful:
                    break
                found, reached = self._run(tried, prefix)
                if reached >= (1 - _GAIN) * error:
                    if reached > (1 + _HARM) * error:
                        self._harmful.add((key, tried.points[key]))
                    break
                plan, states, error = tried, found, reached
            if plan != start:
                break
        return plan, states, error

    def _with_exponent(self, plan: QuantPlan, key: str, fmt: FixedFormat) -> QuantPlan | None:
        """The plan with one format replaced; None where softmax or squash cannot work with it."""
        tried = plan.with_formats({key: fmt})
        try:
            tried.check(self._model)
        except PlanError:
            return None
        return tried

    def _run(self, plan: QuantPlan, prefix: list[State]) -> tuple[list[State], float]:
        """The states before every stage under ``plan``, of which the first are known, and the error."""
        states = list(prefix)
        handler = self._handler(plan, self._specs, weights=self._weights)
        with torch.no_grad(), self._model.handle(handler):
            for stage in self._stages[len(states) - 1 :]:
                states.append(stage.run(tuple(tensor.clone() for tensor in states[-1])))
        error = (lengths(states.pop()[0]) - self._wanted).square().mean()
        return states, float(error)


def computed_points(model: CapsNet) -> tuple[str, ...]:
    """Keys of all tensors that the device computes."""
    return tuple(key for key, spec in model.points().items() if spec.storage is Storage.RAM)
