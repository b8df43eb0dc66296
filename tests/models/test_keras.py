"""Keras files of many kinds, equal to forward passes in numpy: batch norm, 'same' padding, whole models, Keras 3."""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caplet.errors import ModelError
from caplet.models.base import CapsNet
from caplet.models.importers import detect, import_model

Array = NDArray[np.float64]
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def conv(x: Array, kernel: Array, bias: Array, stride: int, padding: str) -> Array:
    """Channels last; 'same' as TensorFlow defines it."""
    k = kernel.shape[0]
    if padding == "same":
        zeros = [max((-(-size // stride) - 1) * stride + k - size, 0) for size in x.shape[1:3]]
        x = np.pad(x, ((0, 0), *((zero // 2, zero - zero // 2) for zero in zeros), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias


def squash(s: Array) -> Array:
    squared = (s * s).sum(-1, keepdims=True)
    return s * np.sqrt(squared) / (1 + squared)


class Net:
    """A network layer by layer: Keras' description, its weights by layer and part, and what it computes."""

    def __init__(self, image: tuple[int, int, int], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.image, self.seen = image, Counter[str]()
        self.layers: list[dict[str, Any]] = []
        self.weights: dict[str, dict[str, Array]] = {}
        self.steps: list[Callable[[Array], Array]] = []
        self.shape = np.zeros((1, *image))
        self.add("InputLayer", {"batch_input_shape": [None, *image]})

    def add(self, kind: str, settings: dict[str, Any] | None = None, name: str = "", **weights: Array) -> str:
        count = self.seen[kind]
        self.seen[kind] += 1
        name = name or f"my_{kind.lower()}" + (f"_{count}" if count else "")
        self.layers.append({"class_name": kind, "name": name, "config": {"name": name, **(settings or {})}})
        self.weights[name] = weights
        return name

    def step(self, run: Callable[[Array], Array]) -> "Net":
        self.steps.append(run)
        self.shape = run(self.shape)
        return self

    def random(self, *shape: int, scale: float = 0.2) -> Array:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32).astype(np.float64)

    def norm_weights(self, channels: int) -> dict[str, Array]:
        values = self.rng.uniform(0.4, 1.6, channels), self.random(channels), self.random(channels)
        return {
            k: v.astype(np.float32) for k, v in zip(NORM, (*values, self.rng.uniform(0.2, 2, channels)), strict=True)
        }

    def conv(
        self, kernel: int, stride: int, channels: int, padding: str = "valid", activation: str = "linear"
    ) -> "Net":
        w, b = self.random(kernel, kernel, self.shape.shape[-1], channels), self.random(channels)
        window = {"kernel_size": [kernel] * 2, "strides": [stride] * 2, "padding": padding}
        self.add("Conv2D", {**window, "activation": activation}, kernel=w, bias=b)
        self.step(lambda x: conv(x, w, b, stride, padding))
        return self.step(lambda x: np.maximum(x, 0)) if activation == "relu" else self

    def relu(self) -> "Net":
        self.add("Activation", {"activation": "relu"})
        return self.step(lambda x: np.maximum(x, 0))

    def norm(self, epsilon: float = 1e-3, **left_out: bool) -> "Net":
        own = self.norm_weights(self.shape.shape[-1])
        own |= {part: np.full_like(own[part], part == "gamma") for part in NORM[:2] if left_out.get(part)}
        kept = {part: value for part, value in own.items() if not left_out.get(part)}
        settings = {"epsilon": epsilon, "axis": [3], "scale": "gamma" in kept, "center": "beta" in kept}
        self.add("BatchNormalization", settings, **kept)
        return self.step(lambda x: normalized(x, own, epsilon))

    def primary(
        self, kernel: int, stride: int, types: int, dim: int, padding: str = "valid", norm: bool = False
    ) -> "Net":
        w, b = self.random(kernel, kernel, self.shape.shape[-1], types * dim), self.random(types * dim)
        own = self.norm_weights(types * dim)
        settings = {"num_capsule": types, "dim_capsule": dim, "kernel_size": kernel, "strides": stride}
        inside = {f"norm/{part}": value for part, value in own.items()} if norm else {}
        parts = {"pc_conv/kernel": w, "pc_conv/bias": b} | inside
        self.add("PrimaryCapsule", {**settings, "padding": padding}, **parts)
        self.step(lambda x: conv(x, w, b, stride, padding))
        if norm:
            self.step(lambda x: normalized(x, own, 1e-3))
        return self.step(lambda x: squash(x.reshape(len(x), -1, dim)))

    def capsules(self, classes: int = 3, dim: int = 4, routings: int = 3) -> "Net":
        _, count, inner = self.shape.shape
        w = self.random(classes, count, dim, inner, scale=0.4)
        self.add("CapsuleLayer", {"num_capsule": classes, "dim_capsule": dim, "routings": routings}, W=w)

        def route(x: Array) -> Array:
            votes = np.einsum("gidk,bik->bgid", w, x)
            logits = np.zeros(votes.shape[:3])
            for _ in range(routings):
                coupling = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                out = squash((coupling[..., None] * votes).sum(2))
                logits = logits + (votes * out[:, :, None]).sum(-1)
            return out

        return self.step(route)

    def linked(self, three: bool) -> list[dict[str, Any]]:
        """The layers, each with the one before it as its source, as versions 2 and 3 write that."""
        result = []
        for before, layer in zip([None, *self.layers], self.layers, strict=False):
            name = before and before["name"]
            history = {"class_name": "__keras_tensor__", "config": {"shape": [None, 3], "keras_history": [name, 0, 0]}}
            nodes = [{"args": [history], "kwargs": {"mask": None}}] if three else [[[name, 0, 0, {}]]]
            result.append({**layer, "inbound_nodes": nodes if before else []})
        return result

    def config(self, kind: str = "Functional", three: bool = False) -> dict[str, Any]:
        layers = self.linked(three) if kind == "Functional" else self.layers
        return {"class_name": kind, "config": {"name": "model", "layers": layers}}

    def equals(self, model: CapsNet) -> None:
        assert model.config.image == (self.image[2], *self.image[:2])
        images = self.rng.uniform(0, 1, (3, *self.image))
        expected = images
        for step in self.steps:
            expected = step(expected)
        with torch.no_grad():
            found = model(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
        np.testing.assert_allclose(found.numpy(), expected, atol=3e-6, rtol=1e-4)
        assert np.abs(expected).max() > 0.05, "capsules of no length show nothing"


def normalized(x: Array, own: dict[str, Array], epsilon: float) -> Array:
    gamma, beta, mean, variance = (own[part].astype(np.float64) for part in NORM)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def write_h5(path: Path, net: Net, kind: str = "Functional", outer: str = "") -> Path:
    with h5py.File(path, "w") as file:
        for name, parts in net.weights.items():
            for part, value in parts.items():
                file[f"model_weights/{outer or name}/{name}/{part}:0"] = value.astype(np.float32)
        file.attrs["model_config"] = json.dumps(net.config(kind))
    return path


def write_three(stream: Any, net: Net) -> None:
    """Weights as Keras 3 counts them: layers by class, tensors by number, parts of own layers by attribute."""
    snake = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "PrimaryCapsule": "primary_capsule"}
    snake["CapsuleLayer"] = "capsule_layer"
    used = Counter[str]()
    with h5py.File(stream, "w") as file:
        file["optimizer/vars/0"] = np.zeros(2)
        for layer in net.layers:
            group = snake.get(layer["class_name"], layer["class_name"].lower())
            count, used[group] = used[group], used[group] + 1
            inside = Counter[str]()
            for part, value in net.weights[layer["name"]].items():
                folder = part.rpartition("/")[0] + "/" if "/" in part else ""
                path = f"layers/{group}_{count}" if count else f"layers/{group}"
                file[f"{path}/{folder}vars/{inside[folder]}"] = value.astype(np.float32)
                inside[folder] += 1


def write_keras(path: Path, net: Net, kind: str = "Functional") -> Path:
    weights = io.BytesIO()
    write_three(weights, net)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(net.config(kind, three=True)))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def mnist_bn() -> Net:
    return Net((14, 13, 1)).conv(5, 1, 4).relu().norm(0.01).primary(3, 2, 2, 4, norm=True).capsules()


def same_bn() -> Net:
    net = Net((12, 12, 3)).conv(3, 1, 4, "same").relu().norm().conv(3, 2, 5, "same").relu().norm(1e-4)
    net.add("Dropout", {"rate": 0.1})
    return net.primary(3, 2, 2, 4, "same").capsules(routings=2)


def before() -> Net:
    net = Net((12, 12, 2)).conv(3, 2, 4, "same").norm().relu().conv(2, 1, 4, "same", "relu").norm(gamma=True)
    return net.conv(4, 2, 6, "same").norm(beta=True).norm().relu().primary(1, 1, 2, 3, "same").capsules()


def capsnet_keras() -> Net:
    """Conv2D, Reshape and Lambda for the primary capsules; then what is left out."""
    net = Net((13, 14, 1)).conv(5, 1, 4, activation="relu").conv(5, 2, 8)
    net.add("Reshape", {"target_shape": [-1, 4]}, "primarycap_reshape")
    net.step(lambda x: x.reshape(len(x), -1, 4))
    net.add("Lambda", {"function": "squash"}, "primarycap_squash")
    net.step(squash).capsules()
    net.add("Mask")
    decoder = {"layers": [{"class_name": "Dense", "config": {"name": "dense"}}]}
    net.add("Sequential", decoder, "decoder", **{"dense/kernel": np.ones((12, 5))})
    return net


NETS = {"after the ReLU": mnist_bn, "same": same_bn, "before the ReLU": before, "CapsNet-Keras": capsnet_keras}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_every_format_gives_what_numpy_computes(make: Callable[[], Net], tmp_path: Path) -> None:
    net = make()
    models = [
        import_model(write_h5(tmp_path / "a.h5", net)),
        import_model(write_h5(tmp_path / "b.h5", net, "Sequential")),
    ]
    models += [import_model(write_keras(tmp_path / "c.keras", net, kind)) for kind in ("Functional", "Sequential")]
    assert detect(tmp_path / "c.keras").name == "Q7-CapsNets"
    write_three(tmp_path / "d.weights.h5", net)
    (tmp_path / "d.json").write_text(json.dumps(net.config(three=True)))
    models.append(import_model(tmp_path / "d.weights.h5"))
    for model in models:
        net.equals(model)
    assert any("d.json" in line for line in models[-1].notes["read"])


def test_what_was_read_is_said(tmp_path: Path) -> None:
    lines = "; ".join(import_model(write_keras(tmp_path / "c.keras", capsnet_keras())).notes["read"])
    assert "left out: my_mask, decoder" in lines
    assert "primarycap_squash" in lines
    lines = "; ".join(import_model(write_h5(tmp_path / "a.h5", mnist_bn())).notes["read"])
    assert "batch norm inside my_primarycapsule: epsilon 0.001" in lines


def test_a_model_inside_another(tmp_path: Path) -> None:
    net = same_bn()
    inner = net.config()["config"] | {"name": "core"}
    net.layers = [
        {
            "class_name": "InputLayer",
            "config": {"name": "x", "batch_input_shape": [None, *net.image]},
            "inbound_nodes": [],
        },
        {"class_name": "Functional", "name": "core", "config": inner, "inbound_nodes": [[["x", 0, 0, {}]]]},
    ]
    net.linked = lambda three: net.layers  # type: ignore[method-assign]  # one layer of the outer model is all
    net.equals(import_model(write_h5(tmp_path / "a.h5", net, outer="core")))


def test_weights_alone_with_a_batch_norm(tmp_path: Path) -> None:
    net = Net((14, 14, 1)).conv(5, 1, 4).relu().norm().primary(3, 2, 2, 4).capsules()
    path = tmp_path / "w.h5"

    def write(order: list[str]) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [name.encode() for name in order]
            for name, parts in net.weights.items():
                for part, value in parts.items():
                    file[f"{name}/{name}/{part}:0"] = value.astype(np.float32)

    order = ["activation" if name == "my_activation" else name for name in net.weights]
    write(order)
    net.equals(import_model(path, 14))
    write([name for name in order if name != "activation"])
    with pytest.raises(ModelError, match="whether the batch norm my_batchnormalization is before or after a ReLU"):
        import_model(path, 14)


def test_weights_alone_with_same_padding(tmp_path: Path) -> None:
    net = Net((12, 12, 3)).conv(3, 2, 4, "same", "relu").primary(3, 2, 2, 4, "same").capsules()
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for name, parts in net.weights.items():
            for part, value in parts.items():
                file[f"{name}/{name}/{part}:0"] = value.astype(np.float32)
        file.attrs["layer_names"] = [name.encode() for name in net.weights]
    net.equals(import_model(path, 12, {"padding": "same", "strides": "2,2"}))


def branched(net: Net) -> dict[str, Any]:
    config = net.config()
    config["config"]["layers"][-2]["inbound_nodes"][0].append(["my_conv2d", 0, 0, {}])
    return config


def twice(net: Net) -> dict[str, Any]:
    net.add("CapsuleLayer", {"routings": 3})
    return net.config()


REFUSED = {
    "reads my_dropout, my_conv2d; only a network": (same_bn, branched),
    "my_capsulelayer_1 routes capsules after my_capsulelayer": (same_bn, twice),
}


@pytest.mark.parametrize("match", REFUSED)
def test_other_graphs_are_refused(match: str, tmp_path: Path) -> None:
    make, change = REFUSED[match]
    net = make()
    path, config = write_h5(tmp_path / "a.h5", net), change(net)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match=match):
        import_model(path)


def test_keras_3_weights_need_a_description(tmp_path: Path) -> None:
    write_three(tmp_path / "w.weights.h5", mnist_bn())
    with pytest.raises(ModelError, match=r"put its description, model.to_json\(\), beside them as w.json"):
        import_model(tmp_path / "w.weights.h5")


def test_damaged_archives(tmp_path: Path) -> None:
    whole = write_keras(tmp_path / "c.keras", mnist_bn()).read_bytes()
    for size in range(1, len(whole), len(whole) // 25):
        (tmp_path / "cut.keras").write_bytes(whole[:size])
        with pytest.raises(ModelError):
            import_model(tmp_path / "cut.keras")
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(1 << 24))
    with pytest.raises(ModelError, match="unpacks to more than"):
        import_model(tmp_path / "bomb.keras")


@pytest.mark.parametrize("archive", [False, True])
def test_a_heap_of_texts_without_end_is_refused(archive: bool, tmp_path: Path) -> None:
    """The HDF5 library would go round in it for ever."""
    path = write_h5(tmp_path / "a.h5", mnist_bn())
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL\x01") + 16
    while any(content[at : at + 2]):  # entries in use, then the free one
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    content[at + 8 : at + 16] = bytes(8)
    path.write_bytes(content)
    if archive:
        path = tmp_path / "a.keras"
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("config.json", json.dumps(mnist_bn().config("Functional", three=True)))
            packed.writestr("model.weights.h5", bytes(content))
    with pytest.raises(ModelError, match=rf"{path.name}: damaged or truncated .* \(an entry of no size\)"):
        import_model(path)
