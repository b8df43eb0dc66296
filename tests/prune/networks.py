"""Tiny networks of every family with living signals, and images for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from caplet.data.imageset import to_float
from caplet.models.backbone import BackboneCapsConfig
from caplet.models.base import CapsNet, ModelConfig
from caplet.models.deep import Block, DeepCapsConfig
from caplet.models.registry import FAMILIES
from caplet.models.shallow import ShallowCapsConfig, StemConv
from caplet.models.trunk import ConvNode, GateNode, PoolNode, SumNode, TrunkBlock, TrunkSettings
from caplet.nn.cnn import Activation
from caplet.train.initialise import initialise

_LINEAR, _RELU6 = Activation.NONE, Activation.RELU6
CONFIGS: dict[str, ModelConfig] = {
    "backbone": BackboneCapsConfig(
        image=(3, 12, 12),
        classes=3,
        trunk=TrunkSettings(
            blocks=(
                TrunkBlock(
                    name="stem",
                    nodes=(
                        ConvNode(name="conv", channels=6, stride=2, padding=1),
                        PoolNode(name="pool", source="conv", stride=1),
                    ),
                ),
                TrunkBlock(
                    name="layer1",
                    nodes=(
                        ConvNode(name="conv1", channels=5, padding=1),
                        ConvNode(name="conv2", source="conv1", channels=6, padding=1, activation=_LINEAR),
                        SumNode(name="sum", source="conv2"),
                    ),
                ),
                TrunkBlock(
                    name="layer2",
                    nodes=(
                        ConvNode(name="conv1", channels=8, stride=2, padding=1),
                        ConvNode(name="conv2", source="conv1", channels=7, padding=1, activation=_LINEAR),
                        ConvNode(name="down", channels=7, kernel=1, stride=2, activation=_LINEAR),
                        SumNode(name="sum", source="conv2", other="down"),
                    ),
                ),
                TrunkBlock(
                    name="layer3",
                    nodes=(
                        ConvNode(name="conv1", channels=4, padding=1),
                        ConvNode(name="conv2", source="conv1", channels=7, padding=1, activation=_LINEAR),
                        SumNode(name="sum", source="conv2"),
                    ),
                ),
            )
        ),
        primary_types=4,
        primary_dim=4,
        class_dim=5,
    ),
    "backbone-mobile": BackboneCapsConfig(
        image=(1, 9, 9),
        classes=3,
        trunk=TrunkSettings(
            blocks=(
                TrunkBlock(name="stem", nodes=(ConvNode(name="conv", channels=5, stride=2, padding=1),)),
                TrunkBlock(
                    name="features1",
                    nodes=(
                        ConvNode(name="expand", channels=8, kernel=1, activation=_RELU6),
                        ConvNode(name="depthwise", source="expand", channels=8, padding=1, depthwise=True),
                        GateNode(name="gate", source="depthwise", hidden=3),
                        ConvNode(name="project", source="gate", channels=5, kernel=1, activation=_LINEAR),
                        SumNode(name="sum", source="project", relu=False),
                    ),
                ),
            ),
        ),
        primary_types=3,
        primary_dim=4,
        class_dim=4,
        iterations=2,
    ),
    "shallow": ShallowCapsConfig(
        image=(1, 11, 9),
        classes=4,
        stem=(StemConv(kernel=3, channels=5),),
        primary_types=3,
        primary_dim=5,
        primary_kernel=3,
        class_dim=3,
    ),
    "shallow-q7": ShallowCapsConfig(
        image=(2, 13, 12),
        classes=3,
        stem=(StemConv(kernel=3, stride=2, channels=6), StemConv(kernel=2, channels=7)),
        primary_types=4,
        primary_dim=4,
        primary_kernel=3,
        primary_stride=1,
        class_dim=6,
        class_bias=False,
        primary_bias=False,
        kept=(0, 1, 3, 4, 6, 7, 9, 10, 11, 15, 21, 23),
    ),
    "deep": DeepCapsConfig(
        image=(1, 9, 7),
        classes=3,
        channels=5,
        blocks=(Block(types=3, dim=3), Block(types=4, dim=2), Block(types=3, dim=4), Block(types=4, dim=4, stride=1)),
        class_dim=5,
    ),
    "deep-kept": DeepCapsConfig(
        image=(1, 8, 8),
        classes=3,
        channels=3,
        blocks=(Block(types=2, dim=2), Block(types=2, dim=2), Block(types=2, dim=3, stride=1), Block(types=3, dim=3)),
        class_dim=4,
        skip_iterations=2,
        kept=(1, 6, 7, 8, 10),
    ),
}


@cache
def living(name: str) -> tuple[CapsNet, Tensor]:
    """The model of ``CONFIGS[name]`` in evaluation mode, biases and batch norm that matter, and 12 uint8 images."""
    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = FAMILIES[name.split("-")[0]].model(config)
        images = torch.randint(0, 256, (12, *config.image), dtype=torch.uint8)
        initialise(model, to_float(images))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "bias" in key:
                    parameter.add_(0.05 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.7, 1.4)
                    module.running_mean.uniform_(-0.2, 0.4)
                    module.running_var.uniform_(0.5, 2.0)
    return model.eval(), images
