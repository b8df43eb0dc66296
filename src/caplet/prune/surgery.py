"""Surgery: a model without the units that go. The result is an ordinary model with smaller settings."""

from __future__ import annotations

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import assemble, named_tensors
from caplet.models.base import CapsNet
from caplet.prune.structure import Selection, Structure, structure_of


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
