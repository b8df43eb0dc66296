"""The dependency groups of a whole model, which of their units stay, and surgery: the model without the others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.errors import ConfigError, ModelError
from caplet.models.assemble import assemble, named_tensors
from caplet.models.base import CapsNet
from caplet.prune.choices import UnitKind
from caplet.prune.rules import AxisGroups, Dependencies, DependencyGroup, MapAxes, Voters, rule_of

Places = NDArray[np.int64]
Keep = NDArray[np.bool_]
Selection = Mapping[str, Keep]
"""By group, which units stay, bool (size,); a group that is left out stays whole."""


@dataclass(frozen=True)
class Structure:
    """What can be removed from a model, and what goes along with it.

    Attributes:
        groups: by name, in order of execution.
        layers: what the tensors of each layer run along, by its name, in order of execution.
        readers: by group, the layers that read its units as their input.
        aliases: groups of the rules that are one with another: their names, and the names under which they are here.
    """

    groups: Mapping[str, DependencyGroup]
    layers: Mapping[str, Dependencies]
    readers: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, str]

    @property
    def voters(self) -> tuple[Voters, ...]:
        """The groups of single capsules."""
        return tuple(rule.voters for rule in self.layers.values() if rule.voters is not None)

    def whole(self) -> dict[str, Keep]:
        """The selection that keeps everything."""
        return {name: np.ones(group.size, dtype=np.bool_) for name, group in self.groups.items()}

    def sizes(self, selection: Selection) -> dict[str, int]:
        """By the rules' own names of all groups, how many units stay."""
        kept = kept_sizes(selection)
        return kept | {name: kept[other] for name, other in self.aliases.items()}

    def size(self, along: AxisGroups) -> int:
        """Length of an axis."""
        return prod(part if isinstance(part, int) else self.groups[part].size for part in along)

    def kept(self, along: AxisGroups, selection: Selection) -> Keep:
        """Which places of an axis stay, bool (length,)."""
        result = np.ones(1, dtype=np.bool_)
        for part in along:
            own = np.ones(part, dtype=np.bool_) if isinstance(part, int) else selection[part]
            result = (result[:, None] & own[None, :]).reshape(-1)
        return result

    def close(self, selection: Selection) -> dict[str, Keep]:
        """The selection with all that it implies: capsules go with their type, types with their last capsule.

        A type stays without voting capsules where another layer reads it too.

        Raises:
            ConfigError: an unknown group or a wrong number of units, or a layer would be empty; the message names it.
        """
        result = self.whole()
        for name, keep in selection.items():
            if name not in self.groups:
                raise ConfigError(f"there is no group {name!r} to prune; this model has {', '.join(self.groups)}")
            if keep.shape != result[name].shape:
                raise ConfigError(f"group {name}: {keep.shape} units; the rule is ({self.groups[name].size},)")
            if not keep.any():
                group = self.groups[name]
                raise ConfigError(
                    f"{name}: all {group.size} {group.kind} would be removed; the smallest size is 1 (keep at least"
                    f" {1 / group.size:.2g} of them)"
                )
            result[name] = keep.astype(np.bool_)
        for voters in self.voters:
            kept = result[voters.group] = result[voters.group].copy()
            for (source, _), (units, types, _) in zip(voters.sources, self.by_source(voters), strict=True):
                kept[units] &= result[source][types]
                voting = np.zeros(self.groups[source].size, dtype=np.bool_)
                voting[types[kept[units]]] = True
                if not voting.any():
                    raise ConfigError(
                        f"{voters.group}: no capsule of {source.partition('.')[0]} would vote; at least 1 must stay"
                    )
                if len(self.readers[source]) == 1:
                    result[source] = result[source] & voting
        return result

    def by_source(self, voters: Voters) -> list[tuple[Places, Places, Places]]:
        """For each source of a ``capsules`` group: its units, and of each of them the type and the position."""
        size = self.groups[voters.group].size
        places = np.arange(size) if voters.places is None else np.array(voters.places)
        result, start = [], 0
        for group, positions in voters.sources:
            end = start + self.groups[group].size * positions
            units = np.flatnonzero((places >= start) & (places < end))
            result.append((units, *np.divmod(places[units] - start, positions)))
            start = end
        return result

    def places(self, voters: Voters, selection: Selection) -> tuple[int, ...] | None:
        """Places of the capsules that still vote, in the list of all that remain; None where all of those vote."""
        chosen, first = [], 0
        for (group, positions), (units, types, at) in zip(voters.sources, self.by_source(voters), strict=True):
            rank = np.cumsum(selection[group]) - 1
            chosen.append((first + rank[types] * positions + at)[selection[voters.group][units]])
            first += int(selection[group].sum()) * positions
        result = np.concatenate(chosen)
        return None if len(result) == first else tuple(result.tolist())


def structure_of(model: CapsNet) -> Structure:
    """What can be removed from ``model``.

    Raises:
        ModelError: a layer has no rule; the message names it.
    """
    flows: dict[str, MapAxes] = {}
    groups: dict[str, DependencyGroup] = {}
    layers: dict[str, Dependencies] = {}
    readers: dict[str, list[str]] = {}
    same: dict[str, str] = {}
    for stage in model.stages():
        for layer in stage.layers:
            sources = tuple(flows[key] for key in stage.wiring[layer.name])
            rule = rule_of(layer, sources)
            for group in rule.groups:
                if groups.setdefault(group.name, group) != group:
                    raise ModelError(
                        f"layer {layer.name}: {group.size} {group.kind}, other layers of its stage have"
                        f" {groups[group.name].size}"
                    )
            for part in dict.fromkeys(part for flow in sources for part in flow.along if isinstance(part, str)):
                readers.setdefault(part, []).append(layer.name)
            for first, other in rule.same:
                same[other] = same.get(first, first)
            layers[layer.name] = rule
            outputs = [key for key, spec in layer.points().items() if spec.lifetime == "output"]
            flows |= dict.fromkeys(outputs, rule.output)
    merged = {name: group for name, group in groups.items() if name not in same}
    for first, other in ((same[name], name) for name in same):
        readers[first] = [*readers.get(first, []), *readers.pop(other, [])]
    renamed = {name: _renamed(rule, same) for name, rule in layers.items()}
    result = Structure(merged, renamed, {name: tuple(readers.get(name, ())) for name in merged}, same)
    _check(model, result)
    return result


def _renamed(rule: Dependencies, same: Mapping[str, str]) -> Dependencies:
    """The rule with every group under its one name."""

    def axes(found: Mapping[int, AxisGroups]) -> dict[int, AxisGroups]:
        return {
            axis: tuple(same.get(part, part) if isinstance(part, str) else part for part in along)
            for axis, along in found.items()
        }

    return replace(
        rule,
        tensors={name: axes(found) for name, found in rule.tensors.items()},
        units=axes(rule.units),
        coupling=axes(rule.coupling),
    )


def _check(model: CapsNet, structure: Structure) -> None:
    """Every tensor of every layer is covered, and every axis is as long as the rule says."""
    for layer in model.layers():
        rule = structure.layers[layer.name]
        tensors = dict((*layer.named_parameters(), *layer.named_buffers()))
        if set(tensors) != set(rule.tensors):
            raise ModelError(f"layer {layer.name}: its rule covers {sorted(rule.tensors)}, it has {sorted(tensors)}")
        for name, axes in rule.tensors.items():
            for axis, along in axes.items():
                if tensors[name].shape[axis] != structure.size(along):
                    raise ModelError(
                        f"layer {layer.name}: axis {axis} of {name} is {tensors[name].shape[axis]} long, its rule says"
                        f" {structure.size(along)} ({' x '.join(map(str, along))})"
                    )


def kept_sizes(selection: Selection) -> dict[str, int]:
    """By group, how many units stay."""
    return {name: int(keep.sum()) for name, keep in selection.items()}


def prunable(structure: Structure, kinds: tuple[UnitKind, ...]) -> tuple[DependencyGroup, ...]:
    """The groups of these kinds, in order of execution."""
    return tuple(group for group in structure.groups.values() if group.kind in kinds)


def cut(model: CapsNet, selection: Selection, structure: Structure | None = None) -> CapsNet:
    """A copy of ``model`` without the units that ``selection`` does not keep.

    Its outputs equal those of the original in which the removed units are masked, up to the order of
    float sums.

    Args:
        structure: of the model, if it is at hand.

    Returns:
        A model of the same family in evaluation mode; its settings say its sizes.

    Raises:
        ConfigError: a layer would be empty, or the selection does not fit the model.
        ModelError: a layer without a pruning rule, or a family whose settings cannot say other sizes.
    """
    structure = structure or structure_of(model)
    selection = structure.close(selection)
    places = {voters.group: structure.places(voters, selection) for voters in structure.voters}
    config = model.resized(structure.sizes(selection), places)
    tensors: dict[str, Tensor] = {}
    for layer in model.layers():
        rule = structure.layers[layer.name]
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            value = tensor.detach()
            for axis, along in rule.tensors[name].items():
                keep = torch.from_numpy(structure.kept(along, selection))
                value = value.index_select(axis, keep.nonzero().flatten().to(value.device))
            tensors[f"{layer.name}.{name}"] = value
    return assemble(model.family, config, tensors, f"pruned {model.family}")


def with_iterations(model: CapsNet, iterations: int) -> CapsNet:
    """A copy of ``model`` whose class capsules are routed in so many iterations.

    Raises:
        ModelError: the family's settings have no ``iterations``.
    """
    if "iterations" not in type(model.config).model_fields:
        raise ModelError(f"model family {model.family}: its settings have no routing iterations to change")
    config = model.config.model_copy(update={"iterations": iterations})
    return assemble(model.family, config, named_tensors(model), f"{model.family} with {iterations} iterations")
