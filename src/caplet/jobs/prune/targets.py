"""What rounds of pruning are made of: orders of removals, and targets."""

from collections.abc import Mapping

import numpy as np

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.jobs.prune.settings import PruneSettings
from caplet.models.base import CapsNet
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
from caplet.prune.scores import SCORES, Scores, check_scoring, measure_scores
from caplet.prune.structure import Selection, Structure, kept_sizes, prunable, structure_of, with_iterations
from caplet.train.loss import margin_loss

ALLOCATION_PART = 2
"""The allocation ``measured`` looks at ``images`` divided by this: it compares many networks, not single units."""


def network_sizes(
    model: CapsNet, units: tuple[UnitKind, ...], structure: Structure | None = None, selection: Selection | None = None
) -> dict[str, int]:
    """What targets are measured by, by their names: units of the kinds that may go, and the network's cost.

    Args:
        structure: of ``model``, if it is at hand.
        selection: what surgery keeps of ``model``; None for all of it.
    """
    structure = structure or structure_of(model)
    selection = structure.whole() if selection is None else selection
    cost = resized_cost(model, structure, selection)
    keep = sum(int(selection[group.name].sum()) for group in prunable(structure, units))
    return {"keep": keep, "macs": cost.macs, "params": cost.parameters, "bytes": cost.bytes}


def put_in_order(
    model: CapsNet,
    images: ImageSet,
    settings: PruneSettings,
    progress: Progress | None = None,
    scores: Scores | None = None,
) -> RemovalOrder:
    """Score the units of ``model`` on calibration ``images`` and put their removals in order.

    Args:
        scores: if they are measured already; then the target is not looked at.

    Raises:
        ConfigError: see :func:`caplet.prune.scores.measure_scores` and :func:`caplet.prune.order.removal_order`.
    """
    structure = structure_of(model)
    groups = prunable(structure, settings.units) if settings.target is not None or scores is not None else ()
    if scores is None:
        seen = images.evenly_spaced(settings.images)
        asked = seen.images, seen.labels, [settings.score]
        scores = measure_scores(model, *asked, margin_loss, seed=settings.seed, progress=progress)[settings.score]
    prices = None
    if settings.allocation is Allocation.MEASURED:
        seen = images.evenly_spaced(settings.images // ALLOCATION_PART)
        free = [group for group in groups if group.name not in settings.spaces]
        prices = measured_prices(
            model, structure, scores, free, seen.images, seen.labels, margin_loss, progress=progress
        )
    unit_macs = macs_per_unit(model, structure, groups)
    return removal_order(structure, scores, groups, settings.allocation, unit_macs, settings.spaces, prices)


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
    removals_for(model, order, settings, network_sizes(model, settings.units, structure), 1.0)


def removals_for(
    model: CapsNet, order: RemovalOrder, settings: PruneSettings, whole: Mapping[str, int], fraction: float
) -> int:
    """How many removals, and no more, the target asks for.

    Args:
        whole: :func:`network_sizes` of the unpruned model.
        fraction: the part of the way to go, in equal factors: 1 is the target itself.

    Raises:
        ConfigError: the target cannot be met without emptying a layer; the message says how far one can go.
    """
    target = settings.target
    if target is None or target == "max_drop":
        return 0
    all_of_it, value = float(whole[target]), float(getattr(settings, target))
    ratio = min(1.0, value / all_of_it) if target == "bytes" else value

    def size(selection: Selection) -> int:
        return network_sizes(model, settings.units, order.structure, selection)[target]

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
