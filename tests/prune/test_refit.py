"""Refitting after surgery: exact where the inputs that stay say what the others said, better than nothing elsewhere."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.points import Handler
from caplet.prune import refit
from caplet.prune.refit import refitted
from caplet.prune.structure import Structure, cut, structure_of
from tiny_networks import model_and_images

CASES = [
    ("shallow", "conv1.channels", ("primary",)),
    ("shallow-two-stems", "conv2.channels", ("primary",)),
    ("shallow-flat", "conv1.channels", ("primary",)),
    ("deep", "conv1.channels", ("block1.l1",)),
    ("backbone", "layer1.conv1.channels", ("layer1.conv2",)),
    ("backbone-gated", "stem.conv.channels", ("primary",)),
]
cases = pytest.mark.parametrize(("name", "group", "readers"), CASES)


def outputs(model: CapsNet, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(to_float(images))


def with_twins(name: str, group: str, stays: int, goes: int) -> tuple[CapsNet, Structure, Tensor]:
    """A network in which two units of ``group`` are the same, and images."""
    model, images = model_and_images(name)
    model = copy.deepcopy(model)
    structure = structure_of(model)
    for layer in model.layers():
        tensors = dict((*layer.named_parameters(), *layer.named_buffers()))
        for key, axes in structure.layers[layer.name].tensors.items():
            for axis, along in axes.items():
                if axis == 0 and along == (group,):
                    with torch.no_grad():
                        tensors[key][goes] = tensors[key][stays]
    return model, structure, images


@pytest.mark.parametrize(("name", "group", "readers"), CASES[:-1])
def test_a_twin_takes_over(name: str, group: str, readers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "RIDGE", 1e-8)
    stays, goes = (0, 1) if name == "shallow" else (3, 4)  # units that are active
    model, structure, images = with_twins(name, group, stays, goes)
    keep = np.ones(structure.groups[group].size, dtype=np.bool_)
    keep[goes] = False
    smaller = cut(model, {group: keep}, structure)
    result, names = refitted(model, smaller, {group: keep}, images)
    assert names == readers
    assert result.config == smaller.config
    expected = outputs(model, images)
    largest = float(expected.abs().max())
    bare, fitted = (float((outputs(network, images) - expected).abs().max()) / largest for network in (smaller, result))
    assert fitted < 1e-3 < 1e-2 < bare


@cases
def test_what_a_layer_gives_comes_closer(name: str, group: str, readers: tuple[str, ...]) -> None:
    """The reader's sum, before what follows it, on the images that were fitted."""
    model, images = model_and_images(name)
    structure = structure_of(model)
    size = structure.groups[group].size
    keep = np.arange(size) < size // 2 + 1
    smaller = cut(model, {group: keep}, structure)
    result, names = refitted(model, smaller, {group: keep}, images.repeat(4, 1, 1, 1))
    assert set(readers) <= set(names)
    errors = []
    for network in (smaller, result):
        reader = readers[0]
        errors.append(float((linear(network, reader, images) - linear(model, reader, images)).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def linear(model: CapsNet, layer: str, images: Tensor) -> Tensor:
    """What the point before a layer's non-linearity holds."""
    found: dict[str, Tensor] = {}

    class Keeper(Handler):
        def tap(self, key: str, spec: object, value: Tensor, iteration: int) -> Tensor:
            found[key] = value
            return value

        def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
            return capsules

    with model.handle(Keeper()), torch.inference_mode():
        model(to_float(images))
    return found.get(f"{layer}.preactivation", found[f"{layer}.activation"])


def test_layers_that_lost_nothing_are_as_they_were() -> None:
    model, images = model_and_images("deep")
    structure = structure_of(model)
    keep = np.array([True, False, True, True])
    smaller = cut(model, {"block4.types": keep}, structure)
    result, names = refitted(model, smaller, {"block4.types": keep}, images)
    assert names == ("block4.l2", "block4.l3")
    changed = {key.rpartition(".")[0] for key, tensor in smaller.state_dict().items() if not equal(result, key, tensor)}
    assert changed == {"blocks.3.l2", "blocks.3.l3"}


def equal(model: CapsNet, key: str, tensor: Tensor) -> bool:
    return torch.equal(model.state_dict()[key], tensor)


def test_too_many_inputs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "LARGEST", 8)
    model, images = model_and_images("shallow")
    keep = np.array([True, False, True, True, True])
    smaller = cut(model, {"conv1.channels": keep})
    result, names = refitted(model, smaller, {"conv1.channels": keep}, images)
    assert names == ()
    assert torch.equal(outputs(result, images), outputs(smaller, images))


def test_large_means_cost_no_digits() -> None:
    """Inputs of 10,000 that vary by about one: their products alone, in float32, would leave no variance."""
    model, images = model_and_images("shallow")
    model = copy.deepcopy(model)
    with torch.no_grad():
        dict(model.named_parameters())["stem.0.bias"].fill_(1e4)
    keep = {"conv1.channels": np.array([True, False, True, True, True])}
    smaller = cut(model, keep)
    result, _ = refitted(model, smaller, keep, images.repeat(4, 1, 1, 1))
    errors = [
        float((linear(network, "primary", images) - linear(model, "primary", images)).abs().max())
        for network in (smaller, result)
    ]
    assert errors[1] < 1e-3 * errors[0]


def test_a_silent_layer_keeps_its_weights() -> None:
    """Inputs that are zero on all images say nothing; the change is zero, not NaN."""
    model, images = model_and_images("shallow")
    model = copy.deepcopy(model)
    conv = next(layer for layer in model.layers() if layer.name == "conv1")
    with torch.no_grad():
        conv.get_parameter("weight").zero_()
        conv.get_parameter("bias").zero_()
    keep = np.array([True, False, True, True, True])
    smaller = cut(model, {"conv1.channels": keep})
    result, names = refitted(model, smaller, {"conv1.channels": keep}, images)
    assert names == ("primary",)
    torch.testing.assert_close(result.state_dict(), smaller.state_dict(), rtol=0, atol=0)
