"""PyTorch files as training scripts write them: wrappers, prefixes, masks, weight norm, protocols, safetensors."""

import argparse
import os
import pathlib
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import State, deep_caps, shallow_capsnet
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from caplet.errors import ModelError
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.importers.files import read_state_dict

Variant = Callable[[State], Any]


def equal(model: CapsNet, other: CapsNet) -> None:
    """Every tensor, and with it the outputs, to the last bit."""
    theirs = named_tensors(other)
    for name, tensor in named_tensors(model).items():
        assert torch.equal(tensor, theirs[name]), name
    images = torch.rand(2, *model.config.image)
    assert torch.equal(model(images), other(images))


def saved(path: Path, content: Any, **settings: Any) -> Path:
    torch.save(content, path, **settings)
    return path


def under(prefix: str) -> Variant:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


class _Nested(nn.Module):
    """A module whose tensors have the names of a state dict."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.register_parameter(last, nn.Parameter(tensor.clone()))


def _averaged(state: State) -> Any:
    return AveragedModel(_Nested(state)).state_dict()


DECODER = {"decoder.0.weight": torch.zeros(7, 20), "decoder.0.bias": torch.zeros(7)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
VARIANTS: dict[str, Variant] = {
    **{key: lambda s, key=key: {key: OrderedDict(s), "epoch": 3} for key in ("net", "state", "weights", "params")},
    **{key: lambda s, key=key: {"epoch": 3, key: s} for key in ("model_state", "ema", "my_network")},
    "one level deeper": lambda s: {"checkpoint": {"model": s, "optimizer": OPTIMIZER}, "epoch": 1},
    "optimizer first": lambda s: {"optimizer": OPTIMIZER, "scheduler": {"last_epoch": 3}, "state_dict": s},
    "model before its average": lambda s: {"ema": {k: 2 * v for k, v in s.items()}, "model": s},
    "numbers beside the tensors": lambda s: {**s, "epoch": 3, "best_acc": 99.1},
    "numpy scalars": lambda s: {"state_dict": s, "best": np.float64(99.1), "count": np.int32(3)},
    "numpy arrays": lambda s: {
        "state_dict": s,
        "curve": np.arange(5.0),
        "rng": ("MT19937", np.arange(9, dtype=np.uint32), 1),
    },
    "options": lambda s: {"args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")), "state_dict": s},
    "bytes and sets": lambda s: {"rng": b"\x00\xff", "tags": {"a", "b"}, "state_dict": s},
    **{prefix: under(prefix) for prefix in ("model.", "net.", "_orig_mod.", "module._orig_mod.", "capsule_net.")},
    "lightning": lambda s: {"state_dict": under("model.")({**s, **DECODER}), "hyper_parameters": {"lr": 0.1}},
    "compiled layer": lambda s: {name.replace("conv.conv.", "conv.conv._orig_mod."): v for name, v in s.items()},
    "a tuple": lambda s: (s, OPTIMIZER, 3),
    "a list in order": lambda s: [3, {"loss": 0.1}, s],
    "decoder": lambda s: s | DECODER,
    "decoder beside the model": lambda s: under("model.")(s) | DECODER | {"criterion.weight": torch.ones(5)},
    "averaged": _averaged,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_training_scripts_save(variant: str, tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    plain = load_model(saved(tmp_path / "plain.pt", state))
    equal(load_model(saved(tmp_path / "x.pt", VARIANTS[variant](state))), plain)


def test_a_wrapped_deep_network(tmp_path: Path) -> None:
    state = deep_caps(size=8, types=2).state
    plain = load_model(saved(tmp_path / "plain.pt", state))
    equal(load_model(saved(tmp_path / "x.pt", {"net": under("module._orig_mod.")({**state, **DECODER})})), plain)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("error")
def test_every_pickle_protocol(protocol: int, zipped: bool, tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    plain = load_model(saved(tmp_path / "plain.pt", state))
    for variant in ("net", "numpy scalars", "numpy arrays", "options", "bytes and sets", "lightning"):
        content = VARIANTS[variant](state)
        if protocol == 2 and variant == "bytes and sets":
            content.pop("tags")
        settings = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
        equal(load_model(saved(tmp_path / "x.pt", content, **settings)), plain)


class Runs:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_runs_in_any_protocol(protocol: int, zipped: bool, tmp_path: Path) -> None:
    bait, path = tmp_path / "bait", tmp_path / "x.pt"
    settings = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    calls = (
        (os.mkdir, str(bait)),
        (eval, f"__import__('os').mkdir({str(bait)!r})"),
        (np.save, bait, 0),
        (pathlib.Path.mkdir, bait),
    )
    for function, *args in calls:
        for content in (
            Runs(function, *args),
            {"net": shallow_capsnet(size=20).state, "beside": Runs(function, *args)},
        ):
            with pytest.raises(ModelError, match=r"x\.pt: its pickle wants to use .*nothing was run"):
                load_model(saved(path, content, **settings))
    assert not bait.exists()


def test_masks_of_pruning(tmp_path: Path) -> None:
    network = _Nested(shallow_capsnet(size=20).state)
    conv = network.get_submodule("conv.conv")
    prune.l1_unstructured(conv, "weight", 0.4)
    prune.random_unstructured(network.get_submodule("digit"), "weight", 0.2)
    path = saved(tmp_path / "masked.pt", network.state_dict())
    prune.remove(conv, "weight")
    prune.remove(network.get_submodule("digit"), "weight")
    equal(load_model(path), load_model(saved(tmp_path / "plain.pt", network.state_dict())))
    assert read_state_dict(path)[1] == ["pruning masks applied to conv.conv.weight, digit.weight"]


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm(new: bool, dim: int | None, tmp_path: Path) -> None:
    network = _Nested(shallow_capsnet(size=20).state)
    conv = network.get_submodule("conv.conv")
    if new:
        parametrizations.weight_norm(conv, "weight", dim=-1 if dim is None else dim)
    else:
        nn.utils.weight_norm(conv, "weight", dim=dim)  # type: ignore[arg-type]  # None is one length for all
    with torch.no_grad():
        for name, tensor in conv.named_parameters():
            if name.endswith(("_g", "original0")):
                tensor *= 1.5
    state = network.state_dict()
    if new:
        parametrize.remove_parametrizations(conv, "weight")
    else:
        nn.utils.remove_weight_norm(conv)
    expected = network.state_dict()["conv.conv.weight"]
    found, notes = read_state_dict(saved(tmp_path / "x.pt", state))
    torch.testing.assert_close(found["conv.conv.weight"].float(), expected, atol=1e-6, rtol=1e-6)
    assert notes == ["weight norm applied to conv.conv.weight"]
    load_model(tmp_path / "x.pt")


def test_safetensors_without_a_description(tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    plain = load_model(saved(tmp_path / "plain.pt", state))
    for content in (state, under("module.")(state)):
        save_file(content, tmp_path / "x.safetensors", {"format": "pt"})
        equal(load_model(tmp_path / "x.safetensors"), plain)
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="not a caplet model and not a Q-CapsNets network: its tensors are a;"):
        load_model(tmp_path / "x.safetensors")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    path = saved(tmp_path / "x.pt", {"ema": state, "model": {**state, "epoch": 3}})
    assert read_state_dict(path)[1] == ["the weights are those under model; left out: ema", "left out: epoch"]


def test_two_networks_and_parts_that_do_not_fit(tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    path = saved(tmp_path / "x.pt", {**state, **under("module.")(state)})
    with pytest.raises(ModelError, match="tensors of several networks"):
        load_model(path)
    weight = state.pop("conv.conv.weight")
    for parts, message in (
        ({"weight_orig": weight, "weight_mask": torch.ones(2, 2)}, r"weight_mask has shape \(2, 2\), .*weight_orig"),
        ({"weight_v": weight, "weight_g": torch.ones(5, 1, 1, 1)}, r"weight_g has shape \(5, 1, 1, 1\), .*weight_v"),
        ({"weight_v": 0 * weight, "weight_g": torch.ones(6, 1, 1, 1)}, "conv.conv.weight are not finite"),
        ({"weight_orig": weight}, "missing conv.conv.weight; unexpected conv.conv.weight_orig"),
    ):
        saved(path, {**state, **{f"conv.conv.{name}": part for name, part in parts.items()}})
        with pytest.raises(ModelError, match=message):
            load_model(path)


def test_nested_mappings_without_end(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    for level in range(40):
        endless = {f"{level}-{place}": endless for place in range(40)}
    endless["again"] = endless
    with pytest.raises(ModelError, match="not a tensor"):
        load_model(saved(tmp_path / "x.pt", endless))


def test_floats_of_one_byte_are_refused(tmp_path: Path) -> None:
    state = shallow_capsnet(size=20).state
    state["conv.conv.bias"] = state["conv.conv.bias"].to(torch.float8_e5m2)
    with pytest.raises(ModelError, match=r"entry conv\.conv\.bias is a .*float8_e5m2 tensor; .* plain float tensors"):
        load_model(saved(tmp_path / "x.pt", state))


@pytest.mark.filterwarnings("error")
def test_an_entry_that_occurs_twice_is_read_without_a_word(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", shallow_capsnet(size=20).state)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    text = next(data for name, data in entries if name.endswith("data.pkl"))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for name, data in [*entries, entries[-1]]:
            archive.writestr(name, pickle.dumps({}, 4) if data is text else data)
    with pytest.raises(ModelError, match="holds nothing, not a state dict"):
        load_model(path)


def test_arrays_in_place_of_tensors_are_named(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in shallow_capsnet(size=20).state.items()}
    with pytest.raises(ModelError, match=r"entry conv.conv.weight is a NumPy array, or another object, not a tensor"):
        load_model(saved(tmp_path / "x.pt", arrays))
    with pytest.raises(ModelError, match=r"holds a tuple, not a state dict"):
        load_model(saved(tmp_path / "y.pt", (1, 2)))


def test_a_network_with_code_of_its_own_is_shown_the_way(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"not a Q-CapsNets network: its tensors are .* \(caplet.adopt, docs/networks.md\)"
    ):
        load_model(saved(tmp_path / "x.pt", {"conv1.weight": torch.zeros(3, 1, 3, 3), "conv1.bias": torch.zeros(3)}))
