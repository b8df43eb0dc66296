"""Small networks in the style of the foreign projects, written from their formulas, and files in their formats."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def squash(s: Tensor, dim: int) -> Tensor:
    squared = (s * s).sum(dim, keepdim=True)
    return s * squared.sqrt() / (1 + squared)


def route(votes: Tensor, bias: Tensor | float, iterations: int) -> Tensor:
    """Votes (B, I, G, D, ...) with the softmax over all outputs of an input."""
    logits = votes.new_zeros(*votes.shape[:3], *votes.shape[4:])
    for _ in range(iterations):
        coupling = F.softmax(logits.flatten(2), 2).view_as(logits)
        output = squash((coupling.unsqueeze(3) * votes).sum(1) + bias, 2)
        logits = logits + (votes * output.unsqueeze(1)).sum(3)
    return output


def flatten(maps: Tensor) -> Tensor:
    return maps.permute(0, 1, 3, 4, 2).reshape(len(maps), -1, maps.shape[2])


def class_capsules(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    votes = (x.unsqueeze(3) * weight).sum(2).unflatten(2, tuple(bias.shape))
    return route(votes, bias, 3)


@dataclass(frozen=True)
class Foreign:
    """A network of another project: its tensors and what it computes."""

    state: State
    forward: Callable[[Tensor], Tensor]
    image: tuple[int, int, int]


def shallow_capsnet(
    channels: int = 1,
    size: int = 28,
    *,
    maps: int = 6,
    types: int = 4,
    dim: int = 3,
    kernels: tuple[int, int] = (9, 9),
    classes: int = 5,
    class_dim: int = 4,
    seed: int = 0,
) -> Foreign:
    """Q-CapsNets' ShallowCapsNet; the primary capsules' softmax over the types scales them by 1 / types."""
    g = torch.Generator().manual_seed(seed)
    side = ((size - kernels[0] + 1) - kernels[1]) // 2 + 1
    state = {
        "conv.conv.weight": 0.2 * torch.randn(maps, channels, kernels[0], kernels[0], generator=g),
        "conv.conv.bias": 0.1 * torch.randn(maps, generator=g),
        "primary.bias": 0.3 * torch.randn(types, dim, 1, 1, generator=g),
        "primary.conv3d.weight": 0.2 * torch.randn(types * dim, maps, kernels[1], kernels[1], generator=g),
        "digit.weight": 0.2 * torch.randn(types * side * side, dim, classes * class_dim, generator=g),
        "digit.bias": 0.1 * torch.randn(classes, class_dim, generator=g),
    }

    def forward(x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, state["conv.conv.weight"], state["conv.conv.bias"]))
        votes = F.conv2d(x, state["primary.conv3d.weight"], None, 2).unflatten(1, (types, dim))
        coupling = torch.softmax(torch.zeros(len(x), types, *votes.shape[3:]), 1)
        primary = squash(coupling.unsqueeze(2) * votes + state["primary.bias"], 2)
        return class_capsules(flatten(primary), state["digit.weight"], state["digit.bias"])

    return Foreign(state, forward, (channels, size, size))


def deep_caps(channels: int = 3, size: int = 32, *, types: int = 4, dims: tuple[int, int, int] = (2, 3, 4)) -> Foreign:
    """Q-CapsNets' DeepCaps: dimensions of blocks 1, 2, and of 3 and 4; 6 maps, 5 classes of 6 dimensions."""
    g = torch.Generator().manual_seed(1)
    maps = 6
    state: State = {}

    def conv(name: str, out: int, inputs: int, *kernel: int) -> None:
        state[f"{name}.weight"] = 0.3 * torch.randn(out, inputs, *kernel, generator=g)
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=g)

    conv("conv1.conv", maps, channels, 3, 3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"conv1.batchnorm.{name}"] = torch.rand(maps, generator=g) + 0.5
    state["conv1.batchnorm.num_batches_tracked"] = torch.tensor(7)
    block_dims = (*dims, dims[-1])
    previous, side, count = maps, size, 0
    for block, dim in enumerate(block_dims, start=1):
        out = types * dim
        conv(f"block{block}.l1.conv", out, previous, 3, 3)
        conv(f"block{block}.l2.conv", out, out, 3, 3)
        conv(f"block{block}.l3.conv", out, out, 3, 3)
        if block < 4:
            conv(f"block{block}.l_skip.conv", out, out, 3, 3)
        else:
            state["block4.l_skip.bias"] = 0.1 * torch.randn(types, dim, 1, 1, generator=g)
            conv("block4.l_skip.conv", out, 1, dim, 3, 3)
        previous, side = out, (side + 1) // 2
        count += types * side * side if block >= 3 else 0
    state["capsLayer.weight"] = 0.2 * torch.randn(count, dims[-1], 30, generator=g)
    state["capsLayer.bias"] = 0.1 * torch.randn(5, 6, generator=g)

    def caps(x: Tensor, name: str, stride: int = 1) -> Tensor:
        y = F.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], stride, 1)
        return squash(y.unflatten(1, (types, -1)), 2)

    def forward(x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, state["conv1.conv.weight"], state["conv1.conv.bias"], 1, 1))
        mean, var, weight, bias = (
            state[f"conv1.batchnorm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, weight, bias, eps=1e-3)
        last: list[Tensor] = []
        for block, dim in enumerate(block_dims, start=1):
            name = f"block{block}"
            first = caps(x, f"{name}.l1", 2)
            if block < 4:
                skip = caps(first.flatten(1, 2), f"{name}.l_skip")
            else:
                kernel = state["block4.l_skip.conv.weight"]
                y = F.conv3d(
                    first.flatten(1, 2).unsqueeze(1), kernel, state["block4.l_skip.conv.bias"], (dim, 1, 1), (0, 1, 1)
                )
                votes = y.permute(0, 2, 1, 3, 4).unflatten(2, (types, dim))
                skip = route(votes, state["block4.l_skip.bias"], 3)
            maps_ = caps(caps(first.flatten(1, 2), f"{name}.l2").flatten(1, 2), f"{name}.l3") + skip
            last, x = [*last[-1:], maps_], maps_.flatten(1, 2)
        capsules = torch.cat([flatten(m) for m in last], 1)
        return class_capsules(capsules, state["capsLayer.weight"], state["capsLayer.bias"])

    return Foreign(state, forward, (channels, size, size))


Conv = tuple[int, int, int]  # kernel, stride, channels


@dataclass(frozen=True)
class Q7:
    """A Q7-CapsNets network: HWIO kernels, capsule weights (out, in, out_dim, in_dim), its Keras description."""

    weights: dict[str, np.ndarray]
    config: dict[str, Any]
    forward: Callable[[Tensor], Tensor]
    image: tuple[int, int, int]


def q7_capsnet(
    image: tuple[int, int, int] = (1, 28, 28),
    stem: tuple[Conv, ...] = ((7, 1, 5),),
    primary: tuple[int, int, int, int] = (7, 2, 4, 3),
    classes: int = 5,
    class_dim: int = 6,
    iterations: int = 3,
    fused_relu: bool = False,
) -> Q7:
    """Channels-last network; ``primary`` is (kernel, stride, types, dim)."""
    rng = np.random.default_rng(0)
    channels, rows, columns = image
    weights: dict[str, np.ndarray] = {}
    layers: list[dict[str, Any]] = [
        {
            "class_name": "InputLayer",
            "config": {"name": "input_1", "batch_input_shape": [None, rows, columns, channels]},
        }
    ]
    kernel, stride, types, dim = primary
    convs = [(f"conv2d_{i}" if i else "conv2d", *conv) for i, conv in enumerate(stem)]
    for name, k, s, out in [*convs, ("primary_capsule", kernel, stride, types * dim)]:
        inner = f"{name}/primarycap_conv2d" if name == "primary_capsule" else name
        weights[f"{name}/{inner}/kernel:0"] = (rng.standard_normal((k, k, channels, out)) * 0.2).astype(np.float32)
        weights[f"{name}/{inner}/bias:0"] = (rng.standard_normal(out) * 0.1).astype(np.float32)
        settings: dict[str, Any] = {"name": name, "strides": [s, s], "padding": "valid", "kernel_size": [k, k]}
        if name == "primary_capsule":
            layers.append({"class_name": "PrimaryCapsule", "config": settings | {"strides": s, "kernel_size": k}})
        else:
            settings |= {"activation": "relu" if fused_relu else "linear", "dilation_rate": [1, 1], "groups": 1}
            layers.append({"class_name": "Conv2D", "config": settings})
            if not fused_relu:
                act = {"name": f"activation_{name}", "activation": "relu"}
                layers.append({"class_name": "Activation", "config": act})
        channels, rows, columns = out, (rows - k) // s + 1, (columns - k) // s + 1
    count = rows * columns * types
    weights["capsule/capsule/weights:0"] = (rng.standard_normal((classes, count, class_dim, dim)) * 0.3).astype(
        np.float32
    )
    layers.append({"class_name": "Capsule", "config": {"name": "capsule", "routings": iterations}})
    layers.append({"class_name": "Length", "config": {"name": "length"}})

    def forward(x: Tensor) -> Tensor:
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        for name, _, s, _ in convs:
            w = tensors[f"{name}/{name}/kernel:0"].permute(3, 2, 0, 1)
            x = F.relu(F.conv2d(x, w, tensors[f"{name}/{name}/bias:0"], s))
        inner = "primary_capsule/primary_capsule/primarycap_conv2d"
        x = F.conv2d(x, tensors[f"{inner}/kernel:0"].permute(3, 2, 0, 1), tensors[f"{inner}/bias:0"], stride)
        capsules = squash(x.permute(0, 2, 3, 1).reshape(len(x), -1, dim), 2)
        votes = torch.einsum("gidk,bik->bigd", tensors["capsule/capsule/weights:0"], capsules)
        return route(votes, 0.0, iterations)

    config = {"class_name": "Functional", "config": {"name": "model", "layers": layers}}
    return Q7(weights, config, forward, image)


def write_keras(path: Path, net: Q7, *, config: bool = True, extra: dict[str, np.ndarray] | None = None) -> Path:
    """A Keras HDF5 file: with ``config`` as ``model.save`` writes it, else as ``save_weights`` does."""
    weights = net.weights | (extra or {})
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if config else file
        names = list(dict.fromkeys(name.split("/")[0] for name in weights))
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        for name, value in weights.items():
            root.create_dataset(name, data=value.astype(np.float32) if value.dtype.kind == "f" else value)
        if config:
            file.attrs["model_config"] = json.dumps(net.config)
            file.create_dataset("optimizer_weights/Adam/conv2d/kernel/m:0", data=np.zeros(3, np.float32))
    return path
