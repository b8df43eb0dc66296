"""Widths by layer group: what the searches move, and how widths become a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from caplet.errors import PlanError
from caplet.fixed import Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import ROUTING_ROLES, PointSpec, Storage
from caplet.quant.plan.formats import FormatRule, FormatSource, bits_of
from caplet.quant.plan.memory import MemoryCount, count_bits
from caplet.quant.plan.plan import QuantPlan


@dataclass(frozen=True)
class Widths:
    """Three widths (bits, 1..16) for every layer group, in the order of ``model.groups()``.

    Attributes:
        weights: of the group's constants (weights, biases, batch-norm constants).
        activations: of the tensors it computes; the first group's is also the input image's.
        routing: of the preactivations and logits inside its routings of more than one iteration.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    routing: tuple[int, ...]

    @classmethod
    def uniform(cls, groups: int, width: int) -> Widths:
        """The same width everywhere."""
        return cls((width,) * groups, (width,) * groups, (width,) * groups)

    def with_activations(self, activations: Sequence[int]) -> Widths:
        """Other activation widths, which the routing widths follow."""
        return replace(self, activations=tuple(activations), routing=tuple(activations))


def group_points(model: CapsNet) -> dict[str, dict[str, PointSpec]]:
    """The points of every layer group by key; the input image is counted to the first group."""
    first, *rest = model.stages()
    points = {stage.name: {k: s for layer in stage.layers for k, s in layer.points().items()} for stage in rest}
    name = rest[0].name
    points[name] = {**{k: s for layer in first.layers for k, s in layer.points().items()}, **points[name]}
    return points


def is_routing(spec: PointSpec) -> bool:
    """Whether the routing width sets this point: a preactivation or logits inside a routing of several iterations."""
    return spec.routed and spec.role in ROUTING_ROLES


def point_widths(model: CapsNet, widths: Widths) -> dict[str, int]:
    """The width of every point by key.

    Raises:
        PlanError: not one width of each kind per group.
    """
    groups = group_points(model)
    for kind in (widths.weights, widths.activations, widths.routing):
        if len(kind) != len(groups):
            raise PlanError(f"{len(kind)} widths for the {len(groups)} groups {', '.join(groups)}; give one per group")
    return {
        key: weight if spec.storage is Storage.FLASH else routing if is_routing(spec) else activation
        for points, weight, activation, routing in zip(
            groups.values(), widths.weights, widths.activations, widths.routing, strict=True
        )
        for key, spec in points.items()
    }


def make_plan(
    model: CapsNet,
    source: FormatSource,
    widths: Widths,
    rule: FormatRule | None = None,
    rounding: Rounding = Rounding.NEAREST,
    seed: int = 0,
) -> QuantPlan:
    """The plan in which every point has its group's width and the format that ``source`` chooses for that.

    Args:
        source: a :class:`~caplet.quant.plan.calibrate.Calibration`, or a
            :class:`~caplet.quant.measure.tune.Tuner` on top of one.
    """
    chosen = point_widths(model, widths)
    return QuantPlan({key: source.format(key, w, rule, rounding) for key, w in chosen.items()}, rounding, seed)


def width_memory(model: CapsNet, widths: Widths, rule: FormatRule | None = None) -> MemoryCount:
    """The papers' memory count that a plan of these widths would have."""
    specs, used = model.points(), rule or FormatRule()
    return count_bits(model, {k: bits_of(specs[k], w, used) for k, w in point_widths(model, widths).items()})


def describe(model: CapsNet, plan: QuantPlan) -> dict[str, dict[str, list[int]]]:
    """The widths in use, for logs and tables: group -> kind (weights, activations, routing) -> different bits."""
    table: dict[str, dict[str, list[int]]] = {}
    for group, points in group_points(model).items():
        kinds: dict[str, set[int]] = {"weights": set(), "activations": set(), "routing": set()}
        for key, spec in points.items():
            flash = spec.storage is Storage.FLASH
            kind = "weights" if flash else "routing" if is_routing(spec) else "activations"
            kinds[kind].add(plan.points[key].bits)
        table[group] = {kind: sorted(bits) for kind, bits in kinds.items() if bits}
    return table
