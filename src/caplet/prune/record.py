"""What a pass over images leaves behind for the scores: activations, votes, couplings and their gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.nn.points import Handler, PointSpec
from caplet.prune.rules import DependencyGroup, UnitKind, Voters
from caplet.prune.structure import Structure


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

    structure: Structure
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
    found = {}
    for stage in model.stages():
        for layer in stage.layers:
            voters = structure.layers[layer.name].voters
            if voters is not None:
                found[voters.group] = (layer.name, voters, stage.wiring[layer.name])
    return found
