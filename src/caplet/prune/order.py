"""In which order units go, and how many of them for a target: every target is a length of one sequence of removals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from caplet.errors import ConfigError
from caplet.models.assemble import skeleton
from caplet.models.base import CapsNet
from caplet.models.cost import Cost, cost_of
from caplet.prune.rules import Kind, Space
from caplet.prune.scores import Scores, Values
from caplet.prune.structure import Keep, Selection, Structure

GLOBAL_FLOOR = 0.125
"""The fraction of every space that the allocations ``global`` and ``measured`` leave at least: beyond it they guess."""


class Allocation(StrEnum):
    """How removals are divided among the spaces."""

    UNIFORM = "uniform"  # the same fraction of every space
    GLOBAL = "global"  # units of all spaces in one order: score per multiply-accumulate
    MEASURED = "measured"  # the same, by the loss that removals from each space alone were measured to add


@dataclass(frozen=True)
class Order:
    """A sequence of removals.

    Attributes:
        start: what stays before the first removal.
        removals: (space, unit), the first to go first; of every space at least one unit is never in it.
    """

    structure: Structure
    start: Selection
    removals: tuple[tuple[str, int], ...]

    def selection(self, count: int) -> dict[str, Keep]:
        """What stays after ``count`` removals, with all that they imply."""
        keep = {name: units.copy() for name, units in self.start.items()}
        gone = self.removals[:count]
        for space, unit in gone:
            keep[space][unit] = False
        for voters in self.structure.voters:
            for source, (units, types) in enumerate(self.structure.by_source(voters)):
                voting = keep[voters.sources[source][0]][types]
                if voting.any() and not keep[voters.space][units[voting]].any():
                    # The types that stay are others than those of the capsules that stay: the last to go stays.
                    candidates = set(units[voting].tolist())
                    last = [unit for name, unit in gone if name == voters.space and unit in candidates]
                    keep[voters.space][last[-1:]] = True
        return self.structure.close(keep)


def removal_order(
    structure: Structure,
    scores: Scores,
    spaces: Sequence[Space],
    allocation: Allocation,
    unit_macs: Mapping[str, float],
    fixed: Mapping[str, float] | None = None,
    prices: Mapping[str, Values] | None = None,
) -> Order:
    """The order in which units of ``spaces`` go.

    Args:
        unit_macs: by space, the multiply-accumulates that one of its units costs; for ``global`` and ``measured``.
        prices: by space, what each removal adds to the loss, the least important unit first; for ``measured``
            (:func:`caplet.prune.allocate.measured_prices`).
        fixed: by space, what stays from the start: a fraction up to 1, or from 2 on a number of units. Such spaces are
            not in the sequence.

    Raises:
        ConfigError: an unknown space in ``fixed``, or a value out of range.
    """
    start = structure.whole()
    # Single capsules are chosen among those of the types that stay, so after them.
    for name, value in sorted((fixed or {}).items(), key=lambda item: item[0].endswith(f".{Kind.CAPSULES}")):
        if name not in structure.spaces:
            raise ConfigError(f"there is no space {name!r} to prune; this model has {', '.join(structure.spaces)}")
        alive = structure.close(start)[name]
        start[name] = _best(np.where(alive, scores[name], -1.0), _count(structure.spaces[name], value)) & alive
    keyed: list[tuple[float, int, str, int]] = []
    for place, space in enumerate(spaces):
        if space.name in (fixed or {}):
            continue
        ranked = np.argsort(scores[space.name], kind="stable")
        least = 1 if allocation is Allocation.UNIFORM else max(1, round(GLOBAL_FLOOR * space.size))
        for rank, unit in enumerate(ranked[: space.size - least].tolist()):
            if allocation is Allocation.UNIFORM:
                key = (rank + 1) / space.size
            elif allocation is Allocation.MEASURED:
                assert prices is not None
                key = float(prices[space.name][rank]) / max(unit_macs[space.name], 1.0)
            else:
                key = float(scores[space.name][unit]) / max(unit_macs[space.name], 1.0)
            keyed.append((key, place, space.name, unit))
    keyed.sort(key=lambda item: item[:2])
    return Order(structure, structure.close(start), tuple((name, unit) for _, _, name, unit in keyed))


def _count(space: Space, value: float) -> int:
    """Units of ``space`` for a fraction in (0, 1] or a whole number."""
    if 0 < value <= 1:
        count = round(value * space.size)
    elif value == int(value) and 1 < value <= space.size:
        count = int(value)
    else:
        raise ConfigError(
            f"space {space.name}: {value:g} to keep; the rule is a fraction in (0, 1], or a number of units up to"
            f" {space.size}"
        )
    if count < 1:
        raise ConfigError(
            f"space {space.name}: {value:g} of {space.size} {space.kind} would leave none; the smallest size is 1"
            f" (keep {1 / space.size:.2g})"
        )
    return count


def _best(scores: np.ndarray, count: int) -> Keep:
    keep = np.zeros(len(scores), dtype=np.bool_)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


def resized_cost(model: CapsNet, structure: Structure, selection: Selection) -> Cost:
    """The cost of the model that surgery would give; nothing is computed."""
    places = {voters.space: structure.places(voters, selection) for voters in structure.voters}
    return cost_of(skeleton(model.family, model.resized(structure.sizes(selection), places)))


def macs_per_unit(model: CapsNet, structure: Structure, spaces: Sequence[Space]) -> dict[str, float]:
    """By space, the multiply-accumulates that one of its units costs in ``model``, all that goes with it included."""
    whole = cost_of(model).macs
    result = {}
    for space in spaces:
        half = np.arange(space.size) < max(1, space.size // 2)
        removed = space.size - int(half.sum())
        selection = structure.close({space.name: half}) if removed else None
        saved = whole - resized_cost(model, structure, selection).macs if selection else 0
        result[space.name] = saved / max(removed, 1)
    return result


def fewest_removals(order: Order, met: Callable[[dict[str, Keep]], bool]) -> int | None:
    """The fewest removals with which ``met`` holds (it stays so once it holds), or None if it never does."""
    low, high = 0, len(order.removals)
    if not met(order.selection(high)):
        return None
    while low < high:
        middle = (low + high) // 2
        if met(order.selection(middle)):
            high = middle
        else:
            low = middle + 1
    return low
