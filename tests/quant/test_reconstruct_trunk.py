"""Reconstruction of CNN trunks: folded batch norms, depthwise convolutions, every activation."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.lower import lower
from caplet.models.backbone import BackboneCapsConfig
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.models.trunk import ConvNode, SumNode, TrunkBlock, TrunkSettings
from caplet.nn.conv import Activation, ConvNorm
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.reconstruct import reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts

TRUNK = TrunkSettings(
    blocks=(
        TrunkBlock(name="stem", nodes=(ConvNode(name="conv", channels=8, padding=1, activation=Activation.RELU6),)),
        TrunkBlock(
            name="layer1",
            nodes=(
                ConvNode(name="depthwise", channels=8, padding=1, depthwise=True, stride=2),
                ConvNode(name="project", source="depthwise", channels=6, kernel=1, activation=Activation.NONE),
                ConvNode(name="down", channels=6, kernel=1, stride=2, activation=Activation.NONE),
                SumNode(name="sum", source="project", other="down"),
            ),
        ),
    )
)
CONFIG = BackboneCapsConfig(image=(3, 12, 12), classes=3, trunk=TRUNK, primary_types=3, primary_dim=4, class_dim=4)


@dataclass(frozen=True)
class Trunk:
    """A small backbone model with batch norms that do something."""

    model: CapsNet
    images: Tensor
    plan: QuantPlan


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    model = build("backbone", CONFIG)
    images = torch.randint(0, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=generator)
    for layer in model.layers():
        if isinstance(layer, ConvNorm):
            layer.norm.weight.data.uniform_(0.5, 2.0, generator=generator)
            layer.norm.bias.data.normal_(0, 0.3, generator=generator)
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(to_float(images))
    model.eval()
    calibration = calibrate(model, images)
    bits = {key: 3 if spec.name == "weight" else 8 for key, spec in model.points().items()}
    return Trunk(model, images, QuantPlan({key: calibration.format(key, width) for key, width in bits.items()}))


def test_a_folded_model_computes_the_same(trunk: Trunk) -> None:
    copied = folded(trunk.model)
    with torch.no_grad():
        x = to_float(trunk.images)
        torch.testing.assert_close(copied(x), trunk.model(x), rtol=1e-4, atol=1e-5)
    for layer, original in zip(copied.layers(), trunk.model.layers(), strict=True):
        if isinstance(layer, ConvNorm):
            assert isinstance(original, ConvNorm)
            assert torch.equal(layer.weight, original.folded()[0])
            weight, bias = layer.folded()
            assert torch.equal(weight, layer.weight)
            assert torch.equal(bias, original.folded()[1])
            assert not torch.equal(layer.weight, original.weight)


@pytest.mark.parametrize("parts", ["bias", "rounding", "channels,bias,rounding", "exponents,bias,rounding"])
def test_every_block_comes_nearer_or_stays(trunk: Trunk, parts: str) -> None:
    settings = ReconstructSettings(parse_parts(parts), tuning_images=16, tuning_sweeps=1)
    found = reconstruct(trunk.model, trunk.plan, trunk.images, settings)
    names = [block.layer for block in found.blocks]
    assert names == ["stem.conv", "layer1.depthwise", "layer1.project", "layer1.down", "primary", "digit"]
    assert all(block.after <= block.before for block in found.blocks)
    assert sum(block.after for block in found.blocks) < sum(block.before for block in found.blocks)
    if "rounding" in parts:
        assert found.blocks[1].changed > 0
        assert found.blocks[1].after < found.blocks[1].before


def test_lowering_gives_exactly_the_chosen_codes(trunk: Trunk) -> None:
    settings = ReconstructSettings(parse_parts("bias,rounding"))
    found = reconstruct(trunk.model, trunk.plan, trunk.images, settings)
    program = lower(found.model, found.plan)
    layers = {layer.name: layer for layer in found.model.layers()}
    checked = []
    for op in program.ops:
        for constant in op.constants:
            layer, _, name = constant.key.rpartition(".")
            owner = layers.get(layer)
            if not isinstance(owner, ConvNorm):
                continue
            chosen = (owner.weight.permute(0, 2, 3, 1) if name == "weight" else owner.norm.bias).detach().double()
            values = torch.from_numpy(constant.format.decode(constant.codes))
            assert torch.equal(values.reshape(chosen.shape), chosen), constant.key
            checked.append(constant.key)
    assert len(checked) == 8
