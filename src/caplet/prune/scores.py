"""Importance scores: how much each unit matters, by a registry of measures, in one pass over calibration images.

A score is comparable within a group. Those of ``taylor`` are comparable between groups too: they estimate the change of
one loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import CapletError, ConfigError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.progress import Progress
from caplet.prune.record import Record, Site, sites, voter_layers
from caplet.prune.rules import DependencyGroup, UnitKind
from caplet.prune.structure import Structure, structure_of

Values = NDArray[np.float64]
Scores: TypeAlias = Mapping[str, Values]
"""By group, the score of each unit, float64 (size,); larger matters more."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Lengths float (B, classes), labels int64 (B,) -> mean loss of the batch."""
IMAGES_PER_CLASS = 2
"""Fewer calibration images per class than this are too few to score anything."""


@dataclass(frozen=True)
class Score:
    """One measure of importance.

    Attributes:
        name: in the registry.
        about: one line.
        gradients: whether it needs a backward pass, and so labels.
        at_site: the score of a site's units in one batch, summed over its images, float (size,).
        at_votes: the same for single voting capsules; given the record, the name of their layer, and their lengths.
        without_images: a score that looks at the weights or at nothing; given model, structure, group and seed.
        types_from_votes: the score of a capsule type that votes for the classes is the sum over its capsules.
    """

    name: str
    about: str
    gradients: bool = False
    at_site: Callable[[Site, Record], Tensor] | None = None
    at_votes: Callable[[Record, str, Tensor], Tensor] | None = None
    without_images: Callable[[CapsNet, Structure, DependencyGroup, int], Values] | None = None
    types_from_votes: bool = False


SCORES: dict[str, Score] = {}


def register_score(score: Score) -> Score:
    """Add a score; a name that is taken raises ValueError."""
    if score.name in SCORES:
        raise ValueError(f"score {score.name!r} is already registered")
    SCORES[score.name] = score
    return score


def find_score(name: str) -> Score:
    """The score ``name``. Raises ConfigError listing what there is."""
    if name not in SCORES:
        raise ConfigError(f"unknown score {name!r}; the scores are {', '.join(SCORES)}")
    return SCORES[name]


def measure_scores(
    model: CapsNet,
    images: Tensor,
    labels: Tensor | None,
    names: Sequence[str],
    loss: Loss,
    *,
    seed: int = 0,
    batch_size: int = 50,
    progress: Progress | None = None,
) -> dict[str, dict[str, Values]]:
    """Scores of every unit of every group of ``model``, by score and group, in one pass.

    Args:
        images: uint8 (N, C, H, W), of the calibration split.
        labels: int64 (N,), or None where no score needs them.
        loss: the training loss, for scores with gradients.
        seed: of the score ``random``.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: unknown score, a score that needs labels without labels, too few images.
        ModelError: images of another size, a layer without a pruning rule.
        CapletError: a gradient is not finite.
    """
    chosen = [find_score(name) for name in names]
    gradients = any(score.gradients for score in chosen)
    check_scoring(model, images, labels, chosen)
    structure = structure_of(model)
    totals = {score.name: _zeros(structure) for score in chosen}
    places, voters = sites(structure, model), voter_layers(model, structure)
    viewing = [score for score in chosen if score.without_images is None]
    model.eval()
    for start in range(0, len(images) if viewing else 0, batch_size):
        stop = min(start + batch_size, len(images))
        record = Record(structure, gradients)
        with model.handle(record), torch.set_grad_enabled(gradients):
            pixels = to_float(images[start:stop]).requires_grad_(gradients)
            capsules = model(pixels)
            if gradients:
                assert labels is not None
                _backward(loss(lengths(capsules), labels[start:stop]) * (stop - start), pixels)
        for score in viewing:
            for site in places:
                if score.at_site is not None:
                    totals[score.name][site.group.name] += score.at_site(site, record).double().numpy()
            for layer, voting, sources in voters.values():
                if score.at_votes is not None:
                    voted = score.at_votes(record, layer, record.voting(voting, sources))
                    totals[score.name][voting.group] += voted.double().numpy()
        if progress is not None:
            progress(stop, len(images))
    for score in chosen:
        if score.without_images is not None:
            for name, group in structure.groups.items():
                totals[score.name][name] = score.without_images(model, structure, group, seed)
        elif score.types_from_votes:
            _from_votes(structure, totals[score.name])
    return totals


def check_scoring(model: CapsNet, images: Tensor, labels: Tensor | None, scores: Sequence[Score]) -> None:
    """Whether ``images`` and ``labels`` suffice for ``scores``; raises as :func:`measure_scores` does."""
    model.check_images(images)
    if any(score.gradients for score in scores) and (labels is None or len(labels) != len(images)):
        needing = ", ".join(score.name for score in scores if score.gradients)
        found = "none" if labels is None else f"{len(labels):,} for {len(images):,} images"
        raise ConfigError(f"score {needing}: it needs a label for every calibration image, found {found}")
    least = IMAGES_PER_CLASS * model.config.classes
    if len(images) < least:
        raise ConfigError(
            f"{len(images):,} calibration images are too few to score {model.config.classes} classes; the rule is at"
            f" least {least:,} (--calibration-size, --images)"
        )


def _backward(loss: Tensor, pixels: Tensor) -> None:
    """Gradients at all kept points. The weights' own are left as they are."""
    torch.autograd.backward([loss], inputs=[pixels])
    assert pixels.grad is not None
    if not bool(torch.isfinite(pixels.grad).all()):
        raise CapletError(
            "pruning: the gradient of the loss is not finite (NaN or infinity) on the calibration images; the model's"
            " weights have diverged, train it again"
        )


def _zeros(structure: Structure) -> dict[str, Values]:
    return {name: np.zeros(group.size) for name, group in structure.groups.items()}


def _from_votes(structure: Structure, totals: dict[str, Values]) -> None:
    """Scores of capsule types from those of their voting capsules."""
    for voters in structure.voters:
        for source, (units, types) in enumerate(structure.by_source(voters)):
            group = voters.sources[source][0]
            totals[group][:] = 0.0
            np.add.at(totals[group], types, totals[voters.group][units])


def _taylor(site: Site, record: Record) -> Tensor:
    """|activation x gradient|, summed over the capsule before and over positions after taking the magnitude."""
    product = record.product(f"{site.layer}.activation").reshape(-1, *site.shape)
    if site.group.kind is UnitKind.CHANNELS:
        whole = tuple(axis for axis in site.others if axis)
        return product.sum(whole).abs().sum(0)
    if site.group.kind is UnitKind.TYPES:
        product = product.sum(site.dims, keepdim=True)
    return product.abs().sum(site.others)


def _taylor_votes(record: Record, layer: str, length: Tensor) -> Tensor:
    """Votes x gradient: equal to capsule x gradient through this layer alone, as votes are linear in the capsule."""
    return record.product(f"{layer}.votes").sum((1, 3)).abs().sum(0)


def _length(site: Site, record: Record) -> Tensor:
    value = record.active(site)
    if site.group.kind is UnitKind.TYPES:
        value = value.square().sum(site.dims, keepdim=True).sqrt()
    return value.abs().sum(site.others)


def _coupling_votes(record: Record, layer: str, length: Tensor) -> Tensor:
    votes, coupling = (record.values[f"{layer}.{point}"].detach() for point in ("votes", "coupling"))
    return (coupling * lengths(votes)).sum((0, 1))


def _weight(model: CapsNet, structure: Structure, group: DependencyGroup, seed: int) -> Values:
    """Root of the unit's share in the squared weights, summed over the layers that make such units."""
    share = np.zeros(group.size)
    for layer in model.layers():
        rule = structure.layers[layer.name]
        axes = rule.tensors.get("weight", {})
        for axis, along in axes.items():
            if axis == 1 or group.name not in along:  # axis 1 is the input's: its units are made elsewhere
                continue
            weight: Tensor = layer.weight.detach().movedim(axis, 0).flatten(1)  # type: ignore[operator]
            squares = weight.square().sum(1).double().numpy()
            shape = [part if isinstance(part, int) else structure.groups[part].size for part in along]
            others = tuple(index for index, part in enumerate(along) if part != group.name)
            squares = squares.reshape(shape).sum(others)
            share += squares / max(squares.sum(), 1e-30)
    return np.asarray(np.sqrt(share))


def _random(model: CapsNet, structure: Structure, group: DependencyGroup, seed: int) -> Values:
    digest = hashlib.sha256(f"{seed}/{group.name}".encode()).digest()
    return np.random.default_rng(list(digest)).random(group.size)


register_score(
    Score("taylor", "change of the margin loss, to first order, without the unit", True, _taylor, _taylor_votes)
)
register_score(
    Score("length", "mean length of the unit's capsules, or mean activation", False, _length, lambda r, n, x: x.sum(0))
)
register_score(
    Score(
        "coupling",
        "length of the unit's votes for the classes, weighted by their coupling; elsewhere as length",
        at_site=_length,
        at_votes=_coupling_votes,
        types_from_votes=True,
    )
)
register_score(Score("weight", "share of the squared weights of the layers that make the unit", without_images=_weight))
register_score(Score("random", "a seeded random order: the baseline", without_images=_random))
