"""Searches without networks: an evaluator that answers by a rule, a workbench for it, and widths by layer group."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from caplet.jobs.quantize.accept import footprint
from caplet.models.base import CapsNet
from caplet.quant.measure.evaluator import Evaluator, PlanResult
from caplet.quant.plan.formats import FormatSource
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import KINDS, Unit, Widths, group_units, make_plan
from caplet.quant.search.search import Step, Workbench


class Scripted(Evaluator):
    """Answers from a rule on the bits instead of computing: images correct out of 1,000, of which float has 900."""

    def __init__(self, case: Any, rule: Callable[[dict[str, int]], int]) -> None:
        super().__init__(case.model, case.images, case.labels)
        self.rule, self.asked = rule, 0

    def float_result(self) -> PlanResult:
        return PlanResult("float", np.arange(1000) < 900, 1000, 900, 900, 1.0)

    def evaluate(self, plan: QuantPlan) -> PlanResult:
        self.asked += 1
        bits = {key: fmt.bits for key, fmt in plan.points.items()}
        correct = self.rule(bits)
        return PlanResult(plan.digest(), np.arange(1000) < correct, 1000, correct, correct, 1.0)


def ignore(step: Step) -> None:
    """A listener that does not listen."""


def bench(case: Any, evaluator: Evaluator, on_step: Callable[[Step], None] = ignore, images: int = 32) -> Workbench:
    """A workbench of the case's own calibration; footprints are those of lowered plans."""
    find = partial(footprint, case.model)
    return Workbench(evaluator, case.calibration, find, on_step, sensitivity_images=images)


def group_widths(
    model: CapsNet, weights: tuple[int, ...], activations: tuple[int, ...], routing: tuple[int, ...] | None = None
) -> tuple[tuple[Unit, ...], Widths]:
    """Units and widths by layer group; routing widths are the activations' where they are not given."""
    chosen = dict(zip(KINDS, (weights, activations, routing or activations), strict=True))
    bits = {
        f"{group} {kind}": width for kind in KINDS for group, width in zip(model.groups(), chosen[kind], strict=True)
    }
    units = group_units(model)
    return units, Widths(tuple(unit.name for unit in units), tuple(bits[unit.name] for unit in units))


def group_plan(
    model: CapsNet,
    source: FormatSource,
    weights: tuple[int, ...],
    activations: tuple[int, ...],
    routing: tuple[int, ...] | None = None,
) -> QuantPlan:
    """The plan of widths by layer group."""
    return make_plan(source, *group_widths(model, weights, activations, routing))
