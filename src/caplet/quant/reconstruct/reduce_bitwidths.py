"""Narrower widths for a reconstructed model: what nearest rounding could not afford, fitted codes often can."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caplet.fixed import Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import Role, Storage
from caplet.quant.plan.formats import FormatRule, FormatSource, bits_of
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Hardware

LEAST_FRACTION = 0.01
"""Points with fewer than this fraction of all elements of their storage keep their widths: they save little."""
LEAST = 2


@dataclass(frozen=True)
class WidthStep:
    """A lower width of one point that was evaluated.

    Attributes:
        key: the point.
        bits: the lower width.
        accepted: whether the width stays.
    """

    key: str
    bits: int
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, under the names that records have."""
        return {"key": self.key, "bits": self.bits, "kept": self.accepted}


def reduce_bitwidths(
    model: CapsNet,
    plan: QuantPlan,
    source: FormatSource,
    rule: FormatRule,
    keeps: Callable[[QuantPlan, str], bool],
    hardware: Hardware,
) -> tuple[WidthStep, ...]:
    """Lower widths point by point, the one with most bits first, weights before computed tensors.

    Each point's width falls in growing strides as long as the fit of the plan keeps the target, all other widths as
    they are by then; behind a rejection the strides begin anew.

    Args:
        plan: its fit keeps the target.
        source, rule: choose the format of a point at a new width.
        keeps: ``keeps(plan, about)``: whether the fit of a smaller plan keeps the target.
        hardware: its widths are evaluated; where it has only whole containers, those.

    Returns:
        Every width that was evaluated.
    """
    specs = model.points()
    steps: list[WidthStep] = []

    def lowered(key: str, bits: int) -> bool:
        nonlocal plan
        lower = plan.with_formats({key: source.format(key, bits, rule, Rounding.NEAREST)})
        steps.append(WidthStep(key, bits, keeps(lower, f"{key} at {bits} bits")))
        if steps[-1].accepted:
            plan = lower
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
            stride = 1
            while offered:  # the widest last
                stride = min(stride, len(offered))
                if lowered(key, offered[-stride]):
                    offered, stride = offered[:-stride], 2 * stride
                else:
                    offered, stride = offered[len(offered) - stride + 1 :], 1
    return tuple(steps)
