"""timm's networks as trunks: timm's own numbers, parts that are refused, weights, the way to integers."""

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caplet.errors import ModelError, ToolMissing
from caplet.lower import lower
from caplet.models.backbone import BackboneCaps, backbone_caps
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers.pretrained import load_pretrained, read_trunk
from caplet.models.registry import build, named_model
from caplet.models.timm_trunk import timm_trunk
from caplet.nn.conv import Activation, ConvNorm
from caplet.program.interpreter import run
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'caplet[timm]'")


def lively(name: str) -> nn.Module:
    """timm's network with random weights, and batch norms with statistics and factors of their own."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.6, 1.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high)
    return network.eval()


def last_map(model: BackboneCaps, images: Tensor) -> Tensor:
    state: tuple[Tensor, ...] = (images,)
    with torch.no_grad():
        for stage in model.stages()[:-2]:
            state = stage.run(state)
    return state[0]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 32),
        ("mobilenetv1_100", 32),
        ("mobilenetv3_small_050", 32),
        ("tf_efficientnet_lite0", 38),  # padded as TensorFlow does, by each map's size: even sides and odd ones
        ("tf_mobilenetv3_small_minimal_100", 45),
    ],
)
def test_the_trunk_is_timms(name: str, side: int) -> None:
    theirs = lively(name)
    model = backbone_caps(f"timm/{name}", image=(3, side, side)).eval()
    read_trunk(model, theirs.state_dict(), "test")
    trunk = model.config.trunk
    assert trunk.mean is not None
    assert trunk.std is not None
    # In float64, as rounding grows through tens of layers by a factor that no constant bounds.
    model.double()
    theirs.double()
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (trunk.mean, trunk.std))
    normalised = (images - mean) / std
    with torch.no_grad():
        expected = theirs.forward_features(normalised)  # type: ignore[operator]
    found = last_map(model, images)
    assert found.shape == expected.shape
    assert expected.std() > 0
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10


def test_names_and_blocks_follow_timms_modules() -> None:
    trunk = timm_trunk("resnet18")
    names = [block.name for block in trunk.settings.blocks]
    assert names[:3] == ["stem", "layer1_0", "layer1_1"]
    assert len(names) == 9
    assert [node.name for node in trunk.settings.blocks[3].nodes] == ["conv1", "conv2", "downsample_0", "sum"]
    assert trunk.modules["layer2_0.downsample_0"] == ("layer2.0.downsample.0", "layer2.0.downsample.1")
    assert trunk.repository == "timm/resnet18.a1_in1k"
    assert trunk.settings.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "part", "what"),
    [
        ("resnet18d", "layer2.0.downsample.0", "AvgPool2d"),
        ("efficientnet_b0", "bn1.act", "SiLU"),
        ("regnetx_002", "s1.b1.conv2.conv", "convolution in 3 groups"),
        ("tf_efficientnet_b0", "bn1.act", "SiLU"),
        ("convnext_atto", "stem.0", "convolution with a bias"),
        ("densenet121", "cat", "operation cat"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, part: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"timm/{name}: its part {part} is .*{what}"):
        timm_trunk(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "no network of that name; did you mean 'resnet"),
        ("resnet18.nosuch", "cannot build it: Invalid pretrained tag"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        timm_trunk(name)


def test_widths_are_in_the_names() -> None:
    with pytest.raises(ModelError, match=r"width 0\.5; timm's networks have the widths that their names say"):
        backbone_caps("timm/resnet18", width=0.5)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ToolMissing, match=r"pip install 'caplet\[timm\]'"):
        named_model("timm/resnet18")


def test_a_checkpoint_needs_no_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = named_model("timm/mobilenetv3_small_050")
    model = build(named.family, named.config).eval()
    save_model(model, tmp_path / "a.safetensors")

    monkeypatch.setitem(sys.modules, "timm", None)
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_pretrained_files_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from safetensors.torch import save_file

    theirs = lively("mobilenetv3_small_050").state_dict()
    model = backbone_caps("timm/mobilenetv3_small_050", image=(3, 32, 32))
    empty = copy.deepcopy(model)
    torch.save(theirs, tmp_path / "a.pth")
    save_file(theirs, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        again = copy.deepcopy(empty)
        assert load_pretrained(again, tmp_path / name)
        convs = [layer for layer in again.layers() if isinstance(layer, ConvNorm)]
        assert torch.equal(convs[0].weight, theirs["conv_stem.weight"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    with caplog.at_level(logging.WARNING):
        assert not load_pretrained(model, "timm")
    assert "training starts from random ones" in caplog.text
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, name: str(tmp_path / "a.safetensors")
    )
    assert load_pretrained(model, "timm")
    del theirs["blocks.0.0.se.conv_reduce.weight"]
    with pytest.raises(
        ModelError, match=r"test: layer blocks_0_0.se needs weight, bias, but blocks.0.0.se.conv_reduce has bias"
    ):
        read_trunk(model, theirs, "test")
    with pytest.raises(ModelError, match="not a network of timm's"):
        load_pretrained(backbone_caps("resnet18", image=(3, 32, 32), width=0.125), "timm")


def test_to_integers() -> None:
    """ReLU6, depthwise convolutions and sums without ReLU, lowered with random weights: equal to fake-quant."""
    theirs = lively("mobilenetv2_035")
    model = backbone_caps("timm/mobilenetv2_035", image=(3, 32, 32), primary_types=4, class_dim=4).eval()
    read_trunk(model, theirs.state_dict(), "test")
    convs = [layer for layer in model.layers() if isinstance(layer, ConvNorm)]
    assert {layer.activation for layer in convs} == {Activation.RELU6, Activation.NONE}
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    calibration, rule = calibrate(model, images), FormatRule()
    plan = QuantPlan({key: calibration.format(key, 8, rule) for key in model.points()})
    program = lower(model, plan)
    assert {"conv2d", "add", "routing"} <= {op.kind for op in program.ops}
    assert any(getattr(op, "groups", 1) > 1 for op in program.ops)
    evaluator = Evaluator(model, images, torch.zeros(len(images), dtype=torch.int64))
    zeros = int((run(program, images.numpy()).predictions == 0).sum())
    assert abs(evaluator.evaluate(plan).correct - zeros) <= 1  # float sums may differ in the last place
