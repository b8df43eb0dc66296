"""What a model costs for one image, layer by layer: multiply-accumulates, parameters, capsules, memory in float32."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from caplet.errors import ModelError
from caplet.models.base import CapsNet
from caplet.nn.caps import ConvCaps2d, DenseCaps, ResidualAdd, RoutedConvCaps
from caplet.nn.conv import ClassScores, ConvNorm, ConvReLU, InputLayer, MapSum, MaxPool, SqueezeExcite
from caplet.nn.layer import Layer
from caplet.nn.points import Storage

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one layer for one image.

    Attributes:
        conv: of convolutions that make no votes.
        votes: of the transformation of input capsules into votes.
        routing: of each routing iteration: the weighted sum, and in all but the last the agreement.
    """

    conv: int = 0
    votes: int = 0
    routing: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.conv + self.votes + sum(self.routing)


@dataclass(frozen=True)
class LayerCost:
    """One layer's cost for one image.

    Attributes:
        parameters: trained values (batch-norm statistics are not).
        capsules: output capsules, 0 for plain convolutions.
        activation_bytes: of all computed tensors that the layer stores, in float32.
        peak_bytes: of those and of what is kept for the layer and for later ones meanwhile, in float32.
    """

    layer: str
    macs: Macs
    parameters: int
    capsules: int
    activation_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "macs": {**asdict(self.macs), "total": self.macs.total}}


@dataclass(frozen=True)
class Cost:
    """A model's cost for one image.

    Attributes:
        macs, parameters: of all layers.
        peak_bytes: of the layer that needs most memory, in float32.
    """

    layers: tuple[LayerCost, ...]
    macs: int
    parameters: int
    peak_bytes: int

    @property
    def bytes(self) -> int:
        return FLOAT_BYTES * self.parameters

    def to_json(self) -> dict[str, Any]:
        macs = [layer.macs for layer in self.layers]
        return {
            "macs": self.macs,
            "conv_macs": sum(m.conv for m in macs),
            "vote_macs": sum(m.votes for m in macs),
            "routing_macs": sum(sum(m.routing) for m in macs),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "capsules": sum(layer.capsules for layer in self.layers),
            "activation_bytes": sum(layer.activation_bytes for layer in self.layers),
            "peak_bytes": self.peak_bytes,
            "layers": [layer.to_json() for layer in self.layers],
        }


def cost_of(model: CapsNet) -> Cost:
    """The cost of ``model`` for one image; its tensors need no data (device ``meta``).

    Raises ModelError: a layer type whose cost is not known; the message names the layer.
    """
    stages = model.stages()
    order = [layer for stage in stages for layer in stage.layers]
    reads = {name: keys for stage in stages for name, keys in stage.wiring.items()}
    last = {key: index for index, layer in enumerate(order) for key in reads[layer.name]}
    sizes = {key: FLOAT_BYTES * spec.elements for layer in order for key, spec in layer.points().items()}
    written: set[str] = set()
    layers = []
    for index, layer in enumerate(order):
        own = [key for key, spec in layer.points().items() if spec.storage is Storage.RAM]
        waiting = sum(sizes[key] for key in written if last[key] >= index)
        stored = sum(sizes[key] for key in own)
        parameters = sum(p.numel() for p in layer.parameters())
        layers.append(LayerCost(layer.name, macs_of(layer), parameters, _capsules(layer), stored, stored + waiting))
        written |= {key for key in own if key in last}
    macs, parameters = sum(cost.macs.total for cost in layers), sum(cost.parameters for cost in layers)
    return Cost(tuple(layers), macs, parameters, max(cost.peak_bytes for cost in layers))


def _capsules(layer: Layer) -> int:
    if isinstance(layer, DenseCaps):
        return layer.out_capsules
    if isinstance(layer, ConvCaps2d | RoutedConvCaps):
        types, _, rows, columns = layer.out_shape
        return types * rows * columns
    return 0


def macs_of(layer: Layer) -> Macs:
    """The multiply-accumulates of one layer for one image.

    Raises ModelError: a layer type whose cost is not known; the message names the layer.
    """
    if isinstance(layer, InputLayer | ResidualAdd | MaxPool | MapSum):
        return Macs()
    if isinstance(layer, ConvReLU | ConvNorm | ConvCaps2d):
        return Macs(conv=layer.weight.numel() * prod(layer.positions))
    if isinstance(layer, ClassScores):
        return Macs(conv=layer.weight.numel())
    if isinstance(layer, SqueezeExcite):
        return Macs(conv=layer.reduce.numel() + layer.expand.numel())
    if isinstance(layer, RoutedConvCaps):
        votes = layer.weight.numel() * prod(layer.positions) * layer.in_shape[0]
        return Macs(votes=votes, routing=_routing(layer))
    if isinstance(layer, DenseCaps):
        return Macs(votes=layer.weight.numel(), routing=_routing(layer))
    raise ModelError(f"layer {layer.name}: the cost of layers of type {type(layer).__name__} is not known")


def stage_macs(model: CapsNet) -> tuple[int, ...]:
    """Multiply-accumulates of every stage for one image, in order."""
    return tuple(sum(macs_of(layer).total for layer in stage.layers) for stage in model.stages())


def _routing(layer: DenseCaps | RoutedConvCaps) -> tuple[int, ...]:
    """Each iteration multiplies all votes once for the weighted sum, and but for the last once for the agreement."""
    votes = prod(layer.specs["votes"].shape)
    return (2 * votes,) * (layer.iterations - 1) + (votes,)
