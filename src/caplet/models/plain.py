"""A plain CNN of the size of a capsule network: what users compare capsules with.

3x3 convolutions with batch norm and ReLU, the mean over all places, one matrix, softmax. Float only: it is trained and
measured, not shipped.
"""

import math
from itertools import combinations

import torch
from torch import nn

from caplet.errors import ModelError
from caplet.models.base import CapsNet, ModelConfig, Stage, layer_stage
from caplet.models.cost import cost_of
from caplet.models.trunk import ConvNode, TrunkBlock, TrunkModule, TrunkSettings
from caplet.nn.conv import ClassScores, InputLayer

CNN_LIKE = "cnn-like:"
"""Before the name of a model, in place of a model's name: a plain CNN of its size."""
DEPTHS = range(2, 11)
"""Numbers of convolutions that are tried."""
CLOSE = 0.02
"""Relative difference of parameters and of MACs that ends the search; at most twice as much is accepted."""


class PlainCnnConfig(ModelConfig):
    """Settings of :class:`PlainCnn`: its convolutions."""

    trunk: TrunkSettings


class PlainCnn(CapsNet):
    """Convolutions, the mean of every channel, class probabilities: float (B, classes, 1), each a capsule's length.

    It is trained by cross-entropy, everything else by the recipe. Raises ModelError as :class:`TrunkModule`.
    """

    family, settings = "cnn", PlainCnnConfig
    config: PlainCnnConfig

    def __init__(self, config: PlainCnnConfig) -> None:
        super().__init__(config)
        self.input = InputLayer("input", config.image)
        blocks: list[TrunkModule] = []
        shape = config.image
        for block in config.trunk.blocks:
            blocks.append(TrunkModule(block, shape, False, config.trunk.eps))
            shape = blocks[-1].out_shape
        self.trunk = nn.ModuleList(blocks)
        self._trunk = tuple(blocks)
        self.scores = ClassScores("scores", shape, config.classes)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> tuple[Stage, ...]:
        stages = [layer_stage(self.input)]
        for block in self._trunk:
            stages.append(block.stage(stages[-1].outputs[0]))
        return (*stages, layer_stage(self.scores, stages[-1].outputs))


def cnn_like(model: CapsNet) -> PlainCnnConfig:
    """The settings of a plain CNN with about the parameters and the MACs of ``model`` (which may be without data).

    Depth, places of stride 2 and the growth of the channel counts are searched; the counts follow from the parameters.

    Raises:
        ModelError: no such CNN comes within 4 %, as where a model multiplies every weight only once.
    """
    image, classes, cost = model.config.image, model.config.classes, cost_of(model)
    best: tuple[float, tuple[int, ...], tuple[int, ...]] = (math.inf, (), ())
    for depth in DEPTHS:
        for halvings in range(min(depth, math.ceil(math.log2(min(image[1:])))) + 1):
            for places in combinations(range(depth), halvings):
                strides = tuple(2 if index in places else 1 for index in range(depth))
                for growth in (1.0, 1.2, 1.41, 1.7, 2.0):
                    channels = _channels(image, classes, strides, growth, cost.parameters)
                    found = _cost(image, classes, channels, strides)
                    error = max(abs(a / b - 1) for a, b in zip(found, (cost.parameters, cost.macs), strict=True))
                    best = min(best, (error, channels, strides))
        if best[0] <= CLOSE:
            break
    error, channels, strides = best
    if error > 2 * CLOSE:
        size = f"{cost.parameters:,} parameters and {cost.macs:,} MACs"
        raise ModelError(f"no plain CNN has the {size} of {model.family}: the nearest differs by {error:.0%}")
    convs = zip(channels, strides, strict=True)
    blocks = (
        TrunkBlock(name=f"conv{i}", nodes=(ConvNode(name="conv", channels=c, stride=s, padding=1),))
        for i, (c, s) in enumerate(convs, start=1)
    )
    return PlainCnnConfig(image=image, classes=classes, trunk=TrunkSettings(blocks=tuple(blocks)))


def _channels(
    image: tuple[int, int, int], classes: int, strides: tuple[int, ...], growth: float, parameters: int
) -> tuple[int, ...]:
    """Channel counts, ``growth`` times as many after each stride, with the most parameters up to ``parameters``."""
    powers = [growth ** strides[: index + 1].count(2) for index in range(len(strides))]

    def counts(width: float) -> tuple[int, ...]:
        return tuple(max(1, round(width * power)) for power in powers)

    low, high = 1.0, 8192.0
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _cost(image, classes, counts(middle), strides)[0] <= parameters else (low, middle)
    return counts(low)


def _cost(
    image: tuple[int, int, int], classes: int, channels: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, int]:
    """Parameters and MACs of such a CNN, as :func:`caplet.models.cost.cost_of` counts them."""
    before, rows, columns = image
    parameters = macs = 0
    for count, stride in zip(channels, strides, strict=True):
        rows, columns = (rows - 1) // stride + 1, (columns - 1) // stride + 1
        weights = 9 * before * count
        parameters, macs, before = parameters + weights + 2 * count, macs + weights * rows * columns, count
    return parameters + (before + 1) * classes, macs + before * classes
