"""What rounds of pruning are made of: orders of removals, targets, answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.jobs.prune.settings import PruneSettings
from caplet.models.base import CapsNet
from caplet.models.cost import Cost, cost_of
from caplet.progress import Progress
from caplet.prune.choices import Allocation, UnitKind
from caplet.prune.order import (
    RemovalOrder,
    fewest_removals,
    macs_per_unit,
    measured_prices,
    removal_order,
    resized_cost,
)
from caplet.prune.rules import DependencyGroup
from caplet.prune.scores import SCORES, Scores, check_scoring, measure_scores
from caplet.prune.structure import Selection, Structure, kept_sizes, prunable, structure_of, with_iterations
from caplet.quant.measure.evaluator import predict
from caplet.train.loss import margin_loss

BATCH = 100
ALLOCATION_PART = 2
"""The allocation ``measured`` looks at ``images`` divided by this: it compares many networks, not single units."""


@dataclass(frozen=True)
class NetworkSizes:
    """What targets are measured by: units of the kinds that may go, and a model's cost."""

    keep: int
    macs: int
    params: int
    bytes: int

    @classmethod
    def of(cls, cost: Cost, structure: Structure, selection: Selection, units: tuple[UnitKind, ...]) -> "NetworkSizes":
        """Of the model that surgery with ``selection`` gives, whose cost is ``cost``."""
        left = sum(int(selection[group.name].sum()) for group in prunable(structure, units))
        return cls(left, cost.macs, cost.parameters, cost.bytes)

    @classmethod
    def whole(cls, model: CapsNet, units: tuple[UnitKind, ...]) -> "NetworkSizes":
        """Of ``model`` as it is."""
        structure = structure_of(model)
        return cls.of(cost_of(model), structure, structure.whole(), units)


def put_in_order(
    model: CapsNet, images: ImageSet, settings: PruneSettings, progress: Progress | None = None
) -> RemovalOrder:
    """Score the units of ``model`` on calibration ``images`` and put their removals in order.

    Raises:
        ConfigError: see :func:`caplet.prune.scores.measure_scores` and :func:`caplet.prune.order.removal_order`.
    """
    structure = structure_of(model)
    chosen = images.evenly_spaced(settings.images)
    scores = measure_scores(
        model, chosen.images, chosen.labels, [settings.score], margin_loss, seed=settings.seed, progress=progress
    )
    spaces = () if settings.target is None else prunable(structure, settings.units)
    unit_macs = macs_per_unit(model, structure, spaces)
    return allocate(model, structure, scores[settings.score], spaces, unit_macs, images, settings, progress)


def allocate(
    model: CapsNet,
    structure: Structure,
    scores: Scores,
    spaces: Sequence[DependencyGroup],
    unit_macs: Mapping[str, float],
    images: ImageSet,
    settings: PruneSettings,
    progress: Progress | None = None,
) -> RemovalOrder:
    """The order of removals by ``scores``; for the allocation ``measured`` after measuring losses on ``images``."""
    prices = None
    if settings.allocation is Allocation.MEASURED:
        seen = images.evenly_spaced(settings.images // ALLOCATION_PART)
        free = [group for group in spaces if group.name not in settings.spaces]
        prices = measured_prices(
            model, structure, scores, free, seen.images, seen.labels, margin_loss, progress=progress
        )
    return removal_order(structure, scores, spaces, settings.allocation, unit_macs, settings.spaces, prices)


def check_target(model: CapsNet, images: ImageSet, settings: PruneSettings) -> None:
    """Whether a run can begin: the calibration ``images`` suffice for the score, and the target empties no layer.

    Raises:
        ConfigError: see :func:`put_in_order` and :func:`removals_for`.
        ModelError: a layer without a pruning rule; a family without routing iterations to change.
    """
    chosen = images.evenly_spaced(settings.images)
    check_scoring(model, chosen.images, chosen.labels, [SCORES.find(settings.score)])
    if settings.iterations is not None:
        model = with_iterations(model, settings.iterations)
    structure = structure_of(model)
    spaces = () if settings.target is None else prunable(structure, settings.units)
    flat = {name: np.zeros(group.size) for name, group in structure.groups.items()}
    unit_macs = dict.fromkeys(flat, 1.0)
    order = removal_order(structure, flat, spaces, settings.allocation, unit_macs, settings.spaces, flat)
    removals_for(model, order, settings, NetworkSizes.whole(model, settings.units), 1.0)


def removals_for(
    model: CapsNet, order: RemovalOrder, settings: PruneSettings, whole: NetworkSizes, fraction: float
) -> int:
    """How many removals, and no more, the target asks for.

    Args:
        whole: of the unpruned model.
        fraction: the part of the way to go, in equal factors: 1 is the target itself.

    Raises:
        ConfigError: the target cannot be met without emptying a layer; the message says how far one can go.
    """
    target = settings.target
    if target is None or target == "max_drop":
        return 0
    all_of_it, value = float(getattr(whole, target)), float(getattr(settings, target))
    ratio = min(1.0, value / all_of_it) if target == "bytes" else value

    def size(selection: Selection) -> int:
        cost = resized_cost(model, order.structure, selection)
        found: int = getattr(NetworkSizes.of(cost, order.structure, selection, settings.units), target)
        return found

    count = fewest_removals(order, lambda selection: size(selection) <= all_of_it * ratio**fraction)
    if count is None:
        last = order.selection(len(order.removals))
        least = size(last)
        found = f"{least:,} bytes" if target == "bytes" else f"{least / all_of_it:.3g}"
        smallest = ", ".join(f"{name} {count}" for name, count in kept_sizes(last).items())
        raise ConfigError(
            f"prune: {target} {value:g} would empty a layer; the smallest that pruning {', '.join(settings.units)} can"
            f" give is {found} (with {smallest}); prune more kinds of units, or ask for less"
        )
    return count


@torch.inference_mode()
def answers(model: CapsNet, images: ImageSet) -> NDArray[np.bool_]:
    """Whether ``model`` classifies each of the images correctly, bool (N,)."""
    model.eval()
    parts = [(predict(model(pixels)) == labels).numpy() for pixels, labels in images.batches(BATCH)]
    return np.concatenate(parts)
