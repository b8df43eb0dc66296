"""Pretrained trunks: timm's state dicts into the trunk of a backbone model, by the names of timm's modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import check_shape
from caplet.models.backbone import BackboneCaps
from caplet.models.base import check_finite
from caplet.models.timm_trunk import PREFIX, timm_trunk
from caplet.nn.conv import ConvNorm, SqueezeExcite

TIMM = "timm"
"""As a source of weights: timm's own, from the Hugging Face cache."""
_FILE = "model.safetensors"
_NORM = ("weight", "bias", "running_mean", "running_var")


def timm_weights(name: str | None) -> tuple[str, Path, str]:
    """The name of timm's network for the trunk ``name``, where its default weights are cached, and their address.

    The path is that of the cached file, or the one to put it at where there is none.

    Raises:
        ModelError: a trunk that is not timm's, or one without pretrained weights.
        ToolMissing: timm is not installed.
    """
    if not (name or "").startswith(PREFIX):
        raise ModelError(
            f"backbone {name or 'of own settings'}: not a network of timm's; give the path of a state dict, or choose a"
            f" model {PREFIX}NAME"
        )
    assert name is not None
    repository = timm_trunk(name.removeprefix(PREFIX)).repository
    if repository is None:
        raise ModelError(f"backbone {name}: timm has no pretrained weights for it; give the path of a state dict")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, _FILE)
    place = Path(torch.hub.get_dir()) / "checkpoints" / f"{repository.rpartition('/')[2]}.safetensors"
    path = Path(found) if isinstance(found, str) else place
    return name, path, f"https://huggingface.co/{repository}/resolve/main/{_FILE}"


def read_timm_trunk(model: BackboneCaps, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of timm's ``state`` into the trunk; what timm has after its last map is left out.

    Raises:
        ModelError: the trunk is not the named network's (pruned, for example); a tensor is missing or of another shape;
            NaN or infinity.
        ToolMissing: timm is not installed.
    """
    name = model.config.architecture or ""
    trunk = timm_trunk(name.removeprefix(PREFIX))
    with torch.no_grad():
        for layer in model.layers():
            if not isinstance(layer, ConvNorm | SqueezeExcite):
                continue
            first, second = trunk.modules[layer.name]
            if isinstance(layer, ConvNorm):
                norm = dict(layer.norm.named_parameters()) | dict(layer.norm.named_buffers())
                targets = {f"{first}.weight": layer.weight} | {f"{second}.{part}": norm[part] for part in _NORM}
            else:
                targets = {f"{first}.weight": layer.reduce[:, :, None, None], f"{first}.bias": layer.reduce_bias}
                targets |= {f"{second}.weight": layer.expand[:, :, None, None], f"{second}.bias": layer.expand_bias}
            for key, place in targets.items():
                if key not in state:
                    raise ModelError(
                        f"{where}: {key} is missing, which layer {layer.name} needs; is it timm's state dict of"
                        f" {name.removeprefix(PREFIX)}?"
                    )
                check_shape(key, state[key], tuple(place.shape), where)
                place.copy_(state[key])
    check_finite(state, where)
