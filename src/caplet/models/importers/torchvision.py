"""Pretrained trunks: torchvision's state dicts into the trunk of a backbone model, tensor by tensor, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import check_shape, listed
from caplet.models.backbone import BackboneCaps, architecture
from caplet.models.base import check_finite
from caplet.nn.conv import ConvNorm, SqueezeExcite

TORCHVISION = "torchvision"
"""As a source of weights: torchvision's own, from its cache."""
HEADS = ("fc.", "classifier.")
"""What torchvision's networks have after their last feature map; capsules take its place."""
_NORM = ("weight", "bias", "running_mean", "running_var")


def torchvision_weights(name: str | None) -> tuple[str, str]:
    """The name of torchvision's network for the trunk ``name``, and the address of its default weights.

    Raises:
        ModelError: torchvision has no such network.
    """
    known = None if name is None else architecture(name).torchvision
    if known is None:
        raise ModelError(
            f"backbone {name or 'of own settings'}: torchvision has no weights for it; give the path of a state dict"
        )
    from torchvision.models import get_model_weights

    return known, str(get_model_weights(known).DEFAULT.url)


def read_trunk(model: BackboneCaps, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of torchvision's ``state`` into the trunk; the classifier's are left out.

    Both sides hold their convolutions, batch norms and gates in one order; every shape is checked.

    Raises:
        ModelError: too few, too many or other tensors; a shape that differs; NaN or infinity.
    """
    modules = _modules(state)
    with torch.no_grad():
        for stage in model.stages():
            for layer in stage.layers:
                if isinstance(layer, ConvNorm):
                    target = {"weight": layer.weight}
                    _copy(target, modules, layer.name, where)
                    norm = dict(layer.norm.named_parameters()) | dict(layer.norm.named_buffers())
                    _copy({name: norm[name] for name in _NORM}, modules, f"{layer.name}.norm", where)
                elif isinstance(layer, SqueezeExcite):
                    for part in ("reduce", "expand"):
                        matrix = layer.get_parameter(part)
                        bias = layer.get_parameter(f"{part}_bias")
                        _copy(
                            {"weight": matrix[:, :, None, None], "bias": bias}, modules, f"{layer.name}.{part}", where
                        )
    rest = [name for name, _ in modules]
    if rest:
        raise ModelError(f"{where}: tensors that the trunk has no place for: {listed(rest)}; is it another network?")
    check_finite(state, where)


def _modules(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(module's name, its tensors) in the file's order, without the classifier's and without counters."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, name = key.rpartition(".")
        if not key.startswith(HEADS) and name != "num_batches_tracked":
            modules.setdefault(module, {})[name] = tensor
    yield from modules.items()


def _copy(
    target: Mapping[str, Tensor], modules: Iterator[tuple[str, dict[str, Tensor]]], layer: str, where: str
) -> None:
    """The next module's tensors into ``target``."""
    name, tensors = next(modules, ("", {}))
    if set(tensors) != set(target):
        found = f"{name} has {', '.join(tensors) or 'no tensors'}" if name else "nothing is left in the file"
        raise ModelError(
            f"{where}: layer {layer} needs {', '.join(target)}, but {found}; is it torchvision's state dict of the same"
            " network?"
        )
    for part, place in target.items():
        check_shape(f"{name}.{part}", tensors[part], tuple(place.shape), where)
        place.copy_(tensors[part])
