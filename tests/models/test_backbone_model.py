"""Capsules on CNN trunks: torchvision's own numbers, settings, freezing, pretrained weights."""

import copy
import logging
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.models.architectures import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from caplet.models.backbone import BackboneCaps, backbone_caps
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers.pretrained import load_pretrained, read_trunk
from caplet.models.registry import build, named_model
from caplet.nn.conv import ConvNorm

WITH_TORCHVISION = [name for name, entry in ARCHITECTURES.items() if entry.torchvision is not None]


def features(network: nn.Module, images: Tensor) -> Tensor:
    """torchvision's last feature map."""
    if hasattr(network, "features"):
        return network.features(images)
    for name, child in network.named_children():
        if name == "avgpool":
            return images
        images = child(images)
    raise AssertionError("no average pool")


def last_map(model: BackboneCaps, images: Tensor) -> Tensor:
    state: tuple[Tensor, ...] = (images,)
    for stage in model.stages()[:-2]:
        state = stage.run(state)
    return state[0]


def lively(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and factors of their own, so that nothing can be mixed up."""
    draws = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.7, 1.3),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.6, 1.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=draws)
    return network.eval()


@pytest.mark.parametrize("name", WITH_TORCHVISION)
def test_the_trunk_is_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    theirs = lively(torchvision.models.get_model(ARCHITECTURES[name].torchvision, weights=None))
    model = backbone_caps(name, image=(3, 64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    read_trunk(model, theirs.state_dict(), "test")
    # In float64, as rounding grows through tens of layers by a factor that no constant bounds.
    model.double()
    theirs.double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)

    def normalised(images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (images - mean) / std

    model.eval()
    with torch.no_grad():
        ours, expected = last_map(model, images), features(theirs, normalised(images))
        assert ours.shape == expected.shape
        assert expected.std() > 0
        assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-10
        model.train()
        theirs.train()
        trained, expected = last_map(model, images), features(theirs, normalised(images))
        assert float((trained - expected).abs().max() / expected.abs().max()) < 1e-6
        assert float((trained - ours).abs().max()) > 1e-2


def test_mobilenetv1_is_the_papers() -> None:
    """28 layers with the average pool and classifier left out: 27 convolutions; 3.2 M parameters without classifier."""
    model = backbone_caps("mobilenetv1", image=(3, 32, 32))
    convs = [layer for layer in model.layers() if isinstance(layer, ConvNorm)]
    assert len(convs) == 27
    assert sum(p.numel() for p in model.trunk.parameters()) == 3_206_976
    assert [layer.groups for layer in convs[1::2]] == [layer.in_shape[0] for layer in convs[1::2]]
    assert model.config.primary_types == 1024 // 8


def test_primary_capsules_cover_the_whole_map() -> None:
    model = backbone_caps("resnet18", image=(3, 64, 64), width=0.125)
    assert model.primary.kernel == 2
    assert model.primary.out_shape == (8, 8, 1, 1)
    assert model.digit.in_capsules == 8
    assert model.digit.out_shape == (10, 16)
    assert model.config.iterations == 3


def test_save_and_load(tmp_path: Path) -> None:
    model = small("mobilenetv3-small").eval()
    save_model(model, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    images = torch.rand(2, *model.config.image)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_a_copy_uses_its_own_layers() -> None:
    model = small("resnet18").eval()
    twin = copy.deepcopy(model)
    own = {id(module) for module in twin.modules()}
    assert all(id(layer) in own for stage in twin.stages() for layer in stage.layers)


def small(name: str) -> BackboneCaps:
    torch.manual_seed(1)
    return backbone_caps(name, image=(3, 32, 32), width=0.125, class_dim=4)


def trunk_state(model: BackboneCaps) -> list[Tensor]:
    return [tensor.clone() for tensor in model.trunk.state_dict().values()]


def test_frozen_means_batch_norm_too() -> None:
    model = small("resnet18")
    model.freeze_backbone()
    model.train()
    before = trunk_state(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    primary = model.primary.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    assert model.primary.training
    assert not torch.equal(primary, model.primary.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk_state(model), strict=True))


def test_unfrozen_batch_norm_learns() -> None:
    model = small("resnet18").train()
    before = trunk_state(model)
    model(torch.rand(4, 3, 32, 32))
    assert not all(torch.equal(a, b) for a, b in zip(before, trunk_state(model), strict=True))


def test_only_a_backbone_can_be_frozen_or_pretrained() -> None:
    plain = build("shallow", named_model("shallow-digits").config)
    with pytest.raises(ModelError, match="no backbone to freeze"):
        plain.freeze_backbone()
    with pytest.raises(ModelError, match="no backbone to load"):
        load_pretrained(plain, "torchvision")


def test_pretrained_from_a_file_and_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = lively(torchvision.models.resnet18(weights=None))
    model = backbone_caps("resnet18", image=(3, 32, 32))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    assert load_pretrained(model, tmp_path / "weights.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    second = backbone_caps("resnet18", image=(3, 32, 32))
    assert load_pretrained(second, "torchvision")
    assert all(torch.equal(a, b) for a, b in zip(trunk_state(model), trunk_state(second), strict=True))


def test_without_cached_weights_it_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = small("resnet18")
    before = trunk_state(model)
    with caplog.at_level(logging.WARNING):
        assert not load_pretrained(model, "torchvision")
    assert "training starts from random ones" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, trunk_state(model), strict=True))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(ModelError, match=r"layer features1.depthwise|tensor conv1.weight has shape"):
        read_trunk(backbone_caps("mobilenetv2"), state, "test")
    with pytest.raises(ModelError, match="has shape"):
        read_trunk(small("resnet18"), state, "test")
    shorter = {key: value for key, value in state.items() if not key.startswith("layer4.1")}
    with pytest.raises(ModelError, match=r"layer layer4_1.conv1 needs weight, but nothing is left"):
        read_trunk(backbone_caps("resnet18"), shorter, "test")
    with pytest.raises(ModelError, match="no place for: extra"):
        read_trunk(backbone_caps("resnet18"), {**state, "extra.weight": torch.zeros(1)}, "test")
    state["bn1.bias"][0] = float("nan")
    with pytest.raises(ModelError, match=r"1 of 64 values of bn1.bias"):
        read_trunk(backbone_caps("resnet18"), state, "test")
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(ModelError, match="not a PyTorch file"):
        load_pretrained(small("resnet18"), tmp_path / "noise")
    with pytest.raises(ModelError, match="torchvision has no weights for it"):
        load_pretrained(small("mobilenetv1"), "torchvision")


def test_a_trunk_ends_with_a_block_where_asked_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = lively(torchvision.models.resnet18(weights=None)).state_dict()
    whole, cut = (backbone_caps(name, image=(3, 32, 32)).eval() for name in ("resnet18", "resnet18@layer2_1"))
    for model in (whole, cut):
        read_trunk(model, state, "test")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        middle: tuple[Tensor, ...] = (images,)
        for stage in whole.stages()[: len(cut.stages()) - 2]:
            middle = stage.run(middle)
        assert torch.equal(last_map(cut, images), middle[0])
    assert cut.primary.weight.shape[1:] == (128, 4, 4)
    save_model(cut, tmp_path / "cut.safetensors")
    assert load_model(tmp_path / "cut.safetensors").config == cut.config
    with pytest.raises(ModelError, match="unknown block of backbone resnet18 'layer2_2'; did you mean 'layer2_1'"):
        backbone_caps("resnet18@layer2_2")


CONV = {"kind": "conv", "name": "conv", "channels": 4, "padding": 1}


def with_blocks(*blocks: dict[str, object], image: tuple[int, int, int] = (3, 8, 8), **trunk: object) -> CapsNet:
    return build("backbone", {"image": image, "trunk": {"blocks": blocks, **trunk}, "primary_types": 2})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{**CONV, "source": "nowhere"}], "it reads 'nowhere', none of its block's in"),
        ([CONV, CONV], "another layer of that name"),
        ([{**CONV, "depthwise": True}], "depthwise from 3 to 4 channels"),
        ([CONV, {"kind": "sum", "name": "sum", "source": "conv"}], "the rule is one shape"),
        ([{**CONV, "kernel": 12}], "layer a.conv: its 12x12 kernel does not fit"),
        ([{"kind": "max_pool", "name": "pool", "kernel": 2, "padding": 2}], "at most half of the kernel"),
        ([], "setting 'trunk.blocks.0.nodes'"),
        ([{**CONV, "kind": "transformer"}], "setting 'trunk.blocks.0.nodes.0'"),
        ([{**CONV, "name": "a.b"}], "setting 'trunk.blocks.0.nodes.0.conv.name'"),
    ],
)
def test_trunks_that_do_not_fit_are_named(nodes: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        with_blocks({"name": "a", "nodes": nodes})


def test_other_settings_that_do_not_fit() -> None:
    block = {"name": "a", "nodes": [CONV]}
    assert with_blocks(block).config.classes == 10
    with pytest.raises(ModelError, match=r"last map is 8x6: use square images"):
        with_blocks(block, image=(3, 8, 6))
    with pytest.raises(ModelError, match="two parts are named 'a'"):
        with_blocks(block, block)
    with pytest.raises(ModelError, match="two parts are named 'digit'"):
        with_blocks({"name": "digit", "nodes": [CONV]})
    with pytest.raises(ModelError, match=r"mean .* for 1 channels"):
        with_blocks(block, image=(1, 8, 8), mean=(0.5, 0.5, 0.5))
    with pytest.raises(ModelError, match="unknown backbone 'resnet81'; did you mean 'resnet18'"):
        backbone_caps("resnet81")
    with pytest.raises(ModelError, match="width 0"):
        backbone_caps("resnet18", width=0)
