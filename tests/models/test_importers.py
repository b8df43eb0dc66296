"""Importers on small networks of the foreign families, of many shapes: equal outputs, inferred architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Foreign, deep_caps, q7_capsnet, shallow_capsnet, write_keras

from caplet.errors import ModelError
from caplet.models.base import CapsNet
from caplet.models.importers import FORMATS, detect, import_model
from caplet.nn.functional import lengths


def save_torch(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(model: CapsNet, net: Any) -> None:
    images = torch.rand(3, *model.config.image)
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.forward(images), atol=2e-6, rtol=2e-5)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


SHALLOW: dict[str, dict[str, Any]] = {
    "28": {},
    "32 colour": {"channels": 3, "size": 32},
    "three types": {"types": 3},  # a factor that is no power of two
    "64": {"size": 64, "maps": 2, "types": 2},
    "other kernels": {"kernels": (5, 7), "classes": 2, "class_dim": 7},
    "odd size": {"size": 21},
}


@pytest.mark.parametrize("case", SHALLOW)
def test_shallow_capsnet(case: str, tmp_path: Path) -> None:
    net = shallow_capsnet(**SHALLOW[case])
    path = save_torch(tmp_path / "x.pt", net.state)
    model = import_model(path)
    assert model.family == "shallow"
    assert model.config.image == net.image
    same(model, net)


def test_factor_of_a_power_of_two_is_folded_exactly(tmp_path: Path) -> None:
    net = shallow_capsnet(types=4)
    model = import_model(save_torch(tmp_path / "x.pt", net.state))
    weight = dict(model.named_parameters())["primary.weight"]
    assert torch.equal(weight * 4, net.state["primary.conv3d.weight"])


DEEP: dict[str, dict[str, Any]] = {
    "32 colour": {},
    "28 grey": {"channels": 1, "size": 28},
    "64 colour": {"size": 64, "types": 2},
    "other dimensions": {"dims": (5, 1, 2), "types": 3},
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_caps(case: str, tmp_path: Path) -> None:
    net = deep_caps(**DEEP[case])
    model = import_model(save_torch(tmp_path / "x.pt", net.state))
    assert model.family == "deep"
    assert model.config.image == net.image
    same(model, net)


def test_the_callers_image_size_wins(tmp_path: Path) -> None:
    path = save_torch(tmp_path / "x.pt", deep_caps().state)
    assert import_model(path).config.image == (3, 32, 32)
    assert import_model(path, 28).config.image == (3, 28, 28)
    assert import_model(path, (26, 30)).config.image == (3, 26, 30)
    with pytest.raises(ModelError, match=r"images of 36x36 give 136 capsules, but .* for 80; 25x25 to 32x32 fits"):
        import_model(path, 36)


def test_smallest_size_where_no_usual_one_fits(tmp_path: Path) -> None:
    net = shallow_capsnet(size=50, maps=2, types=2)
    path = save_torch(tmp_path / "x.pt", net.state)
    assert import_model(path).config.image == (1, 49, 49)
    assert import_model(path, 50).config.image == (1, 50, 50)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrapped_and_parallel_state_dicts(wrapper: str, tmp_path: Path) -> None:
    net = shallow_capsnet()
    state = {f"module.{name}": value for name, value in net.state.items()}
    same(import_model(save_torch(tmp_path / "x.pt", {"epoch": 3, wrapper: state})), net)


def test_older_torch_format_and_other_precisions(tmp_path: Path) -> None:
    net = shallow_capsnet()
    torch.save(
        {name: value.double() for name, value in net.state.items()},
        tmp_path / "x",
        _use_new_zipfile_serialization=False,
    )
    same(import_model(tmp_path / "x"), net)


Q7_CASES: dict[str, dict[str, Any]] = {
    "mnist-like": {},
    "four convolutions, two strided": {
        "image": (3, 32, 32),
        "stem": ((3, 1, 4), (3, 1, 4), (3, 2, 5), (3, 2, 5)),
        "primary": (3, 2, 4, 3),
    },
    "two channels": {"image": (2, 32, 32), "classes": 3, "iterations": 2},
    "not square": {"image": (1, 20, 30), "stem": ((5, 2, 3), (3, 1, 4)), "primary": (3, 1, 2, 4)},
    "fused activation": {"fused_relu": True, "iterations": 1},
    "no stem": {"image": (1, 16, 16), "stem": ()},
}


@pytest.mark.parametrize("case", Q7_CASES)
def test_q7_models(case: str, tmp_path: Path) -> None:
    net = q7_capsnet(**Q7_CASES[case])
    model = import_model(write_keras(tmp_path / "x.h5", net))
    assert model.config.image == net.image
    assert "digit.bias" not in dict(model.named_parameters())
    same(model, net)


@pytest.mark.parametrize(
    "case", ["mnist-like", "four convolutions, two strided", "fused activation"], ids=lambda case: case[:8]
)
def test_q7_weights_alone(case: str, tmp_path: Path) -> None:
    net = q7_capsnet(**{**Q7_CASES[case], "iterations": 3})
    model = import_model(write_keras(tmp_path / "x.h5", net, config=False))
    assert model.config.image == net.image
    same(model, net)


def test_q7_weights_alone_of_other_sizes_need_the_size(tmp_path: Path) -> None:
    net = q7_capsnet((1, 20, 32), ((5, 2, 3), (3, 1, 4)), (3, 1, 2, 4))
    path = write_keras(tmp_path / "x.h5", net, config=False)
    with pytest.raises(ModelError, match=r"do not form a square map; give the images' size \(image_size\)"):
        import_model(path)
    same(import_model(path, (20, 32)), net)


def test_q7_decoder_is_left_out(tmp_path: Path) -> None:
    net = q7_capsnet()
    extra = {"decoder/dense/kernel:0": np.zeros((30, 8), np.float32), "decoder/dense/bias:0": np.zeros(8, np.float32)}
    net.config["config"]["layers"].append({"class_name": "Sequential", "config": {"name": "decoder", "layers": []}})
    same(import_model(write_keras(tmp_path / "x.h5", net, extra=extra)), net)
    same(import_model(write_keras(tmp_path / "y.h5", net, extra=extra, config=False)), net)


def test_q7_primary_capsules_without_bias(tmp_path: Path) -> None:
    net = q7_capsnet()
    name = "primary_capsule/primary_capsule/primarycap_conv2d/bias:0"
    net.weights[name][:] = 0
    del net.weights[name]
    model = import_model(write_keras(tmp_path / "x.h5", net))
    assert "primary.bias" not in dict(model.named_parameters())


def test_detection_is_by_content(tmp_path: Path) -> None:
    assert detect(save_torch(tmp_path / "a.h5", shallow_capsnet().state)).name == "Q-CapsNets"
    assert detect(write_keras(tmp_path / "b.pt", q7_capsnet())).name == "Q7-CapsNets"


def test_registering_a_format_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="Q-CapsNets is registered already"):
        FORMATS.add("Q-CapsNets", FORMATS["Q-CapsNets"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["shallow_fmnist.pt", "deep_cifar10.pt", "q7_mnist.h5"])
def test_reference_outputs(name: str, shared: Path) -> None:
    model = import_model(shared / "models" / name)
    reference = np.load(shared / "models" / f"{name.split('.')[0]}.reference.npz")
    with torch.no_grad():
        output = model(torch.from_numpy(reference["images"]).float() / 255)
    expected = torch.from_numpy(reference["output"])
    output = lengths(output) if expected.ndim == 2 else output
    assert float((output - expected).abs().max()) < 1e-4


def test_the_small_networks_are_what_they_say() -> None:
    """The references of this file produce capsules shorter than one, different for different images."""
    for net in (shallow_capsnet(), deep_caps()):
        assert isinstance(net, Foreign)
        out = net.forward(torch.rand(2, *net.image))
        assert float(out.norm(dim=-1).max()) < 1
        assert not torch.allclose(out[0], out[1], atol=1e-4)
