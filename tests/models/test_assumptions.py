"""Networks whose files leave things open: what is assumed is told, what is stated is done, known outputs come out."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from foreign import deep_caps, q7_capsnet, shallow_capsnet, write_keras
from numpy.typing import NDArray

from caplet.errors import ModelError
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers import import_model

STATED = {"activation": "leaky_relu:0.3", "iterations": "2", "channels": "bgr", "normalize": "0.4,0.5,0.6,0.2,0.25,0.5"}
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.5])  # of blue, green, red
FIRST, PRIMARY, CLASSES = "conv2d/conv2d/kernel:0", "primary_capsule/primary_capsule/primarycap_conv2d", "capsule"


def convolved(x: NDArray[Any], kernel: NDArray[Any], stride: int) -> NDArray[Any]:
    """x (N, H, W, C), kernel (k, k, C, O) -> (N, H', W', O), no padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nyxcij,ijco->nyxo", windows, kernel)


def squashed(s: NDArray[Any]) -> NDArray[Any]:
    squared = (s * s).sum(-1, keepdims=True)
    return s * np.sqrt(squared) / (1 + squared)


def outputs(weights: dict[str, NDArray[Any]], images: NDArray[Any], iterations: int) -> NDArray[Any]:
    """The network of :data:`STATED` in float64, for RGB pixels / 255, (N, 3, H, W) -> class capsules."""
    x = (images[:, ::-1].transpose(0, 2, 3, 1) - MEAN) / STD
    x = convolved(x, weights[FIRST], 1) + weights["conv2d/conv2d/bias:0"]
    x = np.where(x < 0, 0.3 * x, x)
    x = convolved(x, weights[f"{PRIMARY}/kernel:0"], 2) + weights[f"{PRIMARY}/bias:0"]
    capsules = squashed(x.reshape(len(x), -1, 3))
    votes = np.einsum("gidk,nik->nigd", weights[f"{CLASSES}/capsule/weights:0"], capsules)
    logits = np.zeros(votes.shape[:3])
    for _ in range(iterations):
        coupling = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
        found = squashed((coupling[..., None] * votes).sum(1))
        logits = logits + (votes * found[:, None]).sum(3)
    return found


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Weights alone of a small network for 28x28 BGR images."""
    return write_keras(tmp_path / "x.h5", q7_capsnet((3, 28, 28)), config=False)


def test_a_stated_network_computes_what_it_should(leaky: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(1).random((4, 3, 28, 28))
    with h5py.File(leaky) as file:
        weights = {name: file[name][()].astype(np.float64) for name in q7_capsnet((3, 28, 28)).weights}
    model = import_model(leaky, 28, STATED)
    assert (model.notes["assumed"], model.notes["stated"]) == ({"padding": "valid", "strides": "1,2"}, STATED)
    save_model(model, tmp_path / "saved.safetensors")
    saved = load_model(tmp_path / "saved.safetensors")
    assert saved.config == model.config
    for network in (model, saved):
        with torch.no_grad():
            found = network(torch.from_numpy(images).float())
        np.testing.assert_allclose(found.numpy(), outputs(weights, images, 2), atol=1e-5)


def test_values_may_be_numbers(leaky: Path) -> None:
    model = import_model(leaky, 28, {"iterations": 2, "normalize": (0.5, 0.25), "strides": [1, 2]})
    assert model.notes["stated"] == {"iterations": "2", "normalize": "0.5,0.25", "strides": "1,2"}


def test_what_was_assumed_is_noted(leaky: Path, tmp_path: Path) -> None:
    colour = {"channels": "rgb", "normalize": "0,1"}
    alone = {"padding": "valid", "strides": "1,2", "iterations": "3", "activation": "relu"}
    assert import_model(leaky).notes["assumed"] == {**alone, **colour, "image_size": "28x28"}
    whole = write_keras(tmp_path / "whole.h5", q7_capsnet())
    assert import_model(whole).notes["assumed"] == {"normalize": "0,1"}
    for name, net in (("shallow.pt", shallow_capsnet()), ("deep.pt", deep_caps())):
        torch.save(net.state, tmp_path / name)
        model = import_model(tmp_path / name)
        size = "x".join(map(str, model.config.image[1:]))
        order = {"channels": "rgb"} if model.config.image[0] == 3 else {}
        assert model.notes["assumed"] == {"iterations": "3", "normalize": "0,1", "image_size": size, **order}
    assert "iterations=3" in model.assumed


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"activations": "relu"}, r"cannot assume 'activations'; did you mean 'activation'\? \(known: activation,"),
        ({"activation": "swish"}, "activation=swish; the rule is relu, or leaky_relu:SLOPE"),
        ({"activation": "leaky_relu:1.5"}, "the rule is relu, or leaky_relu:SLOPE"),
        ({"iterations": "0"}, "iterations=0; the rule is routing iterations, 1 to 100"),
        ({"strides": "1"}, "1 strides; it has 2 convolutions"),
        ({"channels": "gray"}, "channels=gray; the rule is rgb or bgr"),
        ({"normalize": "0.5,0"}, "normalize=0.5,0; the rule is MEAN,STD"),
        ({"normalize": "0.5,0.5,1,1"}, "its images have 3 channels"),
    ],
)
def test_wrong_statements_are_refused_in_one_line(leaky: Path, stated: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        import_model(leaky, 28, stated)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{leaky}: cannot assume ")


def test_what_a_file_says_cannot_be_assumed(tmp_path: Path) -> None:
    whole = write_keras(tmp_path / "whole.h5", q7_capsnet())
    with pytest.raises(ModelError, match=r"cannot assume iterations: the file, or .*; open are normalize, channels"):
        import_model(whole, None, {"iterations": 5})
    model = import_model(whole)
    save_model(model, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="leave --assume out"):
        load_model(tmp_path / "x.safetensors", None, {"iterations": 5})


def test_a_mean_that_padding_keeps_from_folding_is_the_input_layers(tmp_path: Path) -> None:
    net = deep_caps()
    torch.save(net.state, tmp_path / "deep.pt")
    order, mean, std = "bgr", torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    model = import_model(tmp_path / "deep.pt", None, {"normalize": (0.1, 0.2, 0.3, 0.5, 0.25, 0.2), "channels": order})
    assert model.config.model_dump()["std"] == pytest.approx((0.2, 0.25, 0.5))
    images = torch.rand(2, *model.config.image)
    prepared = (images.flip(1) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    save_model(model, tmp_path / "saved.safetensors")
    for network in (model, load_model(tmp_path / "saved.safetensors")):
        with torch.no_grad():
            torch.testing.assert_close(network(images), net.forward(prepared), atol=2e-6, rtol=2e-5)
    folded = import_model(tmp_path / "deep.pt", None, {"normalize": "0,0.5", "channels": order})
    assert folded.config.model_dump()["mean"] is None
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net.forward(images.flip(1) / 0.5), atol=2e-6, rtol=2e-5)
