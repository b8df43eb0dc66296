"""Tiny networks of every family and of odd sizes, with signals in every layer; plans of mixed widths for them."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor, nn

from caplet.data.imageset import to_float
from caplet.fixed import ChannelFormat, PlanFormat, Rounding
from caplet.models.backbone import BackboneCaps, BackboneCapsConfig
from caplet.models.base import CapsNet, ModelConfig
from caplet.models.deep import BlockConfig, DeepCapsConfig
from caplet.models.registry import FAMILIES
from caplet.models.shallow import ShallowCapsConfig, StemConv
from caplet.models.trunk import ConvNode, GateNode, PoolNode, SumNode, TrunkBlock, TrunkSettings
from caplet.nn.conv import Activation
from caplet.nn.points import Role, Storage
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan, output_axis
from caplet.train.initialise import initialise

_LINEAR, _RELU6 = Activation.NONE, Activation.RELU6
CONFIGS: dict[str, ModelConfig] = {
    "shallow": ShallowCapsConfig(
        image=(1, 11, 9),
        classes=4,
        stem=(StemConv(kernel=3, channels=5),),
        primary_types=3,
        primary_dim=5,
        primary_kernel=3,
        class_dim=3,
        iterations=2,
    ),
    "shallow-two-stems": ShallowCapsConfig(
        image=(2, 13, 12),
        classes=3,
        stem=(StemConv(kernel=3, stride=2, channels=6), StemConv(kernel=2, channels=7)),
        primary_types=4,
        primary_dim=4,
        primary_kernel=3,
        primary_stride=1,
        class_dim=6,
        primary_bias=False,
        class_bias=False,
        kept=(0, 1, 3, 4, 6, 7, 9, 10, 11, 15, 21, 23),
    ),
    "shallow-no-stem": ShallowCapsConfig(
        image=(2, 9, 10),
        classes=5,
        stem=(),
        primary_types=4,
        primary_dim=2,
        primary_kernel=4,
        primary_stride=3,
        class_dim=4,
        iterations=1,
        class_bias=False,
    ),
    "shallow-same": ShallowCapsConfig(
        image=(2, 12, 10),
        classes=4,
        stem=(
            StemConv(kernel=3, stride=2, channels=6, padding="same", batch_norm=1e-3),
            StemConv(kernel=2, channels=5, padding="same", batch_norm=1e-5),
            StemConv(kernel=3, channels=5, padding=1),
        ),
        primary_types=3,
        primary_dim=4,
        primary_kernel=4,
        primary_padding="same",
        class_dim=3,
        class_bias=False,
    ),
    "shallow-leaky": ShallowCapsConfig(
        image=(3, 12, 11),
        classes=4,
        stem=(
            StemConv(kernel=3, channels=6, slope=0.3),
            StemConv(kernel=3, stride=2, channels=5, batch_norm=1e-3, slope=0.01),
        ),
        primary_types=3,
        primary_dim=4,
        primary_kernel=3,
        class_dim=3,
    ),
    "shallow-flat": ShallowCapsConfig(
        image=(1, 10, 9),
        classes=4,
        stem=(StemConv(kernel=3, channels=6),),
        primary_types=3,
        primary_dim=4,
        primary_kernel=3,
        primary_stride=1,
        primary_flat=True,
        class_dim=3,
    ),
    "deep": DeepCapsConfig(
        image=(1, 9, 7),
        classes=3,
        channels=5,
        blocks=(
            BlockConfig(types=3, dim=3),
            BlockConfig(types=4, dim=2),
            BlockConfig(types=2, dim=4),
            BlockConfig(types=4, dim=4, stride=1),
        ),
        class_dim=5,
        skip_iterations=2,
    ),
    "deep-kept": DeepCapsConfig(
        image=(1, 8, 8),
        classes=3,
        channels=3,
        blocks=(
            BlockConfig(types=2, dim=2),
            BlockConfig(types=2, dim=2),
            BlockConfig(types=2, dim=3, stride=1),
            BlockConfig(types=3, dim=3),
        ),
        class_dim=4,
        skip_iterations=2,
        kept=(1, 6, 7, 8, 10),
    ),
    "deep-one-iteration": DeepCapsConfig(
        image=(3, 8, 8),
        classes=4,
        channels=4,
        blocks=(
            BlockConfig(types=2, dim=2, stride=1),
            BlockConfig(types=2, dim=4),
            BlockConfig(types=3, dim=3),
            BlockConfig(types=2, dim=3),
        ),
        class_dim=3,
        skip_iterations=1,
        iterations=2,
    ),
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
            ),
            mean=(0.4, 0.5, 0.6),
            std=(0.25, 0.2, 0.3),
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
                TrunkBlock(
                    name="stem", nodes=(ConvNode(name="conv", channels=4, stride=2, padding=1, activation=_RELU6),)
                ),
                TrunkBlock(
                    name="features1",
                    nodes=(
                        ConvNode(name="expand", channels=8, kernel=1, activation=_RELU6),
                        ConvNode(name="depthwise", source="expand", channels=8, depthwise=True, padding=1),
                        ConvNode(name="project", source="depthwise", channels=4, kernel=1, activation=_LINEAR),
                        SumNode(name="sum", source="project", relu=False),
                    ),
                ),
                TrunkBlock(name="last", nodes=(ConvNode(name="conv", channels=8, stride=2),)),
            )
        ),
        primary_types=4,
        primary_dim=3,
        class_dim=3,
        iterations=2,
    ),
    "backbone-same": BackboneCapsConfig(
        image=(3, 10, 10),
        classes=3,
        trunk=TrunkSettings(
            blocks=(
                TrunkBlock(
                    name="stem",
                    nodes=(ConvNode(name="conv", channels=5, stride=2, padding="same", activation=_RELU6),),
                ),
                TrunkBlock(
                    name="features1",
                    nodes=(
                        ConvNode(name="expand", channels=7, kernel=1, activation=_RELU6),
                        ConvNode(name="same", source="expand", channels=7, kernel=4, padding="same", depthwise=True),
                        ConvNode(
                            name="project", source="same", channels=5, kernel=2, padding="same", activation=_LINEAR
                        ),
                        SumNode(name="sum", source="project", relu=False),
                    ),
                ),
                TrunkBlock(name="last", nodes=(ConvNode(name="conv", channels=6, kernel=2, stride=2, padding="same"),)),
            ),
            mean=(0.4, 0.5, 0.6),
            std=(0.25, 0.2, 0.3),
        ),
        primary_types=4,
        primary_dim=3,
        class_dim=4,
        iterations=2,
    ),
    "backbone-gated": BackboneCapsConfig(
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
}
INTEGER = tuple(name for name in CONFIGS if name != "backbone-gated")
"""Networks that have an integer form: a squeeze-and-excite gate has none."""
PRUNED = (
    "shallow",
    "shallow-two-stems",
    "shallow-same",
    "shallow-leaky",
    "shallow-flat",
    "deep",
    "deep-kept",
    "backbone",
    "backbone-same",
    "backbone-gated",
)
"""Networks that show every rule of pruning."""


@dataclass(frozen=True, eq=False)
class Tiny:
    """A tiny model in evaluation mode and 24 uint8 images."""

    model: CapsNet
    images: Tensor

    @cached_property
    def calibration(self) -> Calibration:
        """The model's calibration on its images."""
        return calibrate(self.model, self.images)


@cache
def tiny(name: str) -> Tiny:
    """The model of ``CONFIGS[name]``: capsules of useful length in every layer, biases and batch norm that matter."""
    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = FAMILIES[name.split("-")[0]](config)
        images = torch.randint(0, 256, (24, *config.image), dtype=torch.uint8)
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
        if isinstance(model, BackboneCaps):  # useful lengths again, on the trunk as it is now
            model.freeze_backbone()
            initialise(model, to_float(images))
    model.eval()
    return Tiny(model, images)


def model_and_images(name: str) -> tuple[CapsNet, Tensor]:
    """The model of :func:`tiny` and 12 of its images."""
    return tiny(name).model, tiny(name).images[:12]


def mixed_plan(
    name: str,
    low: int,
    high: int,
    rounding: Rounding = Rounding.NEAREST,
    *,
    log2_weights: bool = False,
    channels: bool = False,
    seed: int = 0,
) -> QuantPlan:
    """A plan in which every point has a width of its own from ``low`` to ``high`` (biases and votes at least 4).

    channels: weights have an exponent per output channel, one off the tensor's own at most.
    """
    made = tiny(name)
    rng = np.random.default_rng(seed)
    rule = FormatRule(log2_weights=log2_weights)
    points: dict[str, PlanFormat] = {}
    for key, spec in made.model.points().items():
        least = low if spec.storage is Storage.FLASH and spec.role is Role.WEIGHT else max(low, 4)
        width = int(rng.integers(least, high + 1))
        points[key] = made.calibration.format(key, width, rule, rounding)
        if channels and spec.role is Role.WEIGHT:
            axis = output_axis(spec)
            shifts = tuple(rng.integers(0, 3, spec.shape[axis]).tolist())
            points[key] = ChannelFormat(width, points[key].frac_bits - 1, True, shifts, axis)
    return QuantPlan(points, rounding, seed=seed)
