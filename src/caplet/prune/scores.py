"""Importance scores: how much each unit matters, by a registry of measures, in one pass over calibration images.

A score is comparable within a group. Those of ``taylor`` are comparable between groups too: they estimate the change of
one loss.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import CapletError, ConfigError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.nn.points import Handler, PointSpec
from caplet.progress import Progress
from caplet.prune.choices import UnitKind
from caplet.prune.rules import DependencyGroup, Voters
from caplet.prune.structure import Structure, structure_of
from caplet.registry import Registry
from caplet.workers.group import current

Values = NDArray[np.float64]
Scores: TypeAlias = Mapping[str, Values]
"""By group, the score of each unit, float64 (size,); larger matters more."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Lengths float (B, classes), labels int64 (B,) -> mean loss of the batch."""
IMAGES_PER_CLASS = 2
"""Fewer calibration images per class than this are too few to score anything."""


@dataclass(frozen=True)
class Site:
    """Where units of a group are active: a layer's activation, its axes taken apart into what they run along.

    Attributes:
        layer: name of the layer.
        shape: (batch excluded) the activation's sizes after taking the axes apart.
        axis: of the group in ``shape``, the batch axis counted (so at least 1).
        dims: axes of the capsules' dimensions, counted likewise.
    """

    group: DependencyGroup
    layer: str
    shape: tuple[int, ...]
    axis: int
    dims: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        """All axes but the units', the batch's included."""
        return tuple(axis for axis in range(len(self.shape) + 1) if axis != self.axis)


def sites(structure: Structure, model: CapsNet) -> list[Site]:
    """Every place where units other than single voting capsules are active."""
    result = []
    for layer in model.layers():
        rule = structure.layers[layer.name]
        if not rule.units:
            continue
        spec = layer.specs["activation"]
        parts: list[str | int] = []
        for axis, size in enumerate(spec.shape):
            parts += rule.units.get(axis, (size,))
        shape = tuple(part if isinstance(part, int) else structure.groups[part].size for part in parts)
        assert prod(shape) == spec.elements
        found = {part: index + 1 for index, part in enumerate(parts) if isinstance(part, str)}
        dims = tuple(axis for name, axis in found.items() if structure.groups[name].kind is UnitKind.DIM)
        result += [Site(structure.groups[name], layer.name, shape, axis, dims) for name, axis in found.items()]
    return result


@dataclass
class Record(Handler):
    """A point handler that keeps, for one batch, what scores look at. Attach it with ``model.handle``.

    Attributes:
        values: activation, votes and last coupling by key, float, with the batch axis first.
    """

    keep_gradients: bool
    values: dict[str, Tensor] = field(default_factory=dict)

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        if spec.name in ("activation", "sum", "votes", "coupling"):
            if self.keep_gradients and value.requires_grad:
                value.retain_grad()
            self.values[key] = value
        return value

    def product(self, key: str) -> Tensor:
        """Value x gradient at a point, the first-order effect of removing each element on the loss."""
        value = self.values[key]
        assert value.grad is not None, key
        return value.detach() * value.grad

    def active(self, site: Site) -> Tensor:
        """The activation at a site, float (B, *site.shape)."""
        value = self.values[f"{site.layer}.activation"].detach()
        return value.reshape(len(value), *site.shape)

    def voting(self, voters: Voters, sources: tuple[str, ...]) -> Tensor:
        """Lengths of the capsules that vote, float (B, I), read from the maps at the points ``sources``."""
        maps = [lengths(self.values[key].detach().movedim(2, -1)).flatten(1) for key in sources]
        listed = torch.cat(maps, 1)
        return listed if voters.places is None else listed[:, list(voters.places)]


def voter_layers(model: CapsNet, structure: Structure) -> dict[str, tuple[str, Voters, tuple[str, ...]]]:
    """By ``capsules`` group: the layer that it votes in, its voters, and the points that the layer reads."""
    return {
        voters.group: (layer.name, voters, stage.wiring[layer.name])
        for stage in model.stages()
        for layer in stage.layers
        if (voters := structure.layers[layer.name].voters) is not None
    }


@dataclass(frozen=True)
class Score:
    """One measure of importance.

    Attributes:
        name: in the registry.
        gradients: whether it needs a backward pass, and so labels.
        at_site: the score of a site's units in one batch, summed over its images, float (size,).
        at_votes: the same for single voting capsules; given the record, the name of their layer, and their lengths.
        without_images: a score that looks at the weights or at nothing; given model, structure, group and seed.
        types_from_votes: the score of a capsule type that votes for the classes is the sum over its capsules.
    """

    name: str
    gradients: bool = False
    at_site: Callable[[Site, Record], Tensor] | None = None
    at_votes: Callable[[Record, str, Tensor], Tensor] | None = None
    without_images: Callable[[CapsNet, Structure, DependencyGroup, int], Values] | None = None
    types_from_votes: bool = False


SCORES: Registry[str, Score] = Registry("score")


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

    Processes that this one has joined share the batches; sums, and so the scores, are those of one process.

    Args:
        images: uint8 (N, C, H, W), of the calibration split.
        labels: int64 (N,), or None where no score needs them.
        loss: the training loss, for scores with gradients.
        seed: of the score ``random``.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: unknown score, a score that needs labels without labels, too few images.
        ModelError: images of another size, a layer without a pruning rule.
        CapletError: a gradient is not finite. WorkerError: a process was lost.
    """
    chosen = [SCORES.find(name) for name in names]
    gradients = any(score.gradients for score in chosen)
    check_scoring(model, images, labels, chosen)
    structure = structure_of(model)
    sizes = {name: group.size for name, group in structure.groups.items()}
    totals = {score.name: {name: np.zeros(size) for name, size in sizes.items()} for score in chosen}
    viewing = [score.name for score in chosen if score.without_images is None]
    model.eval()

    def told(done: int) -> None:
        if progress is not None:
            progress(min(done * batch_size, len(images)), len(images))

    starts = range(0, len(images) if viewing else 0, batch_size)
    batches = [slice(start, min(start + batch_size, len(images))) for start in starts]
    seen = _Seen(model, images, labels if gradients else None, tuple(viewing), loss)
    for found in current().each(_of_batch, seen, batches, told):  # summed in the order of the batches, whoever saw them
        for name, space, values in found:
            totals[name][space] += values
    for score in chosen:
        if score.without_images is not None:
            for name, group in structure.groups.items():
                totals[score.name][name] = score.without_images(model, structure, group, seed)
        elif score.types_from_votes:
            _from_votes(structure, totals[score.name])
    return totals


@dataclass(frozen=True, eq=False)
class _Seen:
    """What scores look at; ``labels`` where they need gradients."""

    model: CapsNet
    images: Tensor
    labels: Tensor | None
    scores: tuple[str, ...]
    loss: Loss


def _of_batch(seen: _Seen, batch: slice) -> list[tuple[str, str, Values]]:
    """Score, group, and the sums over the images of one batch, float64 (size,); a group may come several times."""
    model, labels = seen.model, seen.labels
    structure, record = structure_of(model), Record(labels is not None)
    places, voters = sites(structure, model), voter_layers(model, structure)
    with model.handle(record), torch.set_grad_enabled(labels is not None):
        pixels = to_float(seen.images[batch], model.device).requires_grad_(labels is not None)
        capsules = model(pixels)
        if labels is not None:
            _backward(seen.loss(lengths(capsules), labels[batch].to(pixels.device)) * len(pixels), pixels)
    found: list[tuple[str, str, Values]] = []
    for score in map(SCORES.find, seen.scores):
        if score.at_site is not None:
            for site in places:
                found.append((score.name, site.group.name, score.at_site(site, record).cpu().double().numpy()))
        if score.at_votes is not None:
            for layer, voting, sources in voters.values():
                voted = score.at_votes(record, layer, record.voting(voting, sources))
                found.append((score.name, voting.group, voted.cpu().double().numpy()))
    return found


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


def _from_votes(structure: Structure, totals: dict[str, Values]) -> None:
    """Scores of capsule types from those of their voting capsules."""
    for voters in structure.voters:
        for (group, _), (units, types, _) in zip(voters.sources, structure.by_source(voters), strict=True):
            totals[group][:] = 0.0
            np.add.at(totals[group], types, totals[voters.group][units])


def _taylor(site: Site, record: Record) -> Tensor:
    """Change of the margin loss without the unit, to first order: |activation x gradient|.

    Summed over the capsule before, and over positions after taking the magnitude.
    """
    product = record.product(f"{site.layer}.activation").reshape(-1, *site.shape)
    if site.group.kind is UnitKind.CHANNELS:
        whole = tuple(axis for axis in site.others if axis)
        return product.sum(whole).abs().sum(0)
    if site.group.kind is UnitKind.TYPES:
        product = product.sum(site.dims, keepdim=True)
    return product.abs().sum(site.others)


def _length(site: Site, record: Record) -> Tensor:
    """Length of the unit's capsules, or its activation."""
    value = record.active(site)
    if site.group.kind is UnitKind.TYPES:
        value = value.square().sum(site.dims, keepdim=True).sqrt()
    return value.abs().sum(site.others)


def _coupling_votes(record: Record, layer: str, length: Tensor) -> Tensor:
    """Length of the unit's votes for the classes, weighted by their coupling."""
    votes, coupling = (record.values[f"{layer}.{point}"].detach() for point in ("votes", "coupling"))
    return (coupling * lengths(votes)).sum((0, 1))


def _weight(model: CapsNet, structure: Structure, group: DependencyGroup, seed: int) -> Values:
    """Root of the unit's fraction of the squared weights, summed over the layers that make such units."""
    fraction = np.zeros(group.size)
    for layer in model.layers():
        rule = structure.layers[layer.name]
        axes = rule.tensors.get("weight", {})
        for axis, along in axes.items():
            if axis == 1 or group.name not in along:  # axis 1 is the input's: its units are made elsewhere
                continue
            weight: Tensor = layer.weight.detach().movedim(axis, 0).flatten(1)  # type: ignore[operator]
            squares = weight.square().sum(1).cpu().double().numpy()
            shape = [part if isinstance(part, int) else structure.groups[part].size for part in along]
            others = tuple(index for index, part in enumerate(along) if part != group.name)
            squares = squares.reshape(shape).sum(others)
            fraction += squares / max(squares.sum(), 1e-30)
    return np.asarray(np.sqrt(fraction))


def _random(model: CapsNet, structure: Structure, group: DependencyGroup, seed: int) -> Values:
    """A seeded random order: the baseline."""
    digest = hashlib.sha256(f"{seed}/{group.name}".encode()).digest()
    return np.random.default_rng(list(digest)).random(group.size)


for _score in (
    # Votes x gradient equal capsule x gradient through this layer alone, as votes are linear in the capsule.
    Score("taylor", True, _taylor, lambda record, layer, _: record.product(f"{layer}.votes").sum((1, 3)).abs().sum(0)),
    Score("length", False, _length, lambda record, layer, length: length.sum(0)),
    Score("coupling", False, _length, _coupling_votes, types_from_votes=True),
    Score("weight", without_images=_weight),
    Score("random", without_images=_random),
):
    SCORES.add(_score.name, _score)
