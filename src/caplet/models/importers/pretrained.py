"""Pretrained trunks: state dicts of torchvision and timm into the trunk of a backbone model. Nothing is downloaded."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.architectures import ARCHITECTURES
from caplet.models.assemble import check_shape, listed
from caplet.models.backbone import BackboneCaps
from caplet.models.base import CapsNet, check_finite
from caplet.models.importers.files import damaged, is_torch_file, read_head, read_state_dict
from caplet.models.timm_trunk import PREFIX, timm_trunk
from caplet.nn.conv import ConvNorm, SqueezeExcite

TORCHVISION = "torchvision"
"""As a source of weights: torchvision's own, from its cache."""
TIMM = "timm"
"""As a source of weights: timm's own, from the Hugging Face cache."""
HEADS = ("fc.", "classifier.")
"""What torchvision's networks have after their last feature map; capsules take its place."""
_NORM = ("weight", "bias", "running_mean", "running_var")
_FILE = "model.safetensors"
_log = logging.getLogger(__name__)


def torchvision_weights(name: str | None) -> tuple[str, str]:
    """The name of torchvision's network for the trunk ``name``, and the address of its default weights.

    Raises:
        ModelError: torchvision has no such network.
    """
    known = None if name not in ARCHITECTURES else ARCHITECTURES[name].torchvision
    if known is None:
        raise ModelError(
            f"backbone {name or 'of own settings'}: torchvision has no weights for it; give the path of a state dict"
        )
    from torchvision.models import get_model_weights

    return known, str(get_model_weights(known).DEFAULT.url)


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


def read_trunk(model: BackboneCaps, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of torchvision's ``state`` into the trunk; the classifier's are left out.

    Both sides hold their convolutions, batch norms and gates in one order; every shape is checked.

    Raises:
        ModelError: too few, too many or other tensors; a shape that differs; NaN or infinity.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, part = key.rpartition(".")
        if not key.startswith(HEADS) and part != "num_batches_tracked":
            modules.setdefault(module, {})[part] = tensor
    remaining = iter(modules.items())
    for layer, targets in _targets(model):
        for target in targets:
            name, tensors = next(remaining, ("", {}))
            if set(tensors) != set(target):
                found = f"{name} has {', '.join(tensors) or 'no tensors'}" if name else "nothing is left in the file"
                raise ModelError(
                    f"{where}: layer {layer} needs {', '.join(target)}, but {found}; is it torchvision's state dict of"
                    " the same network?"
                )
            _copy(target, {part: (f"{name}.{part}", tensor) for part, tensor in tensors.items()}, where)
    rest = [name for name, _ in remaining]
    if rest:
        raise ModelError(f"{where}: tensors that the trunk has no place for: {listed(rest)}; is it another network?")
    check_finite(state, where)


def read_timm_trunk(model: BackboneCaps, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of timm's ``state`` into the trunk; what timm has after its last map is left out.

    Raises:
        ModelError: the trunk is not the named network's (pruned, for example); a tensor is missing or of another shape;
            NaN or infinity.
        ToolMissing: timm is not installed.
    """
    network = (model.config.architecture or "").removeprefix(PREFIX)
    trunk = timm_trunk(network)
    for layer, targets in _targets(model):
        for module, target in zip(trunk.modules[layer], targets, strict=True):
            keys = {part: f"{module}.{part}" for part in target}
            missing = [key for key in keys.values() if key not in state]
            if missing:
                raise ModelError(
                    f"{where}: {missing[0]} is missing, which layer {layer} needs; is it timm's state dict of"
                    f" {network}?"
                )
            _copy(target, {part: (key, state[key]) for part, key in keys.items()}, where)
    check_finite(state, where)


def _targets(model: BackboneCaps) -> Iterator[tuple[str, tuple[dict[str, Tensor], dict[str, Tensor]]]]:
    """(layer, the tensors of its two modules by the names of torchvision and timm) of the trunk, in order."""
    for layer in model.layers():
        if isinstance(layer, ConvNorm):
            norm = dict(layer.norm.named_parameters()) | dict(layer.norm.named_buffers())
            yield layer.name, ({"weight": layer.weight}, {part: norm[part] for part in _NORM})
        elif isinstance(layer, SqueezeExcite):
            reduce = {"weight": layer.reduce.detach()[:, :, None, None], "bias": layer.reduce_bias}
            yield layer.name, (reduce, {"weight": layer.expand.detach()[:, :, None, None], "bias": layer.expand_bias})


@torch.no_grad()
def _copy(target: Mapping[str, Tensor], found: Mapping[str, tuple[str, Tensor]], where: str) -> None:
    """Copy the tensors ``found``, each with its name in the file, into ``target``."""
    for part, place in target.items():
        name, tensor = found[part]
        check_shape(name, tensor, tuple(place.shape), where)
        place.copy_(tensor)


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
        raise ModelError(
            f"model {model.family}: it has no backbone, so there is nothing to load {source} into; leave pretrained"
            " out, or choose a model on a CNN (caplet models)"
        )
    path: Path | None = Path(source)
    if str(source) in (TORCHVISION, TIMM):
        path = _cached(model, str(source))
        if path is None:
            return False
    assert path is not None
    state = _state(path)
    if (model.config.architecture or "").startswith(PREFIX):
        read_timm_trunk(model, state, str(path))
    else:
        read_trunk(model, state, str(path))
    return True


def _cached(model: BackboneCaps, package: str) -> Path | None:
    """The file of the default weights in the cache of ``package``; None, with a warning, where it is not there."""
    if package == TIMM:
        name, path, address = timm_weights(model.config.architecture)
    else:
        name, address = torchvision_weights(model.config.architecture)
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(address).path).name
    if path.is_file():
        return path
    _log.warning(
        "no pretrained weights for %s: %s is not there, so training starts from random ones; download %s to it",
        name,
        path,
        address,
    )
    return None


def _state(path: Path) -> dict[str, Tensor]:
    head = read_head(path)
    if is_torch_file(head):
        return read_state_dict(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from None
    raise ModelError(f"{path}: not a PyTorch file, nor .safetensors; give a state dict that torch.save wrote")
