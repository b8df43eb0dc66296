"""What the tests of reconstruction share: a plan of equal widths, and how far a quantized model is from float."""

from typing import Any

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import fake_quantized


def plan_of(case: Any, weights: int, activations: int = 8) -> QuantPlan:
    """One width for all weights, one for all computed tensors."""
    return uniform_plan(case.model, case.calibration, weights, activations=activations)


def length_error(case: Any, model: CapsNet, plan: QuantPlan, images: Tensor) -> float:
    """Mean squared difference of the class-capsule lengths to the case's float model."""
    with torch.no_grad():
        wanted = lengths(case.model(to_float(images)))
        with fake_quantized(model, plan):
            return float((lengths(model(to_float(images))) - wanted).square().mean())


def differing(first: QuantPlan, second: QuantPlan) -> list[str]:
    """Points of two plans whose formats differ."""
    keys = sorted({*first.points, *second.points})
    return [key for key in keys if first.points.get(key) != second.points.get(key)]
