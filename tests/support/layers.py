"""One small layer of every kind, with the shapes of its inputs."""

from collections.abc import Callable

from caplet.nn.caps import ConvCaps2d, DenseCaps, ResidualAdd, RoutedConvCaps
from caplet.nn.conv import Activation, ClassScores, ConvNorm, ConvReLU, InputLayer, MapSum, MaxPool, SqueezeExcite
from caplet.nn.layer import Layer

Case = tuple[Callable[[], Layer], tuple[tuple[int, ...], ...]]

CASES: dict[str, Case] = {
    "input": (lambda: InputLayer("x", (3, 5, 6)), ((3, 5, 6),)),
    "conv": (lambda: ConvReLU("x", (3, 9, 8), 4, 3, 2, 1), ((3, 9, 8),)),
    "conv with batch norm": (lambda: ConvReLU("x", (3, 9, 8), 4, 3, batch_norm=True), ((3, 9, 8),)),
    "leaky conv": (lambda: ConvReLU("x", (3, 9, 8), 4, 3, slope=0.3), ((3, 9, 8),)),
    "leaky conv with batch norm": (lambda: ConvReLU("x", (3, 9, 8), 4, 3, batch_norm=1e-3, slope=0.1), ((3, 9, 8),)),
    "conv caps": (lambda: ConvCaps2d("x", (4, 9, 8), 2, 3, 3, 2, 1), ((4, 9, 8),)),
    "conv caps without bias": (lambda: ConvCaps2d("x", (4, 9, 8), 2, 3, 3, bias=False), ((4, 9, 8),)),
    "conv caps, flat": (lambda: ConvCaps2d("x", (4, 9, 8), 2, 3, 3, 2, 1, flat=True), ((4, 9, 8),)),
    "dense": (lambda: DenseCaps("x", 6, 4, 3, 5, 3), ((6, 4),)),
    "dense, one iteration, no bias": (lambda: DenseCaps("x", 6, 4, 3, 5, 1, bias=False), ((6, 4),)),
    "routed conv": (lambda: RoutedConvCaps("x", (3, 4, 5, 6), 2, 7, 3, 2, 1), ((3, 4, 5, 6),)),
    "routed conv, one iteration": (
        lambda: RoutedConvCaps("x", (3, 4, 5, 6), 2, 7, 3, iterations=1),
        ((3, 4, 5, 6),),
    ),
    "conv norm": (lambda: ConvNorm("x", (3, 9, 8), 4, 3, 2, 1), ((3, 9, 8),)),
    "conv norm, depthwise": (
        lambda: ConvNorm("x", (3, 9, 8), 3, 3, 1, 1, depthwise=True, activation=Activation.RELU6),
        ((3, 9, 8),),
    ),
    "conv norm, hardswish": (
        lambda: ConvNorm("x", (3, 9, 8), 4, 1, activation=Activation.HARDSWISH),
        ((3, 9, 8),),
    ),
    "max pool": (lambda: MaxPool("x", (3, 9, 8), 3, 2, 1), ((3, 9, 8),)),
    "map sum": (lambda: MapSum("x", (3, 5, 6), relu=True), ((3, 5, 6), (3, 5, 6))),
    "squeeze and excite": (lambda: SqueezeExcite("x", (6, 5, 6), 2, signed=False), ((6, 5, 6),)),
    "class scores": (lambda: ClassScores("x", (3, 5, 6), 4), ((3, 5, 6),)),
    "residual add": (lambda: ResidualAdd("x", (3, 4, 5, 6)), ((3, 4, 5, 6), (3, 4, 5, 6))),
}
