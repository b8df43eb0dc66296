"""Units: the sets of points that share one width, from one pair for a whole network to one for every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from caplet.models.base import CapsNet
from caplet.nn.points import PointSpec, Storage
from caplet.quant.choices import Granularity
from caplet.quant.plan.formats import FormatRule, bits_of
from caplet.quant.plan.memory import MemoryCount, count_bits
from caplet.quant.plan.target import Hardware
from caplet.quant.plan.widths import group_points


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
    model: CapsNet, granularity: Granularity, hardware: Hardware, rule: FormatRule | None = None
) -> tuple[Unit, ...]:
    """The units of a model in order of execution, weights before activations.

    A unit's widths are those that change the bits of at least one of its points and that the hardware has a container
    for; with ``hardware.only_containers`` the containers themselves.
    """
    return tuple(
        _unit(model, name, storage, keys, hardware, rule or FormatRule())
        for name, storage, keys in _members(model, granularity)
    )


def _members(model: CapsNet, granularity: Granularity) -> Iterable[tuple[str, Storage, tuple[str, ...]]]:
    specs = model.points()
    if granularity is Granularity.NETWORK:
        scopes = {"network": tuple(specs)}
    elif granularity is Granularity.BLOCK:
        scopes = {group: tuple(points) for group, points in group_points(model).items()}
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


def _unit(
    model: CapsNet, name: str, storage: Storage, keys: tuple[str, ...], hardware: Hardware, rule: FormatRule
) -> Unit:
    specs = model.points()
    containers = hardware.containers(specs[keys[0]])
    offered = containers if hardware.only_containers else range(1, containers[-1] + 1)
    kept: dict[tuple[int, ...], int] = {}
    for width in offered:
        # The largest of several widths that come to the same bits, but none above what the bits are.
        bits = tuple(bits_of(specs[key], width, rule) for key in keys)
        kept[bits] = min(width, max(bits))
    return Unit(name, storage, keys, tuple(sorted(set(kept.values()))), sum(specs[key].elements for key in keys))


@dataclass(frozen=True)
class UnitWidths:
    """A width (bits) for every unit, in the units' order.

    Attributes:
        names: of the units.
        bits: their widths.
    """

    names: tuple[str, ...]
    bits: tuple[int, ...]

    @classmethod
    def uniform(cls, units: Iterable[Unit], width: int) -> UnitWidths:
        """Every unit at ``width``, or at the largest of its widths that is not above it."""
        units = tuple(units)
        return cls(tuple(unit.name for unit in units), tuple(unit.at_most(width) for unit in units))

    def with_width(self, index: int, width: int) -> UnitWidths:
        """These widths with one replaced."""
        return replace(self, bits=(*self.bits[:index], width, *self.bits[index + 1 :]))


def unit_point_widths(units: Iterable[Unit], widths: UnitWidths) -> dict[str, int]:
    """The width of every point by key."""
    return {key: width for unit, width in zip(units, widths.bits, strict=True) for key in unit.points}


def unit_memory(
    model: CapsNet, units: Iterable[Unit], widths: UnitWidths, rule: FormatRule | None = None
) -> MemoryCount:
    """The papers' memory count that a plan of these widths would have."""
    specs, used = model.points(), rule or FormatRule()
    chosen = unit_point_widths(units, widths)
    return count_bits(model, {key: bits_of(specs[key], width, used) for key, width in chosen.items()})


def unit_bits(specs: Mapping[str, PointSpec], unit: Unit, width: int, rule: FormatRule) -> int:
    """Elements x bits of one unit at a width."""
    return sum(specs[key].elements * bits_of(specs[key], width, rule) for key in unit.points)
