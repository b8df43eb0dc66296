"""The CNN trunks that capsules are put on: ResNets, MobileNetV1, V2 and V3, each up to its last feature map.

Nodes are in the order in which torchvision's modules hold their parameters, so that its state dicts can be read in
order (:mod:`caplet.models.importers.pretrained`). ``width`` scales every channel count; 1.0 is the published network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caplet.models.trunk import ConvNode, GateNode, Node, PoolNode, SumNode, TrunkBlock, TrunkSettings
from caplet.nn.conv import Activation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BN_EPS, _V3_EPS = 1e-5, 1e-3


@dataclass(frozen=True)
class Architecture:
    """A trunk by name.

    Attributes:
        make: its settings for a width.
        torchvision: name of torchvision's model of the same trunk, None where there is none.
        about: one line.
    """

    make: Callable[[float], TrunkSettings]
    torchvision: str | None
    about: str


def scaled(channels: int, width: float) -> int:
    """``channels * width`` to the nearest multiple of 8 (at least 8), not more than a tenth below; 1.0 changes nothing.

    >>> scaled(64, 1.0), scaled(64, 0.25), scaled(24, 0.5), scaled(20, 1.0)
    (64, 16, 16, 20)
    """
    if width == 1.0:
        return channels
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def resnet(depths: tuple[int, int, int, int], *, bottleneck: bool) -> Callable[[float], TrunkSettings]:
    """A ResNet of He et al. 2016 (stride in a bottleneck's 3x3 convolution, as torchvision has it)."""

    def make(width: float) -> TrunkSettings:
        stem: tuple[Node, ...] = (
            ConvNode(name="conv1", channels=scaled(64, width), kernel=7, stride=2, padding=3),
            PoolNode(name="maxpool", source="conv1"),
        )
        blocks = [TrunkBlock(name="stem", nodes=stem)]
        before = scaled(64, width)
        for stage, depth in enumerate(depths):
            inner = scaled(64 << stage, width)
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                outer = 4 * inner if bottleneck else inner
                nodes = _bottleneck(inner, outer, stride) if bottleneck else _basic(inner, stride)
                skip = "in"
                if stride != 1 or before != outer:
                    nodes.append(
                        ConvNode(name="downsample", channels=outer, kernel=1, stride=stride, activation=Activation.NONE)
                    )
                    skip = "downsample"
                nodes.append(SumNode(name="sum", source="conv3" if bottleneck else "conv2", other=skip))
                blocks.append(TrunkBlock(name=f"layer{stage + 1}_{index}", nodes=tuple(nodes)))
                before = outer
        return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)

    return make


def _basic(channels: int, stride: int) -> list[Node]:
    return [
        ConvNode(name="conv1", channels=channels, stride=stride, padding=1),
        ConvNode(name="conv2", source="conv1", channels=channels, padding=1, activation=Activation.NONE),
    ]


def _bottleneck(inner: int, outer: int, stride: int) -> list[Node]:
    return [
        ConvNode(name="conv1", channels=inner, kernel=1),
        ConvNode(name="conv2", source="conv1", channels=inner, stride=stride, padding=1),
        ConvNode(name="conv3", source="conv2", channels=outer, kernel=1, activation=Activation.NONE),
    ]


def mobilenet_v1(width: float) -> TrunkSettings:
    """MobileNet of Howard et al. 2017: depthwise and pointwise convolutions, ReLU."""
    blocks = [_single("conv1", ConvNode(name="conv", channels=scaled(32, width), stride=2, padding=1))]
    before = scaled(32, width)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for index, (channels, stride) in enumerate(plan, start=2):
        nodes = (
            ConvNode(name="depthwise", channels=before, stride=stride, padding=1, depthwise=True),
            ConvNode(name="pointwise", source="depthwise", channels=scaled(channels, width), kernel=1),
        )
        blocks.append(TrunkBlock(name=f"conv{index}", nodes=nodes))
        before = scaled(channels, width)
    return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)


def mobilenet_v2(width: float) -> TrunkSettings:
    """MobileNetV2 of Sandler et al. 2018: inverted residuals, ReLU6."""
    relu6 = Activation.RELU6
    before = scaled(32, width)
    stem = ConvNode(name="conv", channels=before, stride=2, padding=1, activation=relu6)
    blocks = [_single("features0", stem)]
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    number = 1
    for expansion, channels, repeats, first in plan:
        for repeat in range(repeats):
            out, stride = scaled(channels, width), first if repeat == 0 else 1
            hidden = before * expansion
            nodes = _inverted(before, hidden, out, 3, stride, relu6, gate=None)
            blocks.append(TrunkBlock(name=f"features{number}", nodes=nodes))
            before, number = out, number + 1
    last = ConvNode(name="conv", channels=scaled(1280, width), kernel=1, activation=relu6)
    blocks.append(_single(f"features{number}", last))
    return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)


#: Kernel, hidden channels, output channels, gate, hardswish, stride of each block (Howard et al. 2019, tables 1 and 2).
_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def mobilenet_v3(plan: tuple[tuple[int, int, int, bool, bool, int], ...]) -> Callable[[float], TrunkSettings]:
    """MobileNetV3 of Howard et al. 2019: inverted residuals with gates, hardswish; float and fake-quant only."""

    def make(width: float) -> TrunkSettings:
        hard = Activation.HARDSWISH
        before = scaled(16, width)
        stem = ConvNode(name="conv", channels=before, stride=2, padding=1, activation=hard)
        blocks = [_single("features0", stem)]
        for number, (kernel, hidden, channels, gated, hardswish, stride) in enumerate(plan, start=1):
            inner, out = scaled(hidden, width), scaled(channels, width)
            activation = hard if hardswish else Activation.RELU
            gate = _gate_channels(inner) if gated else None
            nodes = _inverted(before, inner, out, kernel, stride, activation, gate)
            blocks.append(TrunkBlock(name=f"features{number}", nodes=nodes))
            before = out
        last = ConvNode(name="conv", channels=6 * before, kernel=1, activation=hard)
        blocks.append(_single(f"features{len(plan) + 1}", last))
        return TrunkSettings(blocks=tuple(blocks), eps=_V3_EPS)

    return make


def _gate_channels(hidden: int) -> int:
    """A quarter of the hidden channels, as a multiple of 8 by the rule of :func:`scaled`."""
    return scaled(hidden, 0.25)


def _inverted(
    before: int, hidden: int, out: int, kernel: int, stride: int, activation: Activation, gate: int | None
) -> tuple[Node, ...]:
    """Expand (where there is something to expand), depthwise, gate, project, and the sum where the shapes agree."""
    nodes: list[Node] = []
    last = "in"
    if hidden != before:
        nodes.append(ConvNode(name="expand", channels=hidden, kernel=1, activation=activation))
        last = "expand"
    nodes.append(
        ConvNode(
            name="depthwise",
            source=last,
            channels=hidden,
            kernel=kernel,
            stride=stride,
            padding=kernel // 2,
            depthwise=True,
            activation=activation,
        )
    )
    last = "depthwise"
    if gate is not None:
        nodes.append(GateNode(name="gate", source=last, hidden=gate))
        last = "gate"
    nodes.append(ConvNode(name="project", source=last, channels=out, kernel=1, activation=Activation.NONE))
    if stride == 1 and before == out:
        nodes.append(SumNode(name="sum", source="project", relu=False))
    return tuple(nodes)


def _single(name: str, node: Node) -> TrunkBlock:
    return TrunkBlock(name=name, nodes=(node,))


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(resnet((2, 2, 2, 2), bottleneck=False), "resnet18", "ResNet-18 (He et al. 2016)"),
    "resnet50": Architecture(resnet((3, 4, 6, 3), bottleneck=True), "resnet50", "ResNet-50 (He et al. 2016)"),
    "mobilenetv1": Architecture(mobilenet_v1, None, "MobileNetV1 (Howard et al. 2017)"),
    "mobilenetv2": Architecture(mobilenet_v2, "mobilenet_v2", "MobileNetV2 (Sandler et al. 2018)"),
    "mobilenetv3-small": Architecture(
        mobilenet_v3(_V3_SMALL), "mobilenet_v3_small", "MobileNetV3 small (Howard et al. 2019); float only"
    ),
    "mobilenetv3-large": Architecture(
        mobilenet_v3(_V3_LARGE), "mobilenet_v3_large", "MobileNetV3 large (Howard et al. 2019); float only"
    ),
}
"""Every trunk by name."""
