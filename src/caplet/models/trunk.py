"""CNN trunks as data: blocks of convolutions, pools, sums and gates, and the layers that they describe.

A trunk's settings say every channel count, so that a pruned trunk is a trunk like any other.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.models.base import FrozenModel, Means, Stage, State
from caplet.nn.conv import Activation, ConvNorm, MapShape, MapSum, MaxPool, SqueezeExcite
from caplet.nn.layer import Layer
from caplet.settings import Pixels, Positive, Side, Size

INPUT = "in"
"""Name under which a block's nodes read the block's input."""
_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
Name = Annotated[str, Field(pattern=_NAME, max_length=40)]


class _Node(FrozenModel):
    """One layer of a block. ``name`` is its own, unique in the block; its source is a node before it, or ``in``."""

    name: Name
    source: Name = INPUT


class ConvNode(_Node):
    """A convolution with batch norm and activation; a depthwise one has as many channels as it reads.

    ``padding`` is as :class:`caplet.nn.layer.Window` has it; ``"same"`` is that of networks trained with TensorFlow.
    """

    kind: Literal["conv"] = "conv"
    channels: Size
    kernel: Side = 3
    stride: Side = 1
    padding: Pixels | Literal["same"] = 0
    depthwise: bool = False
    activation: Activation = Activation.RELU


class PoolNode(_Node):
    kind: Literal["max_pool"] = "max_pool"
    kernel: Side = 3
    stride: Side = 2
    padding: Pixels = 1


class SumNode(_Node):
    """``source`` plus ``other``, with a ReLU or not."""

    kind: Literal["sum"] = "sum"
    other: Name = INPUT
    relu: bool = True


class GateNode(_Node):
    """A squeeze-and-excite gate with ``hidden`` channels inside."""

    kind: Literal["gate"] = "gate"
    hidden: Size


Node = Annotated[ConvNode | PoolNode | SumNode | GateNode, Field(discriminator="kind")]


class TrunkBlock(FrozenModel):
    """Nodes in order of execution; the last one's output is the block's. A block is one stage of the model."""

    name: Name
    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]


class TrunkModule(nn.Module):
    """The layers of one block.

    Args:
        block: its settings.
        in_shape: (channels, rows, columns) of the block's input.
        signed: whether its input holds negative values.
        eps: of the batch norms.

    Raises:
        ModelError: a source that is not there, sums of different shapes, a depthwise convolution of other channels, an
            image too small for a kernel; the message names the layer.
    """

    def __init__(self, block: TrunkBlock, in_shape: MapShape, signed: bool, eps: float) -> None:
        super().__init__()
        self.block = block
        shapes: dict[str, MapShape] = {INPUT: in_shape}
        signs: dict[str, bool] = {INPUT: signed}
        layers: list[Layer] = []
        for node in block.nodes:
            name = f"{block.name}.{node.name}"
            if node.name in shapes:
                raise ModelError(f"layer {name}: its block has another layer of that name; names are unique")
            for source in inputs_of(node):
                if source not in shapes:
                    raise ModelError(f"layer {name}: it reads {source!r}, none of its block's {', '.join(shapes)}")
            layer = _make(name, node, shapes, signs[node.source], eps)
            layers.append(layer)
            shapes[node.name], signs[node.name] = layer.out_shape, layer.specs["activation"].signed
        self.layers = nn.ModuleList(layers)
        self._layers: tuple[TrunkLayer, ...] = tuple(layers)  # type: ignore[arg-type]
        self.out_shape = self._layers[-1].out_shape
        self.signed = signs[block.nodes[-1].name]

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        last = x
        for node, layer in self.nodes_and_layers():
            last = values[node.name] = layer(*(values[source] for source in inputs_of(node)))
        return last

    def nodes_and_layers(self) -> "Iterator[tuple[Node, TrunkLayer]]":
        yield from zip(self.block.nodes, self._layers, strict=True)

    def stage(self, source: str) -> Stage:
        """The block as a stage of a model; ``source`` is the point key of its input."""
        keys = {INPUT: source} | {node.name: f"{self.block.name}.{node.name}.activation" for node in self.block.nodes}
        wiring = {layer.name: tuple(keys[name] for name in inputs_of(node)) for node, layer in self.nodes_and_layers()}

        def run(state: State) -> State:
            return (self(state[0]),)

        return Stage(self.block.name, run, self._layers, (keys[self.block.nodes[-1].name],), wiring)


TrunkLayer = ConvNorm | MaxPool | MapSum | SqueezeExcite


def inputs_of(node: Node) -> tuple[str, ...]:
    """The names that a node reads, in order."""
    return (node.source, node.other) if isinstance(node, SumNode) else (node.source,)


def _make(name: str, node: Node, shapes: dict[str, MapShape], signed: bool, eps: float) -> TrunkLayer:
    """The layer of a node, which reads maps of ``shapes`` that are signed or not."""
    shape = shapes[node.source]
    if isinstance(node, ConvNode):
        window, activation = (node.kernel, node.stride, node.padding), node.activation
        return ConvNorm(name, shape, node.channels, *window, depthwise=node.depthwise, activation=activation, eps=eps)
    if isinstance(node, PoolNode):
        return MaxPool(name, shape, node.kernel, node.stride, node.padding, signed=signed)
    if isinstance(node, GateNode):
        return SqueezeExcite(name, shape, node.hidden, signed=signed)
    if shape != shapes[node.other]:
        raise ModelError(f"layer {name}: it adds maps of {shape} and {shapes[node.other]}; the rule is one shape")
    return MapSum(name, shape, relu=node.relu)


def resized_blocks(blocks: tuple[TrunkBlock, ...], channels: Mapping[str, int]) -> tuple[TrunkBlock, ...]:
    """The trunk with other channel counts.

    Args:
        channels: of every convolution that has channels of its own, by its layer's name; a depthwise one has those of
            what it reads.
    """
    result: list[TrunkBlock] = []
    before = 0  # channels of the block's input; of the image: any number, for nothing shrinks with it
    for block in blocks:
        counts = {INPUT: before}
        nodes: list[Node] = []
        for node in block.nodes:
            count = counts[node.source]
            if isinstance(node, ConvNode):
                count = count if node.depthwise else channels[f"{block.name}.{node.name}"]
                node = node.model_copy(update={"channels": count})
            nodes.append(node)
            counts[node.name] = count
        result.append(block.model_copy(update={"nodes": tuple(nodes)}))
        before = counts[block.nodes[-1].name]
    return tuple(result)


class TrunkSettings(FrozenModel):
    """A trunk: its blocks, the batch norms' ``eps``, and the normalisation that its images get (None: none)."""

    blocks: Annotated[tuple[TrunkBlock, ...], Field(min_length=1)]
    eps: Positive = 1e-5
    mean: Means = None
    std: tuple[Positive, ...] | None = None
