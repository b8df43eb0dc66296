"""The CNN trunks that capsules are put on: ResNets, MobileNetV1, V2 and V3, each up to its last feature map.

Nodes are in the order in which torchvision's modules hold their parameters, so that its state dicts can be read in
order (:mod:`caplet.models.importers.pretrained`). ``width`` scales every channel count; 1.0 is the published network.
"""

from collections.abc import Callable
from dataclasses import dataclass

from caplet.models.trunk import INPUT, ConvNode, GateNode, Node, PoolNode, SumNode, TrunkBlock, TrunkSettings
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


def _conv(
    name: str,
    source: str,
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    activation: Activation = Activation.RELU,
    depthwise: bool = False,
) -> ConvNode:
    """A convolution that keeps the size of its map but for its stride."""
    return ConvNode(
        name=name,
        source=source,
        channels=channels,
        kernel=kernel,
        stride=stride,
        padding=kernel // 2,
        depthwise=depthwise,
        activation=activation,
    )


def resnet(depths: tuple[int, int, int, int], *, bottleneck: bool) -> Callable[[float], TrunkSettings]:
    """A ResNet of He et al. 2016 (stride in a bottleneck's 3x3 convolution, as torchvision has it)."""

    def make(width: float) -> TrunkSettings:
        before = scaled(64, width)
        stem = (_conv("conv1", INPUT, before, 7, 2), PoolNode(name="maxpool", source="conv1"))
        blocks = [TrunkBlock(name="stem", nodes=stem)]
        for stage, depth in enumerate(depths):
            inner = scaled(64 << stage, width)
            outer = 4 * inner if bottleneck else inner
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                nodes = _residual(before, inner, outer, stride, bottleneck)
                blocks.append(TrunkBlock(name=f"layer{stage + 1}_{index}", nodes=nodes))
                before = outer
        return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)

    return make


def _residual(before: int, inner: int, outer: int, stride: int, bottleneck: bool) -> tuple[Node, ...]:
    """Two convolutions (three in a bottleneck), and their sum with the input, projected where the shapes differ."""
    nodes: list[Node]
    if bottleneck:
        nodes = [_conv("conv1", INPUT, inner, 1), _conv("conv2", "conv1", inner, 3, stride)]
    else:
        nodes = [_conv("conv1", INPUT, inner, 3, stride)]
    last, skip = f"conv{len(nodes) + 1}", INPUT
    nodes.append(_conv(last, nodes[-1].name, outer, 1 if bottleneck else 3, activation=Activation.NONE))
    if stride != 1 or before != outer:
        skip = "downsample"
        nodes.append(_conv(skip, INPUT, outer, 1, stride, Activation.NONE))
    return (*nodes, SumNode(name="sum", source=last, other=skip))


def mobilenet_v1(width: float) -> TrunkSettings:
    """MobileNet of Howard et al. 2017: depthwise and pointwise convolutions, ReLU."""
    before = scaled(32, width)
    blocks = [_single("conv1", before, 3, 2)]
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for index, (channels, stride) in enumerate(plan, start=2):
        depthwise = _conv("depthwise", INPUT, before, 3, stride, depthwise=True)
        before = scaled(channels, width)
        nodes = (depthwise, _conv("pointwise", "depthwise", before, 1))
        blocks.append(TrunkBlock(name=f"conv{index}", nodes=nodes))
    return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)


def mobilenet_v2(width: float) -> TrunkSettings:
    """MobileNetV2 of Sandler et al. 2018: inverted residuals, ReLU6."""
    relu6 = Activation.RELU6
    before = scaled(32, width)
    blocks = [_single("features0", before, 3, 2, relu6)]
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, repeats, first in plan:
        out = scaled(channels, width)
        for stride in (first, *[1] * (repeats - 1)):
            nodes = _inverted(before, before * expansion, out, 3, stride, relu6, gate=None)
            blocks.append(TrunkBlock(name=f"features{len(blocks)}", nodes=nodes))
            before = out
    blocks.append(_single(f"features{len(blocks)}", scaled(1280, width), 1, 1, relu6))
    return TrunkSettings(blocks=tuple(blocks), eps=_BN_EPS)


#: Kernel, hidden channels, output channels, gate, hardswish, stride of each block (Howard et al. 2019, tables 1 and 2).
_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    *[(5, 120, 40, True, False, 1)] * 2,
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    *[(3, 184, 80, False, True, 1)] * 2,
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    *[(5, 960, 160, True, True, 1)] * 2,
)
_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    *[(5, 240, 40, True, True, 1)] * 2,
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    *[(5, 576, 96, True, True, 1)] * 2,
)


def mobilenet_v3(plan: tuple[tuple[int, int, int, bool, bool, int], ...]) -> Callable[[float], TrunkSettings]:
    """MobileNetV3 of Howard et al. 2019: inverted residuals with gates, hardswish; float and fake-quant only."""

    def make(width: float) -> TrunkSettings:
        hard = Activation.HARDSWISH
        before = scaled(16, width)
        blocks = [_single("features0", before, 3, 2, hard)]
        for kernel, hidden, channels, gated, hardswish, stride in plan:
            inner, out = scaled(hidden, width), scaled(channels, width)
            gate = scaled(inner, 0.25) if gated else None
            nodes = _inverted(before, inner, out, kernel, stride, hard if hardswish else Activation.RELU, gate)
            blocks.append(TrunkBlock(name=f"features{len(blocks)}", nodes=nodes))
            before = out
        blocks.append(_single(f"features{len(blocks)}", 6 * before, 1, 1, hard))
        return TrunkSettings(blocks=tuple(blocks), eps=_V3_EPS)

    return make


def _inverted(
    before: int, hidden: int, out: int, kernel: int, stride: int, activation: Activation, gate: int | None
) -> tuple[Node, ...]:
    """Expand (where there is something to expand), depthwise, gate, project, and the sum where the shapes agree."""
    nodes: list[Node] = []
    if hidden != before:
        nodes.append(_conv("expand", INPUT, hidden, 1, 1, activation))
    source = "expand" if nodes else INPUT
    nodes.append(_conv("depthwise", source, hidden, kernel, stride, activation, depthwise=True))
    if gate is not None:
        nodes.append(GateNode(name="gate", source="depthwise", hidden=gate))
    nodes.append(_conv("project", nodes[-1].name, out, 1, 1, Activation.NONE))
    if stride == 1 and before == out:
        nodes.append(SumNode(name="sum", source="project", relu=False))
    return tuple(nodes)


def _single(name: str, channels: int, kernel: int, stride: int, activation: Activation = Activation.RELU) -> TrunkBlock:
    return TrunkBlock(name=name, nodes=(_conv("conv", INPUT, channels, kernel, stride, activation),))


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
