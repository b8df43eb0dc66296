"""Units: the sets of points that share one width, and how widths of units become a plan."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.models.base import CapsNet
from caplet.nn.points import ROUTING_ROLES, PointSpec, Role, Storage
from caplet.quant.choices import Granularity
from caplet.quant.plan.formats import FormatRule, FormatSource, bits_of
from caplet.quant.plan.memory import MemoryCount, count_bits
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Hardware

WEIGHTS, ACTIVATIONS, ROUTING = KINDS = ("weights", "activations", "routing")
"""Kinds of points: constants, computed tensors, and the preactivations and logits inside a routing of iterations."""


@dataclass(frozen=True)
class Unit:
    """Points that share one width.

    Attributes:
        name: e.g. ``"digit weights"``.
        storage: flash (weights) or RAM (activations); all its points have it.
        points: their keys.
        widths: the widths that it can have, ascending, bits.
        elements: of all its points.
    """

    name: str
    storage: Storage
    points: tuple[str, ...]
    widths: tuple[int, ...]
    elements: int

    def below(self, width: int) -> int | None:
        """The next width under ``width``, None where there is none."""
        return max((w for w in self.widths if w < width), default=None)

    def at_most(self, width: int) -> int:
        """The largest width that is not above ``width``, or the smallest one."""
        return max((w for w in self.widths if w <= width), default=self.widths[0])


def make_units(
    model: CapsNet, granularity: Granularity, hardware: Hardware, rule: FormatRule = FormatRule()
) -> tuple[Unit, ...]:
    """The units of a model in order of execution, weights before activations.

    A unit's widths are those that change the bits of at least one of its points and that the hardware has a container
    for; with ``hardware.only_containers`` the containers themselves.
    """
    specs, units = model.points(), []
    for name, storage, keys in _members(model, granularity):
        containers = hardware.containers(specs[keys[0]])
        different: dict[tuple[int, ...], int] = {}
        for width in containers if hardware.only_containers else range(1, containers[-1] + 1):
            # The largest of several widths that come to the same bits, but none above what the bits are.
            bits = tuple(bits_of(specs[key], width, rule) for key in keys)
            different[bits] = min(width, max(bits))
        widths = tuple(sorted(set(different.values())))
        units.append(Unit(name, storage, keys, widths, sum(specs[key].elements for key in keys)))
    return tuple(units)


def _members(model: CapsNet, granularity: Granularity) -> Iterator[tuple[str, Storage, tuple[str, ...]]]:
    specs = model.points()
    if granularity is Granularity.NETWORK:
        scopes = {"network": tuple(specs)}
    elif granularity is Granularity.BLOCK:
        scopes = {group: tuple(points) for group, points in _group_points(model).items()}
    else:
        scopes = {layer.name: tuple(layer.points()) for layer in model.layers()}
    for scope, keys in scopes.items():
        constants = tuple(key for key in keys if specs[key].storage is Storage.FLASH)
        computed = tuple(key for key in keys if specs[key].storage is Storage.RAM)
        if constants:
            yield f"{scope} weights", Storage.FLASH, constants
        if computed and granularity is not Granularity.TENSOR:
            yield f"{scope} activations", Storage.RAM, computed
        elif computed:
            yield from ((key, Storage.RAM, (key,)) for key in computed)


def kind_of(spec: PointSpec) -> str:
    """Which of the :data:`KINDS` a point is of."""
    if spec.storage is Storage.FLASH:
        return WEIGHTS
    return ROUTING if spec.routed and spec.role in ROUTING_ROLES else ACTIVATIONS


def group_units(model: CapsNet) -> tuple[Unit, ...]:
    """Up to three units for every layer group, one of each kind: weights, activations, and the routing's own tensors.

    Every width from 1 to 16 counts, also where it changes no bits; the routing's tensors, all signed, start at 2.
    """
    units = []
    for group, points in _group_points(model).items():
        for kind in KINDS:
            keys = tuple(key for key, spec in points.items() if kind_of(spec) == kind)
            if keys:
                storage = Storage.FLASH if kind == WEIGHTS else Storage.RAM
                widths = tuple(range(2 if kind == ROUTING else 1, MAX_BITS + 1))
                units.append(Unit(f"{group} {kind}", storage, keys, widths, sum(points[k].elements for k in keys)))
    return tuple(units)


def _group_points(model: CapsNet) -> dict[str, dict[str, PointSpec]]:
    """The points of every layer group by key; the input image is counted to the first group."""
    first, *rest = ({k: s for layer in stage.layers for k, s in layer.points().items()} for stage in model.stages())
    return dict(zip(model.groups(), [{**first, **rest[0]}, *rest[1:]], strict=True))


@dataclass(frozen=True)
class Widths:
    """A width (bits) for every unit, in the units' order.

    Attributes:
        names: of the units.
        bits: their widths.
    """

    names: tuple[str, ...]
    bits: tuple[int, ...]

    @classmethod
    def uniform(cls, units: Iterable[Unit], width: int) -> "Widths":
        """Every unit at ``width``, or at the largest of its widths that is not above it."""
        units = tuple(units)
        return cls(tuple(unit.name for unit in units), tuple(unit.at_most(width) for unit in units))

    def with_width(self, index: int, width: int) -> "Widths":
        """These widths with one replaced."""
        return replace(self, bits=(*self.bits[:index], width, *self.bits[index + 1 :]))


def point_widths(units: Iterable[Unit], widths: Widths) -> dict[str, int]:
    """The width of every point by key."""
    return {key: width for unit, width in zip(units, widths.bits, strict=True) for key in unit.points}


def make_plan(
    source: FormatSource,
    units: Iterable[Unit],
    widths: Widths,
    rule: FormatRule = FormatRule(),
    rounding: Rounding = Rounding.NEAREST,
    seed: int = 0,
) -> QuantPlan:
    """The plan in which every point has its unit's width and the format that ``source`` chooses for that."""
    chosen = point_widths(units, widths)
    return QuantPlan({key: source.format(key, w, rule, rounding) for key, w in chosen.items()}, rounding, seed)


def uniform_plan(
    model: CapsNet,
    source: FormatSource,
    bits: int,
    rule: FormatRule = FormatRule(),
    rounding: Rounding = Rounding.NEAREST,
    seed: int = 0,
    *,
    activations: int | None = None,
) -> QuantPlan:
    """The plan of one width everywhere, or of ``bits`` for the weights and another width for all computed tensors.

    Args:
        source: a :class:`~caplet.quant.plan.calibrate.Calibration`, or a
            :class:`~caplet.quant.measure.tune.Tuner` on top of one.

    Raises:
        PlanError: a width outside 1..16.
    """
    computed = bits if activations is None else activations
    chosen = {key: bits if spec.storage is Storage.FLASH else computed for key, spec in model.points().items()}
    return QuantPlan({key: source.format(key, w, rule, rounding) for key, w in chosen.items()}, rounding, seed)


def width_memory(model: CapsNet, units: Iterable[Unit], widths: Widths, rule: FormatRule = FormatRule()) -> MemoryCount:
    """The papers' memory count that a plan of these widths would have."""
    specs = model.points()
    return count_bits(model, {key: bits_of(specs[key], w, rule) for key, w in point_widths(units, widths).items()})


def unit_bits(specs: Mapping[str, PointSpec], unit: Unit, width: int, rule: FormatRule) -> int:
    """Elements x bits of one unit at a width."""
    return sum(specs[key].elements * bits_of(specs[key], width, rule) for key in unit.points)


def bits_in_use(model: CapsNet, plan: QuantPlan, *, constants: bool = True) -> dict[str, dict[str, list[int]]]:
    """The widths in use, for logs: layer group -> kind -> different bits, ascending; a group without routing has none.

    Args:
        constants: whether biases and batch-norm constants, a few elements of many bits, count with the weights.
    """
    table: dict[str, dict[str, list[int]]] = {}
    for group, points in _group_points(model).items():
        kinds: dict[str, set[int]] = {kind: set() for kind in KINDS}
        for key, spec in points.items():
            if constants or spec.role not in (Role.BIAS, Role.SCALE, Role.OFFSET):
                kinds[kind_of(spec)].add(plan.points[key].bits)
        table[group] = {kind: sorted(bits) for kind, bits in kinds.items() if bits}
    return table


def width_table(model: CapsNet, plan: QuantPlan) -> dict[str, dict[str, int | str]]:
    """The widths in use, for tables: layer group -> kind -> bits; a range where they differ. Biases do not count."""
    return {
        group: {kind: bits[0] if len(bits) == 1 else f"{bits[0]}-{bits[-1]}" for kind, bits in kinds.items()}
        for group, kinds in bits_in_use(model, plan, constants=False).items()
    }
