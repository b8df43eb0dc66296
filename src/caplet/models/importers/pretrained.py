"""Pretrained trunks: state dicts of torchvision and timm into the trunk of a backbone model. Nothing is downloaded."""

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.architectures import ARCHITECTURES
from caplet.models.assemble import check_shape, listed
from caplet.models.backbone import END, BackboneCaps
from caplet.models.base import CapsNet, check_finite
from caplet.models.importers.files import read_state_dict
from caplet.models.timm_trunk import PREFIX, timm_trunk
from caplet.nn.conv import ConvNorm, SqueezeExcite

TORCHVISION, TIMM = "torchvision", "timm"
"""As a source of weights: the package's own, from its cache (timm's: that of Hugging Face)."""
HEADS = ("fc.", "classifier.")
"""What torchvision's networks have after their last feature map; capsules take its place."""
_NORM = ("weight", "bias", "running_mean", "running_var")
_FILE = "model.safetensors"
_log = logging.getLogger(__name__)


def read_trunk(model: BackboneCaps, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of timm's ``state``, for a trunk of timm's, or else of torchvision's into the trunk.

    timm's trunks know the names of their modules; torchvision's convolutions, batch norms and gates are in the order of
    ours. What follows the last feature map is left out; every shape is checked.

    Raises:
        ModelError: the trunk is not the named network's (pruned, for example); too few, too many or other tensors; a
            shape that differs; NaN or infinity.
        ToolMissing: a trunk of timm's where timm is not installed.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, part = key.rpartition(".")
        if part != "num_batches_tracked":
            modules.setdefault(module, {})[part] = tensor
    layers = [layer for layer in model.layers() if isinstance(layer, ConvNorm | SqueezeExcite)]
    targets = [(layer.name, target) for layer in layers for target in _targets(layer)]
    network, _, end = (model.config.architecture or "").partition(END)
    if network.startswith(PREFIX):
        known = timm_trunk(network.removeprefix(PREFIX)).modules
        names = [module for layer in layers for module in known[layer.name]]
    else:
        names = [module for module in modules if not f"{module}.".startswith(HEADS)]
    for (layer, target), module in zip(targets, [*names, *[""] * len(targets)], strict=False):
        found = modules.get(module, {})
        if set(found) != set(target):
            there = f"{module} has {', '.join(found) or 'no tensors'}" if module else "nothing is left in the file"
            raise ModelError(f"{where}: layer {layer} needs {', '.join(target)}, but {there}; is it another network?")
        for part, place in target.items():
            check_shape(f"{module}.{part}", found[part], tuple(place.shape), where)
            with torch.no_grad():
                place.copy_(found[part])
    if len(names) > len(targets) and not end:
        rest = listed(names[len(targets) :])
        raise ModelError(f"{where}: tensors that the trunk has no place for: {rest}; is it another network?")
    check_finite(state, where)


def _targets(layer: ConvNorm | SqueezeExcite) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a layer's two modules, by the names of torchvision and timm."""
    if isinstance(layer, ConvNorm):
        norm = {**dict(layer.norm.named_parameters()), **dict(layer.norm.named_buffers())}
        return {"weight": layer.weight}, {part: norm[part] for part in _NORM}
    reduce = {"weight": layer.reduce.detach()[:, :, None, None], "bias": layer.reduce_bias}
    return reduce, {"weight": layer.expand.detach()[:, :, None, None], "bias": layer.expand_bias}


def load_pretrained(model: CapsNet, source: str | Path) -> bool:
    """Give the trunk of ``model`` pretrained weights; the capsules stay as they are.

    Args:
        model: a backbone model, changed in place.
        source: a file with the state dict of the same network, timm's for a trunk of timm and torchvision's for the
            others (from ``torch.save``, or safetensors); or ``"torchvision"`` or ``"timm"``: the default weights from
            that package's cache folder. Nothing is downloaded.

    Returns:
        Whether weights were loaded; False, with a warning, where the cache has none.

    Raises:
        ModelError: the model has no trunk; a missing or damaged file; tensors of another network; NaN weights.
        ToolMissing: a trunk of timm's without timm.
    """
    if not isinstance(model, BackboneCaps):
        todo = "leave pretrained out, or choose a model on a CNN (caplet models)"
        raise ModelError(f"model {model.family}: no backbone to load {source} into; {todo}")
    path = _cached(model, str(source)) if str(source) in (TORCHVISION, TIMM) else Path(source)
    if path is None:
        return False
    state, notes = read_state_dict(path)
    for note in notes:
        _log.warning("%s: %s", path, note)
    read_trunk(model, state, str(path))
    return True


def _cached(model: BackboneCaps, package: str) -> Path | None:
    """The file of the default weights in the cache of ``package``; None, with a warning, where it is not there."""
    name = (model.config.architecture or "of own settings").partition(END)[0]
    found = None
    if package == TIMM:
        if not name.startswith(PREFIX):
            raise ModelError(f"backbone {name}: not a network of timm's; give a state dict, or choose {PREFIX}NAME")
        repository = timm_trunk(name.removeprefix(PREFIX)).repository
        if repository is None:
            raise ModelError(f"backbone {name}: timm has no pretrained weights for it; give the path of a state dict")
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(repository, _FILE)
        address = f"https://huggingface.co/{repository}/resolve/main/{_FILE}"
        file = f"{repository.rpartition('/')[2]}.safetensors"
    else:
        known = ARCHITECTURES[name].torchvision if name in ARCHITECTURES else None
        if known is None:
            raise ModelError(f"backbone {name}: torchvision has no weights for it; give the path of a state dict")
        from torchvision.models import get_model_weights

        address = str(get_model_weights(known).DEFAULT.url)
        file = Path(urlsplit(address).path).name
    path = Path(found) if isinstance(found, str) else Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    text = "no pretrained weights for %s: %s is not there, so training starts from random ones; download %s to it"
    _log.warning(text, name, path, address)
    return None
