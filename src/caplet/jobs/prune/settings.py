"""The settings of a pruning run, and what its rounds are made of: orders of removals, targets, answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.models.base import CapsNet
from caplet.models.cost import Cost, cost_of
from caplet.progress import Progress
from caplet.prune.order import (
    Allocation,
    RemovalOrder,
    fewest_removals,
    macs_per_unit,
    measured_prices,
    removal_order,
    resized_cost,
)
from caplet.prune.rules import DependencyGroup, UnitKind
from caplet.prune.scores import SCORES, Scores, check_scoring, measure_scores
from caplet.prune.structure import Selection, Structure, kept_sizes, prunable, structure_of, with_iterations
from caplet.quant.measure.evaluator import predict
from caplet.settings import Settings
from caplet.train.loss import margin_loss
from caplet.train.settings import FinetuneSettings

Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
TARGETS = ("keep", "macs", "params", "bytes", "max_drop")
BATCH = 100
ALLOCATION_PART = 2
"""The allocation ``measured`` looks at ``images`` divided by this: it compares many networks, not single units."""


class PruneSettings(Settings):
    """Settings of a pruning run, immutable and JSON-able.

    Exactly one target says how far to go, unless ``spaces`` alone does.

    Attributes:
        score: name of the importance score (:data:`caplet.prune.scores.SCORES`).
        units: what goes: ``channels``, ``types``, ``dim``, ``capsules`` (single capsules that vote for the classes).
        allocation: ``uniform`` takes the same fraction of every space, ``global`` the lowest score per
            multiply-accumulate anywhere, ``measured`` the least measured loss per multiply-accumulate
            (:mod:`caplet.prune.order`).
        keep: fraction of the units to keep.
        macs, params: fraction of the multiply-accumulates or of the parameters to keep.
        bytes: size of the float32 parameters.
        max_drop: largest loss of accuracy on the calibration split, in percentage points; how much goes is found by
            bisection.
        spaces: what stays of single spaces, by name: a fraction up to 1, or a number of units from 2.
        iterations: routing iterations of the class capsules; None leaves them.
        rounds: prune in so many rounds to a target that shrinks by equal factors, each round with fine-tuning whose
            learning rate starts again at its peak.
        epochs: of fine-tuning in all, shared equally by the rounds (with ``max_drop``: of every trial); 0 for none.
        teach: whether the fine-tuned model follows the unpruned one beside the labels.
        lr, batch_size, precision, shift, flip, threads: of fine-tuning, see
            :class:`caplet.train.settings.FinetuneSettings`.
        refit: training images on which the convolutions that lost inputs are refitted after every surgery
            (:mod:`caplet.prune.refit`); 0 for none.
        dead: remove units that are never active on the calibration split first.
        images: calibration images that scores look at.
        seed: of the score ``random`` and of fine-tuning.
    """

    where = "prune"

    score: str = "taylor"
    units: tuple[UnitKind, ...] = (UnitKind.CHANNELS, UnitKind.TYPES)
    allocation: Allocation = Allocation.UNIFORM
    keep: Ratio | None = None
    macs: Ratio | None = None
    params: Ratio | None = None
    bytes: PositiveInt | None = None
    max_drop: NonNegativeFloat | None = None
    spaces: dict[str, float] = Field(default={})
    iterations: PositiveInt | None = None
    rounds: PositiveInt = 1
    epochs: NonNegativeFloat = 1.0
    teach: bool = True
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    batch_size: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    shift: NonNegativeInt = 0
    flip: bool = False
    threads: PositiveInt | None = None
    refit: NonNegativeInt = 1000
    dead: bool = True
    images: PositiveInt = 1000
    seed: NonNegativeInt = 0

    def check(self) -> None:
        """Raise ValueError for settings that do not go together."""
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.spaces or self.iterations):
            raise ValueError(
                f"give exactly one of {', '.join(TARGETS)} (found {', '.join(given) or 'none'}), or spaces"
            )
        if self.max_drop is not None and self.rounds > 1:
            raise ValueError("max_drop searches by itself; leave rounds at 1")
        SCORES.find(self.score)

    @property
    def target(self) -> str | None:
        """The name of the target that is given."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    def finetuning(self, images: int) -> FinetuneSettings:
        """Settings of one round's fine-tuning, with ``images`` in the training split."""
        epochs = self.epochs / self.rounds
        steps = max(1, round(epochs * (images // min(self.batch_size, images))))
        return FinetuneSettings.model_validate(
            {
                "epochs": max(1, math.ceil(epochs)),
                "steps": steps,
                "lr": self.lr,
                "batch_size": self.batch_size,
                "precision": self.precision,
                "shift": self.shift,
                "flip": self.flip,
                "threads": self.threads,
                "seed": self.seed,
                "keep": "last",
            }
        )


def prune_settings(values: Mapping[str, Any]) -> PruneSettings:
    """Settings from JSON-like values. Raises ConfigError for one that is unknown or out of range."""
    return PruneSettings.of(values)


@dataclass(frozen=True)
class NetworkSizes:
    """What targets are measured by: units of the kinds that may go, and a model's cost."""

    keep: int
    macs: int
    params: int
    bytes: int

    @classmethod
    def of(cls, cost: Cost, structure: Structure, selection: Selection, units: tuple[UnitKind, ...]) -> NetworkSizes:
        """Of the model that surgery with ``selection`` gives, whose cost is ``cost``."""
        left = sum(int(selection[group.name].sum()) for group in prunable(structure, units))
        return cls(left, cost.macs, cost.parameters, cost.bytes)

    @classmethod
    def whole(cls, model: CapsNet, units: tuple[UnitKind, ...]) -> NetworkSizes:
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
    chosen = spread_set(images, settings.images)
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
        seen = spread_set(images, settings.images // ALLOCATION_PART)
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
    chosen = spread_set(images, settings.images)
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


def spread_set(images: ImageSet, most: int) -> ImageSet:
    """At most ``most`` images, at even distances through the set."""
    if len(images) <= most:
        return images
    return images.subset(np.linspace(0, len(images) - 1, most).round().astype(int).tolist())


@torch.inference_mode()
def answers(model: CapsNet, images: ImageSet) -> NDArray[np.bool_]:
    """Whether ``model`` classifies each of the images correctly, bool (N,)."""
    model.eval()
    parts = [(predict(model(pixels)) == labels).numpy() for pixels, labels in images.batches(BATCH)]
    return np.concatenate(parts)
