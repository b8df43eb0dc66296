"""Bad and hostile checkpoints: one clear line each, nothing run, nothing huge allocated."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from foreign import deep_caps, q7_capsnet, shallow_capsnet, write_keras

from caplet.errors import ModelError
from caplet.models.checkpoint import load_model, save_model
from caplet.models.registry import build

TINY = {"image": (1, 8, 8), "stem": [{"kernel": 3, "channels": 4}], "primary_types": 2, "primary_kernel": 3}


def refused(path: Path, match: str, image_size: int | None = None) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        load_model(path, image_size)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_missing_empty_folder_and_strangers(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "a folder, but a checkpoint is one file")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", r"the file is empty \(0 bytes\)")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    refused(tmp_path / "text.pt", "not a checkpoint of a known format")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=r"text\.pt is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_model(tmp_path / "text.pt")
    (tmp_path / "text.pt").write_text("\n<!DOCTYPE html>\n<html></html>")
    with pytest.raises(ModelError, match=r"text\.pt is a web page, not the file itself"):
        load_model(tmp_path / "text.pt")
    (tmp_path / "a.npz").write_bytes(b"")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    refused(tmp_path / "a.npz", "a zip archive but not a PyTorch checkpoint")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "x.pt", "cannot be read: not a directory")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_run_nothing(zipped: bool, tmp_path: Path) -> None:
    bait = tmp_path / "was-run"
    path = tmp_path / "evil.pt"
    torch.save({"conv.conv.weight": RunsCode(bait)}, path, _use_new_zipfile_serialization=zipped)
    assert "can run code" in refused(path, "nothing was run")
    path.write_bytes(pickle.dumps(RunsCode(bait)))
    refused(path, "evil.pt")
    path.write_bytes(pickle.dumps(RunsCode(bait), protocol=2))
    refused(path, "evil.pt")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, r"wants to use torch\.nn\.modules\.linear\.Linear")
    assert not bait.exists()


@pytest.mark.parametrize("kind", ["torch zip", "torch old", "keras", "native"])
def test_truncation_anywhere(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "keras":
        write_keras(path, q7_capsnet((1, 12, 12), ((3, 1, 2),), (3, 2, 2, 2)))
    elif kind == "native":
        save_model(build("shallow", TINY), path)
    else:
        state = shallow_capsnet(size=20, kernels=(3, 3), maps=2).state
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch zip")
    whole = path.read_bytes()
    load_model(path)
    for part in (3, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:part])
        refused(path, "x: ")


@pytest.mark.parametrize("kind", ["torch", "keras", "native"])
def test_flipped_bytes_never_escape(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "keras":
        write_keras(path, q7_capsnet((1, 8, 8), ((3, 1, 1),), (3, 2, 1, 2), 2, 2))
    elif kind == "native":
        save_model(build("shallow", TINY), path)
    else:
        torch.save(shallow_capsnet(size=8, kernels=(3, 3), maps=1, types=1, dim=2).state, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with suppress(ModelError):  # any other error fails the test
            load_model(path)


Change = Callable[[dict[str, Any]], Any]

STATE_CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda s: s.pop("digit.bias"), "missing digit.bias; is it another network"),
    "unexpected": (
        lambda s: s.update({f"extra{i}": torch.zeros(1) for i in range(5)}),
        "unexpected extra0, extra1, extra2 and 2 more",
    ),
    "axes": (lambda s: s.update({"digit.weight": torch.zeros(4)}), r"digit.weight has shape \(4\), expected 3 axes"),
    "empty": (lambda s: s.update({"conv.conv.bias": torch.zeros(0)}), r"conv.conv.bias has shape \(0\)"),
    "channels": (
        lambda s: s.update({"primary.conv3d.weight": torch.zeros(12, 5, 9, 9)}),
        r"primary.conv3d.weight has shape \(12, 5, 9, 9\), the network needs \(12, 6, 9, 9\)",
    ),
    "bias": (lambda s: s.update({"conv.conv.bias": torch.zeros(7)}), r"conv.conv.bias has shape \(7\), .* needs \(6\)"),
    "capsules": (
        lambda s: s.update({"digit.weight": torch.zeros(6, 3, 20)}),
        "no square image .* gives the 6 capsules",
    ),
    "nan": (lambda s: s["digit.bias"].fill_(float("nan")), "20 of 20 values of digit.bias are not finite"),
    "object": (lambda s: s.update({"digit.bias": "text"}), "entry digit.bias is a str, not a tensor"),
    "number name": (lambda s: s.update({3: torch.zeros(1)}), "entry 3 is a Tensor, not a tensor|entry 3"),
    "sparse": (lambda s: s.update({"digit.bias": torch.eye(3).to_sparse()}), "sparse"),
    "complex": (lambda s: s.update({"digit.bias": torch.zeros(5, 4, dtype=torch.complex64)}), "plain float tensors"),
    "codes": (lambda s: s.update({"digit.weight": s["digit.weight"].mul(99).to(torch.int8)}), "plain float tensors"),
    "huge": (
        lambda s: s.update({"digit.weight": torch.zeros(1).expand(1 << 40, 3, 20)}),
        "digit.weight declares 65,970,697,666,560 values but the file stores 1",
    ),
}


@pytest.mark.parametrize("case", STATE_CHANGES)
def test_wrong_state_dicts(case: str, tmp_path: Path) -> None:
    change, match = STATE_CHANGES[case]
    state: dict[str, Any] = dict(shallow_capsnet().state)
    change(state)
    torch.save(state, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", match)


def test_wrong_deep_caps(tmp_path: Path) -> None:
    state = deep_caps().state
    path = tmp_path / "x.pt"
    torch.save({**state, "block1.l1.conv.weight": torch.zeros(7, 6, 3, 3)}, path)
    refused(
        path, r"block1.l1.conv.weight has shape \(7, 6, 3, 3\); the rule is types\*dim1 .* 7 is not a multiple of 4"
    )
    torch.save({**state, "block2.l3.conv.weight": torch.zeros(12, 12, 5, 5)}, path)
    refused(path, r"block2.l3.conv.weight has shape \(12, 12, 5, 5\), the network needs \(12, 12, 3, 3\)")
    torch.save({name: value for name, value in state.items() if "block3" not in name}, path)
    refused(path, "missing block3.l1.conv.weight, block3.l1.conv.bias, block3.l2.conv.weight and 5 more")
    torch.save({**state, "conv1.batchnorm.running_var": torch.full((6,), float("inf"))}, path)
    refused(path, "6 of 6 values of conv1.batchnorm.running_var are not finite")


def test_another_network_and_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    refused(path, "not a Q-CapsNets network: its tensors are weight, bias; expected")
    for content, found in (([1, 2], "a list"), ({}, "nothing"), (torch.zeros(3), "a Tensor"), (None, "a NoneType")):
        torch.save(content, path)
        refused(path, f"holds {found}, not a state dict")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    refused(path, "TorchScript")


def test_zip_bomb(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"x": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    refused(bomb, "entries unpack to .* bytes, more than the file's")


def config_of(**changes: Any) -> Change:
    def change(net: Any) -> None:
        layers = net.config["config"]["layers"]
        for layer in layers:
            layer["config"].update(changes.get(layer["class_name"], {}))

    return change


KERAS_CHANGES: dict[str, tuple[Change, str]] = {
    "padding": (config_of(Conv2D={"padding": "full"}), "padding is 'full'; only 'valid' or 'same'"),
    "activation": (config_of(Activation={"activation": "tanh"}), "activation is 'tanh'; only 'relu'"),
    "dilation": (config_of(Conv2D={"dilation_rate": [2, 2]}), "dilated convolutions"),
    "strides": (config_of(PrimaryCapsule={"strides": [1, 2]}), r"strides is \[1, 2\]; expected one positive number"),
    "routings": (config_of(Capsule={"routings": 10**9}), "routings is '1000000000', expected a whole number"),
    "size": (config_of(InputLayer={"batch_input_shape": [None, 40, 40, 1]}), "images of 40x40 give"),
    "no relu": (lambda n: n.config["config"]["layers"].pop(2), "layer conv2d has no ReLU after it"),
    "strange layer": (
        lambda n: n.config["config"]["layers"].insert(3, {"class_name": "Lambda", "config": {}}),
        "Lambda",
    ),
    "no layers": (lambda n: n.config["config"].update(layers=[]), "lists no layers"),
    "no capsules": (lambda n: n.config["config"]["layers"].__delitem__(slice(4, None)), "no class-capsule layer"),
    "other conv": (
        lambda n: n.weights.update(
            {"conv2d/conv2d/kernel:0": np.zeros((7, 7, 1, 3)), "conv2d/conv2d/bias:0": np.zeros(3)}
        ),
        "primary_capsule takes 5 channels, but conv2d before it gives 3",
    ),
    "bias": (lambda n: n.weights.update({"conv2d/conv2d/bias:0": np.zeros(3, np.float32)}), r"shape \(3\), expected"),
    "kernel": (
        lambda n: n.weights.update({"conv2d/conv2d/kernel:0": np.zeros((7, 5, 1, 5), np.float32)}),
        "7x5 kernel; only square ones",
    ),
    "capsule axes": (
        lambda n: n.weights.update({"capsule/capsule/weights:0": np.zeros((5, 6), np.float32)}),
        "have 4 axes",
    ),
    "capsule dim": (
        lambda n: n.weights.update({"capsule/capsule/weights:0": np.zeros((5, 256, 6, 5), np.float32)}),
        "not a multiple of the capsule dimension 5",
    ),
    "no weights of capsules": (lambda n: n.weights.pop("capsule/capsule/weights:0"), "layer capsule holds no weights"),
    "missing conv": (
        lambda n: [n.weights.pop(f"conv2d/conv2d/{part}:0") for part in ("kernel", "bias")],
        r"layer conv2d is no plain convolution \(it has no weights",
    ),
    "nan": (lambda n: n.weights["capsule/capsule/weights:0"].fill(np.nan), "of capsule/capsule/weights are not"),
    "codes": (lambda n: n.weights.update({"conv2d/kernel": np.ones((3, 3, 1, 4), np.int8)}), "of type int8; weights"),
    "text": (lambda n: n.weights.update({"conv2d/note": np.array([b"text"])}), "of type .*; weights are plain floats"),
    "more tensors": (
        lambda n: n.weights.update({"conv2d/gamma:0": np.zeros(3, np.float32)}),
        r"layer conv2d is no plain convolution \(it has gamma",
    ),
}


@pytest.mark.parametrize("case", KERAS_CHANGES)
def test_wrong_keras_files(case: str, tmp_path: Path) -> None:
    change, match = KERAS_CHANGES[case]
    net = q7_capsnet()
    change(net)
    refused(write_keras(tmp_path / "x.h5", net), match)


def test_hostile_keras_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    write_keras(secret, q7_capsnet())
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", (1 << 20, 1 << 20, 1, 1), "f4", chunks=(64, 64, 1, 1))
    refused(path, r"declares shape \(1048576, 1048576, 1, 1\), 4,398,046,511,104 bytes, but the file has only")
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(secret), "/model_weights")
    refused(path, "an HDF5 file without weights")
    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", (2, 2, 1, 1), "f4", external=[(str(secret), 0, 16)])
    refused(path, "keeps its data in another file")
    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", data=np.array([b"a", "b"], dtype=h5py.string_dtype()))
    refused(path, "of type object; weights are plain floats")
    with h5py.File(write_keras(path, q7_capsnet()), "a") as file:
        file.attrs["model_config"] = "{broken"
    refused(path, "its model_config is not JSON")
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = "[" * 50000
    refused(path, "its model_config is not JSON")


def native(path: Path, **changes: Any) -> Path:
    """A native file with changes to its JSON header (None removes an entry)."""
    save_model(build("shallow", TINY), path)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["caplet"])
    header |= changes
    safetensors.torch.save_file(
        tensors, path, {"caplet": json.dumps({k: v for k, v in header.items() if v is not None})}
    )
    return path


def test_wrong_native_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    refused(native(path, version=99), "model file version 99, this caplet reads version 1; update caplet")
    refused(native(path, format="other"), "a safetensors file, but not a caplet model")
    refused(native(path, config=None), "lacks family, config or metadata")
    refused(native(path, family="shalow"), "unknown model family 'shalow'; did you mean 'shallow'")
    refused(native(path, config={"nonsense": 1}), "nonsense")
    refused(native(path, config=TINY | {"image": (1, 4, 4)}), "the smallest image this network works for is 5x5")
    refused(native(path, config=TINY | {"classes": 10**9}), "setting 'classes': Input should be less than or equal to")
    refused(native(path, config=TINY | {"classes": 10**18, "class_dim": 10**18}), "less than or equal to")
    refused(native(path, config=TINY | {"class_bias": False}), "unexpected digit.bias")
    refused(native(path), "the model is for 8x8 images, 28x28 was asked for", 28)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    refused(path, "not a caplet model")
