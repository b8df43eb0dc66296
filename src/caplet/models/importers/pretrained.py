"""Pretrained trunks: where the weights of a backbone model's CNN come from. Nothing is downloaded."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import first_line
from caplet.models.backbone import BackboneCaps
from caplet.models.base import CapsNet
from caplet.models.importers.files import read_head
from caplet.models.importers.timm import TIMM, read_timm_trunk, timm_weights
from caplet.models.importers.torch_file import is_torch_file, read_state_dict
from caplet.models.importers.torchvision import TORCHVISION, read_trunk, torchvision_weights
from caplet.models.timm_trunk import PREFIX

_log = logging.getLogger(__name__)


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
            raise ModelError(
                f"{path}: truncated or damaged safetensors file ({first_line(error)}); copy or save it again"
            ) from None
    raise ModelError(f"{path}: not a PyTorch file, nor .safetensors; give a state dict that torch.save wrote")
