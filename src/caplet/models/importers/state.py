"""A network's tensors in what a training script saved: in wrappers, under prefixes, in parts, beside other things."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import listed, shape_text

State = dict[str, Tensor]

#: Names under which training scripts store the state dict, the likeliest first; any other name comes after these.
WRAPPERS = (
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net_state_dict",
        "net",
        "network",
        "capsnet",
        "module",
    ),
    *("state", "weights", "params", "parameters", "ema_state_dict", "model_ema", "ema", "shadow"),
)
#: What PyTorch adds to the names of a module that is wrapped or computes a tensor from parts.
_ADDED = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|parametrizations(?=\.\w+\.original))\."
)
#: Modules at the top that training needs and a prediction does not.
_BESIDE = re.compile(r"\w*decod|recon|(ema|teacher|loss|criterion|n_averaged)(_|$)", re.IGNORECASE)


def find_state_dict(content: Any, seen: set[int], depth: int = 4) -> tuple[Any, tuple[str, ...]]:
    """The first mapping with tensors of dotted names in nested ones, and the keys that lead to it; else ``content``."""
    if isinstance(content, Mapping) and depth and id(content) not in seen:
        seen.add(id(content))
        for key in dict.fromkeys((*(name for name in WRAPPERS if name in content), *content)):
            found, keys = find_state_dict(content[key], seen, depth - 1)
            if isinstance(found, Mapping) and any(isinstance(found[k], Tensor) and "." in str(k) for k in found):
                return found, (str(key), *keys)
    return content, ()


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor:
    """Each slice of ``direction`` gets its ``length``; slices are along the axes where that has more than one."""
    squared = direction.double() ** 2
    for axis in range(squared.ndim):
        if not length.ndim or length.shape[axis] == 1:
            squared = squared.sum(axis, keepdim=True)
    return direction * (length / squared.sqrt())


#: Parts of a tensor NAME: NAME + the first, NAME + the second, and what makes one of them.
_PARTS = (
    ("_orig", "_mask", "pruning masks", torch.mul),
    ("_v", "_g", "weight norm", _weight_norm),
    (".original1", ".original0", "weight norm", _weight_norm),
)


def plain_state(state: State, where: str, notes: list[str]) -> State:
    """The tensors of the plain network: no prefix that all names share, one tensor for parts, nothing for training.

    Args:
        notes: receives a line on each thing applied or left out.

    Raises:
        ModelError: two tensors of one name, or parts whose shapes do not fit.
    """
    plain = {_ADDED.sub("", name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        raise ModelError(f"{where}: it holds tensors of several networks; save the state_dict() of one")
    for one, two, what, join in _PARTS:
        names = {name: name.removesuffix(one) for name in plain if name.endswith(one)}
        names = {name: short for name, short in names.items() if short + two in plain}
        for name, short in names.items():
            a, b = plain[name], plain.pop(short + two)
            if b.ndim and (a.ndim != b.ndim or any(m not in (1, n) for m, n in zip(b.shape, a.shape, strict=True))):
                raise ModelError(f"{where}: {short}{two} has shape {shape_text(b.shape)}, {name} {shape_text(a.shape)}")
            plain[name] = join(a, b)
        if names:
            notes.append(f"{what} applied to {listed([*names.values()])}")
        plain = {names.get(name, name): tensor for name, tensor in plain.items()}
    while True:
        tops = dict.fromkeys(name.partition(".")[0] for name in plain)
        beside = [top for top in tops if _BESIDE.match(top)]
        if len(tops) == 1 and "features" not in tops and all("." in name for name in plain):
            plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
        elif beside:
            notes.append(f"left out: {', '.join(beside)}")
            plain = {name: tensor for name, tensor in plain.items() if name.partition(".")[0] not in beside}
        else:
            return plain
