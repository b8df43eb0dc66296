"""In which order units go, and how many of them for a target: every target is a length of one sequence of removals.

First-order scores say which unit of a group matters least. They do not say what a group as a whole can do without, as
units which stand in for each other go together. The allocation ``measured`` therefore measures the loss with parts of
one group removed at a time.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ConfigError
from caplet.models.assemble import skeleton
from caplet.models.base import CapsNet
from caplet.models.cost import Cost, cost_of
from caplet.nn.functional import lengths
from caplet.progress import Progress
from caplet.prune.choices import Allocation, UnitKind
from caplet.prune.rules import DependencyGroup
from caplet.prune.scores import Loss, Scores, Values
from caplet.prune.structure import Keep, Selection, Structure, cut

GLOBAL_FLOOR = 0.125
"""The fraction of every group that the allocations ``global`` and ``measured`` leave at least: beyond it they guess."""
REMOVED = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Fractions of a group at which the allocation ``measured`` measures the loss."""


@dataclass(frozen=True)
class RemovalOrder:
    """A sequence of removals.

    Attributes:
        start: what stays before the first removal.
        removals: (group, unit), the first to go first; of every group at least one unit is never in it.
    """

    structure: Structure
    start: Selection
    removals: tuple[tuple[str, int], ...]

    def selection(self, count: int) -> dict[str, Keep]:
        """What stays after ``count`` removals, with all that they imply."""
        keep = {name: units.copy() for name, units in self.start.items()}
        gone = self.removals[:count]
        for group, unit in gone:
            keep[group][unit] = False
        for voters in self.structure.voters:
            for (group, _), (units, types, _) in zip(voters.sources, self.structure.by_source(voters), strict=True):
                voting = keep[group][types]
                if voting.any() and not keep[voters.group][units[voting]].any():
                    # The types that stay are others than those of the capsules that stay: the last to go stays.
                    candidates = set(units[voting].tolist())
                    last = [unit for name, unit in gone if name == voters.group and unit in candidates]
                    keep[voters.group][last[-1:]] = True
        return self.structure.close(keep)


def removal_order(
    structure: Structure,
    scores: Scores,
    groups: Sequence[DependencyGroup],
    allocation: Allocation,
    unit_macs: Mapping[str, float],
    fixed: Mapping[str, float] | None = None,
    prices: Mapping[str, Values] | None = None,
) -> RemovalOrder:
    """The order in which units of ``groups`` go.

    Args:
        unit_macs: by group, the multiply-accumulates that one of its units costs; for ``global`` and ``measured``.
        prices: by group, what each removal adds to the loss, the least important unit first; for ``measured``
            (:func:`caplet.prune.order.measured_prices`).
        fixed: by group, what stays from the start: a fraction up to 1, or from 2 on a number of units. Such groups are
            not in the sequence.

    Raises:
        ConfigError: an unknown group in ``fixed``, or a value out of range.
    """
    start = structure.whole()
    # Single capsules are chosen among those of the types that stay, so after them.
    for name, value in sorted((fixed or {}).items(), key=lambda item: item[0].endswith(f".{UnitKind.CAPSULES}")):
        if name not in structure.groups:
            raise ConfigError(f"there is no group {name!r} to prune; this model has {', '.join(structure.groups)}")
        alive = structure.close(start)[name]
        start[name] = best_units(np.where(alive, scores[name], -1.0), _count(structure.groups[name], value)) & alive
    keyed: list[tuple[float, int, str, int]] = []
    for place, group in enumerate(groups):
        if group.name in (fixed or {}):
            continue
        ranked = np.argsort(scores[group.name], kind="stable")
        least = 1 if allocation is Allocation.UNIFORM else max(1, round(GLOBAL_FLOOR * group.size))
        for rank, unit in enumerate(ranked[: group.size - least].tolist()):
            if allocation is Allocation.UNIFORM:
                key = (rank + 1) / group.size
            elif allocation is Allocation.MEASURED:
                assert prices is not None
                key = float(prices[group.name][rank]) / max(unit_macs[group.name], 1.0)
            else:
                key = float(scores[group.name][unit]) / max(unit_macs[group.name], 1.0)
            keyed.append((key, place, group.name, unit))
    keyed.sort(key=lambda item: item[:2])
    return RemovalOrder(structure, structure.close(start), tuple((name, unit) for _, _, name, unit in keyed))


def _count(group: DependencyGroup, value: float) -> int:
    """Units of ``group`` for a fraction in (0, 1] or a whole number."""
    if 0 < value <= 1:
        count = round(value * group.size)
    elif value == int(value) and 1 < value <= group.size:
        count = int(value)
    else:
        raise ConfigError(
            f"group {group.name}: {value:g} to keep; the rule is a fraction in (0, 1], or a number of units up to"
            f" {group.size}"
        )
    if count < 1:
        raise ConfigError(
            f"group {group.name}: {value:g} of {group.size} {group.kind} would leave none; the smallest size is 1"
            f" (keep {1 / group.size:.2g})"
        )
    return count


def best_units(scores: np.ndarray, count: int) -> Keep:
    """Which units stay where the ``count`` of the highest ``scores`` do, bool (size,)."""
    return np.asarray(np.argsort(np.argsort(-scores, kind="stable")) < count)


def resized_cost(model: CapsNet, structure: Structure, selection: Selection) -> Cost:
    """The cost of the model that surgery would give; nothing is computed."""
    places = {voters.group: structure.places(voters, selection) for voters in structure.voters}
    return cost_of(skeleton(model.family, model.resized(structure.sizes(selection), places)))


def macs_per_unit(model: CapsNet, structure: Structure, groups: Sequence[DependencyGroup]) -> dict[str, float]:
    """By group, the multiply-accumulates that one of its units costs in ``model``, all that goes with it included."""
    whole = cost_of(model).macs
    result = {}
    for group in groups:
        half = np.arange(group.size) < max(1, group.size // 2)
        removed = group.size - int(half.sum())
        selection = structure.close({group.name: half}) if removed else None
        saved = whole - resized_cost(model, structure, selection).macs if selection else 0
        result[group.name] = saved / max(removed, 1)
    return result


def fewest_removals(order: RemovalOrder, met: Callable[[dict[str, Keep]], bool]) -> int | None:
    """The fewest removals with which ``met`` holds (it stays so once it holds), or None if it never does."""
    most = len(order.removals)
    if not met(order.selection(most)):
        return None
    return bisect_left(range(most), True, key=lambda count: met(order.selection(count)))


def measured_prices(
    model: CapsNet,
    structure: Structure,
    scores: Scores,
    groups: Sequence[DependencyGroup],
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> dict[str, Values]:
    """By group, what each removal adds to the mean loss, float64 (size,): the least important unit by ``scores`` first.

    Between the measured fractions the loss is a line; the prices are the slopes of its lower convex hull, and so never
    fall: a group whose loss dips on its way up is not emptied for the dip.

    Args:
        images: uint8 (N, C, H, W), of the calibration split. labels: int64 (N,).
        progress: called with (measurements done, all).
    """
    whole = _mean_loss(model, images, labels, loss, batch_size)
    counts = {group.name: sorted({round(part * group.size) for part in REMOVED} - {0, group.size}) for group in groups}
    everything, done = sum(map(len, counts.values())), 0
    prices: dict[str, Values] = {}
    for group in groups:
        order = removal_order(structure, scores, (group,), Allocation.UNIFORM, {})
        points = [(0, 0.0)]
        for count in counts[group.name]:
            smaller = cut(model, order.selection(count), structure)
            points.append((count, _mean_loss(smaller, images, labels, loss, batch_size) - whole))
            done += 1
            if progress is not None:
                progress(done, everything)
        prices[group.name] = _slopes(points, group.size)
    return prices


def _slopes(points: Sequence[tuple[int, float]], size: int) -> Values:
    """Slopes of the lower convex hull of ``points`` (removed, loss added), for each of ``size`` removals.

    The last slope goes on beyond the last point.

    >>> _slopes([(0, 0.0), (2, 1.0), (4, 0.8), (6, 4.0)], 8).tolist()
    [0.2, 0.2, 0.2, 0.2, 1.6, 1.6, 1.6, 1.6]
    """
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    result = np.zeros(size)
    for first, second in pairwise(hull):
        result[first[0] :] = _slope(first, second)
    return result


def _slope(first: tuple[int, float], second: tuple[int, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


@torch.inference_mode()
def _mean_loss(model: CapsNet, images: Tensor, labels: Tensor, loss: Loss, batch_size: int) -> float:
    model.eval()
    total = 0.0
    for pixels, batch in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        size = lengths(model(to_float(pixels, model.device)))
        total += float(loss(size, batch.to(size.device))) * len(batch)
    return total / len(images)
