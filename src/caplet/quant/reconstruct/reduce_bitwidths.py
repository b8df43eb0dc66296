"""Narrower widths for a reconstructed model: what nearest rounding could not afford, fitted codes often can."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from caplet.fixed import Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import Role, Storage
from caplet.quant.plan.formats import FormatRule, FormatSource, bits_of
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Hardware
from caplet.quant.reconstruct.reconstruct import Reconstruction

LEAST_FRACTION = 0.01
"""Points with fewer than this fraction of all elements of their storage keep their widths: they save little."""
LEAST = 2

Measure = Callable[[Reconstruction], int]
"""How many calibration images a fitted model classifies correctly."""


@dataclass(frozen=True)
class WidthStep:
    """A lower width of one point that was evaluated.

    Attributes:
        key: the point.
        bits: the lower width.
        correct, needed: images.
        accepted: whether the width stays.
    """

    key: str
    bits: int
    correct: int
    needed: int
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, under the names that records have."""
        data = dict(vars(self))
        return {**data, "kept": data.pop("accepted")}


def reduce_bitwidths(
    model: CapsNet,
    fit: Callable[[QuantPlan], Reconstruction],
    plan: QuantPlan,
    source: FormatSource,
    rule: FormatRule,
    measure: Measure,
    needed: int,
    hardware: Hardware,
    on_step: Callable[[WidthStep], None] = lambda step: None,
) -> tuple[tuple[tuple[QuantPlan, Reconstruction], ...], tuple[WidthStep, ...]]:
    """Lower widths point by point, the one with most bits first, weights before computed tensors.

    The narrowest width that keeps the target is found by bisection, all other widths as they are by then.

    Args:
        fit: the model for a plan.
        plan: as given to ``fit`` (without the exponents that it chooses); its fit keeps the target.
        source, rule: choose the format of a point at a new width.
        needed: images that ``measure`` must count.
        hardware: its widths are evaluated; where it has only whole containers, those.

    Returns:
        Every plan that keeps the target with its fit, each smaller than the one before; and every width that was
        evaluated.
    """
    specs = model.points()
    steps: list[WidthStep] = []
    smaller: list[tuple[QuantPlan, Reconstruction]] = []

    def keeps(key: str, bits: int) -> bool:
        nonlocal plan
        lower = plan.with_formats({key: source.format(key, bits, rule, Rounding.NEAREST)})
        fitted = fit(lower)
        correct = measure(fitted)
        steps.append(WidthStep(key, bits, correct, needed, correct >= needed))
        on_step(steps[-1])
        if steps[-1].accepted:
            plan = lower
            smaller.append((lower, fitted))
        return steps[-1].accepted

    for storage in (Storage.FLASH, Storage.RAM):
        total = sum(spec.elements for spec in specs.values() if spec.storage is storage)
        keys = [
            key
            for key, spec in specs.items()
            if spec.storage is storage
            and spec.elements >= LEAST_FRACTION * total
            and spec.role not in (Role.IMAGE, Role.BIAS, Role.SCALE, Role.OFFSET)
        ]
        for key in sorted(keys, key=lambda k: -specs[k].elements * plan.points[k].bits):
            containers = hardware.containers(specs[key])
            widths = containers if hardware.only_containers else range(1, containers[-1] + 1)
            offered = [bits for bits in widths if bits_of(specs[key], LEAST, rule) <= bits < plan.points[key].bits]
            bisect_left(offered, True, key=partial(keeps, key))
    return tuple(smaller), tuple(steps)
