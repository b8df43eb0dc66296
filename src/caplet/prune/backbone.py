"""Prune the CNN under capsules to a fraction of the multiply-accumulates, by the best of several candidates.

Every candidate removes another fraction of each layer's channels, all to one target. A candidate is judged after
its batch norms have seen training images again (adaptive batch norm), without any fine-tuning: stale statistics, not
lost channels, are what makes a freshly pruned network look bad.

Source: Li et al. 2020, "EagleEye: Fast sub-net evaluation for efficient neural network pruning".
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caplet.data.imageset import ImageSet, to_float
from caplet.errors import ConfigError, ModelError, choose
from caplet.metrics import Accuracy, accuracy
from caplet.models.backbone import BackboneCaps
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.progress import Note, silent
from caplet.prune.backbone_groups import PRIMARY, group_importance
from caplet.prune.choices import TORCH_PRUNING, BackbonePruneSettings, UnitKind
from caplet.prune.order import best_units, resized_cost
from caplet.prune.refit import refitted
from caplet.prune.scores import SCORES, Loss, Values, measure_scores
from caplet.prune.structure import Keep, Structure, cut, kept_sizes, structure_of
from caplet.workers.team import Team

_STRONGEST = 4.0
"""The largest ``t`` of :func:`propose`: exp(-4) keeps 2 % of the channels."""
_STEPS = 13
"""Bisection steps of ``t``: to 0.0005, that is one channel of 2,000."""


@dataclass(frozen=True)
class BackboneCandidate:
    """One way to prune.

    Attributes:
        index: its number, from 0.
        selection: which units stay.
        macs: multiply-accumulates that it keeps.
        accuracy: on the calibration split, with adapted batch norms and no fine-tuning.
        margin: mean length of the correct class's capsule over the longest other one, there.
    """

    index: int
    selection: Mapping[str, Keep]
    macs: int
    accuracy: Accuracy
    margin: float

    @property
    def rank(self) -> tuple[int, float]:
        """Larger is better: correct images, then the margin."""
        return self.accuracy.correct, self.margin

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "index": self.index,
            "macs": self.macs,
            "accuracy": asdict(self.accuracy),
            "margin": self.margin,
            "kept": kept_sizes(self.selection),
        }


@dataclass(frozen=True)
class BackbonePruned:
    """The outcome.

    Attributes:
        model: the best candidate with adapted batch norms, refitted where asked for and where that makes it better.
        best, candidates: which one it is; all of them.
        refitted: its accuracy on the calibration split once refitted, None without.
    """

    model: CapsNet
    best: BackboneCandidate
    candidates: tuple[BackboneCandidate, ...]
    refitted: Accuracy | None


def prune_backbone(
    model: CapsNet,
    train: ImageSet,
    calibration: ImageSet,
    settings: BackbonePruneSettings,
    loss: Loss,
    note: Note = silent,
    team: Team | None = None,
) -> BackbonePruned:
    """Prune the trunk of ``model``; the result is an ordinary backbone model with smaller settings.

    Args:
        train: images that batch norms see again; labels are not looked at.
        calibration: images on which scores are measured and candidates are judged.
        loss: the training loss, for scores with gradients.
        note: called with one line per candidate.
        team: measures the candidates; None for this process alone.

    Raises:
        ModelError: the model has no trunk, or takes other images.
        ConfigError: unknown score; a target below what the smallest network needs (the message says how much).
        ToolMissing: torch-pruning is asked for and not installed.
    """
    if not isinstance(model, BackboneCaps):
        raise ModelError(
            f"model {model.family}: it has no CNN under its capsules; prune its capsules instead (caplet prune)"
        )
    model.check_images(train.images)
    model.check_images(calibration.images)
    structure = structure_of(model)
    score, asked = settings.score, (calibration.images, calibration.labels, [settings.score])
    if choose(score, (TORCH_PRUNING, *SCORES), "score") == TORCH_PRUNING:
        scores = group_importance(model, structure)
    else:
        scores = measure_scores(model, *asked, loss, seed=settings.seed)[score]
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))[: settings.images]
    pixels = train.images[drawn]
    found: list[BackboneCandidate] = []
    best: tuple[BackboneCandidate, dict[str, Tensor]] | None = None
    team = team or Team()
    parcel = team.parcel(_Trial, model, pixels, calibration)
    proposed = enumerate(propose(model, structure, scores, settings))
    tasks = [(parcel, (index, *proposal)) for index, proposal in proposed]
    for candidate, statistics in team.map(_Trial.measure, tasks, lambda task: f"candidate {task[0]}"):
        found.append(candidate)
        if best is None or candidate.rank > best[0].rank:
            best = candidate, statistics
        note(f"candidate {candidate.index}: calibration {candidate.accuracy}, best so far number {best[0].index}")
    assert best is not None
    chosen = best[0].selection
    smaller = cut(model, chosen, structure)
    smaller.load_state_dict(best[1], strict=False)
    if not settings.refit:
        return BackbonePruned(smaller, best[0], tuple(found), None)
    result, _ = refitted(model, cut(model, chosen, structure), chosen, pixels, structure=structure, seed=settings.seed)
    recalibrate(result, pixels)
    after, margin = judge(result, calibration)
    better = (after.correct, margin) > best[0].rank
    note(f"candidate {best[0].index} refitted: calibration {after}{'' if better else ', no better: left as it was'}")
    return BackbonePruned(result if better else smaller, best[0], tuple(found), after)


class _Trial:
    """What candidates are measured on."""

    def __init__(self, model: BackboneCaps, pixels: Tensor, calibration: ImageSet) -> None:
        self._model, self._structure = model, structure_of(model)
        self._pixels, self._calibration = pixels, calibration

    def measure(self, task: tuple[int, Mapping[str, Keep], int]) -> tuple[BackboneCandidate, dict[str, Tensor]]:
        """The candidate of a number, a selection and its multiply-accumulates; the statistics of its batch norms."""
        index, selection, macs = task
        smaller = cut(self._model, selection, self._structure)
        recalibrate(smaller, self._pixels)
        candidate = BackboneCandidate(index, selection, macs, *judge(smaller, self._calibration))
        return candidate, dict(smaller.named_buffers())


def propose(
    model: BackboneCaps, structure: Structure, scores: Mapping[str, Values], settings: BackbonePruneSettings
) -> Iterator[tuple[dict[str, Keep], int]]:
    """The candidates' selections and multiply-accumulates, each the largest of its kind within the target.

    Channels of group s are kept to the fraction ``exp(-t * w_s)``, w_s drawn once per candidate, t by bisection.

    Raises:
        ConfigError: even the strongest pruning keeps more than the target.
    """
    channels = [group for group in structure.groups.values() if group.kind is UnitKind.CHANNELS]
    whole = resized_cost(model, structure, structure.whole()).macs
    last = str(structure.layers[PRIMARY].tensors["weight"][1][0])

    def selection(strength: float, weights: Mapping[str, float]) -> dict[str, Keep]:
        keep = {
            group.name: _best(scores[group.name], math.exp(-strength * weights[group.name]), settings.multiple)
            for group in channels
        }
        if settings.primary == "follow":
            types = f"{PRIMARY}.types"
            keep[types] = _best(scores[types], float(keep[last].mean()), 1)
        return structure.close(keep)

    for index in range(settings.candidates):
        rng = np.random.default_rng([settings.seed, index])
        spread = settings.spread if index else 0.0
        weights = {group.name: float(rng.uniform(1 - spread, 1 + spread)) for group in channels}
        low, high = 0.0, _STRONGEST
        smallest = resized_cost(model, structure, selection(high, weights)).macs
        if smallest > settings.macs * whole:
            raise ConfigError(
                f"pruning to {settings.macs:g} of the multiply-accumulates: the smallest network of this kind still"
                f" needs {smallest / whole:.3g} of them; ask for at least that"
            )
        if settings.macs < 1.0:
            for _ in range(_STEPS):
                middle = (low + high) / 2
                fits = resized_cost(model, structure, selection(middle, weights)).macs <= settings.macs * whole
                low, high = (low, middle) if fits else (middle, high)
        chosen = selection(high if settings.macs < 1.0 else 0.0, weights)
        yield chosen, resized_cost(model, structure, chosen).macs


def _best(scores: Values, fraction: float, multiple: int) -> Keep:
    """The best units by score: ``fraction`` of them, rounded to a multiple, at least one multiple."""
    return best_units(scores, max(round(fraction * len(scores) / multiple) * multiple, multiple))


@torch.no_grad()
def recalibrate(model: CapsNet, images: Tensor, batch_size: int = 100) -> None:
    """Measure the statistics of all batch norms anew on ``images`` uint8 (N, C, H, W): averages over all batches.

    Weights, training mode and the order of images in later training are left alone. A last batch that is smaller than
    half of the others is left out.
    """
    before = [
        (module, module.training, module.momentum) for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        for norm, _, _ in before:
            norm.reset_running_stats()
            norm.momentum = None  # then PyTorch averages over all batches
            norm.train()
        for batch in torch.split(images, batch_size):
            if len(batch) * 2 >= min(batch_size, len(images)):
                model(to_float(batch, model.device))
    finally:
        for norm, training, momentum in before:
            norm.train(training)
            norm.momentum = momentum


@torch.no_grad()
def judge(model: CapsNet, images: ImageSet, batch_size: int = 100) -> tuple[Accuracy, float]:
    """Accuracy, and the mean length of the correct class's capsule over the longest other one."""
    correct, margin = 0, 0.0
    for pixels, labels in images.batches(batch_size, device=model.device):
        size = lengths(model(pixels))
        own = size.gather(1, labels[:, None])[:, 0]
        others = size.scatter(1, labels[:, None], -torch.inf).amax(1)
        correct += int((size.argmax(1) == labels).sum())
        margin += float((own - others).sum())
    return accuracy(correct, len(images)), margin / len(images)
