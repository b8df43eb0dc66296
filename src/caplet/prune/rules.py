"""Which units go together: one declaration per layer type, read by scoring, surgery, accounting and the docs.

A *dependency group* is a set of units that are removed as one wherever they occur: the channels of a convolution, the
capsule types of a block, the dimensions of a capsule, the single capsules that vote for the classes. A rule names the
groups that a layer's units belong to, and says for every tensor of the layer which of its axes run along which groups.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from caplet.errors import ModelError
from caplet.nn.caps import ConvCaps2d, DenseCaps, ResidualAdd, RoutedConvCaps
from caplet.nn.conv import ConvNorm, ConvReLU, InputLayer, MapSum, MaxPool, SqueezeExcite
from caplet.nn.layer import Layer
from caplet.prune.choices import UnitKind
from caplet.registry import Registry

AxisGroups = tuple[str | int, ...]
"""What an axis runs along: names of groups, or numbers where nothing can go; slowest first."""


@dataclass(frozen=True)
class DependencyGroup:
    """Units that can be removed: ``name`` is ``"<stage>.<kind>"``, ``size`` their number."""

    name: str
    kind: UnitKind
    size: int


@dataclass(frozen=True)
class MapAxes:
    """A tensor between layers: what its channels run along, and its number of positions (rows x columns)."""

    along: AxisGroups
    positions: int


@dataclass(frozen=True)
class Voters:
    """The units of a ``capsules`` group: capsules of several sources, one source after the other.

    Attributes:
        group: the group's name.
        sources: of each source, the group of its types and its number of positions.
        places: of each unit its place in the list of all the sources' capsules; None where all of them vote.
    """

    group: str
    sources: tuple[tuple[str, int], ...]
    places: tuple[int, ...] | None


@dataclass(frozen=True)
class Dependencies:
    """Which dependency groups the tensors of one layer run along.

    Attributes:
        groups: the groups of the layer's own units. Layers of one stage share them.
        output: what the layer gives to later ones.
        tensors: for every parameter and buffer, axis -> what it runs along; axes that cannot shrink are left out.
        units: axis of the layer's activation, without the batch axis -> what it runs along.
        masked: the point at which a removed unit is as good as zero.
        coupling: axis of the layer's coupling -> what it runs along; a removed capsule takes no part in the routing.
        voters: the single capsules that vote, for a fully connected capsule layer.
        same: pairs of groups of which the same units go, because the layer reads both in one place.
    """

    groups: tuple[DependencyGroup, ...]
    output: MapAxes
    tensors: Mapping[str, Mapping[int, AxisGroups]] = field(default_factory=dict)
    units: Mapping[int, AxisGroups] = field(default_factory=dict)
    masked: str | None = None
    coupling: Mapping[int, AxisGroups] = field(default_factory=dict)
    voters: Voters | None = None
    same: tuple[tuple[str, str], ...] = ()


Rule = Callable[[Any, tuple[MapAxes, ...]], Dependencies]
"""The layer, and what it reads -> its dependencies."""
RULES: Registry[type[Layer], Rule] = Registry("pruning rule of layer type")


def rule_of(layer: Layer, sources: tuple[MapAxes, ...]) -> Dependencies:
    """The dependencies of ``layer`` when it reads ``sources``.

    Raises:
        ModelError: no rule knows the layer's type; the message names the layer and the supported types.
    """
    rule = RULES.get(type(layer))
    if rule is None:
        known = ", ".join(sorted(kind.__name__ for kind in RULES))
        raise ModelError(
            f"layer {layer.name}: type {type(layer).__name__} has no pruning rule; supported types: {known}"
        )
    return rule(layer, sources)


_NORM = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a batch norm that have an element per channel."""


def _group(layer: Layer, kind: UnitKind, size: int) -> DependencyGroup:
    """A group of the layer's stage: the layers of one stage share their channels, types and dimensions."""
    return DependencyGroup(f"{layer.name.partition('.')[0]}.{kind}", kind, size)


@RULES.of(InputLayer)
def _input(layer: InputLayer, sources: tuple[MapAxes, ...]) -> Dependencies:
    channels, rows, columns = layer.specs["image"].shape
    return Dependencies((), MapAxes((channels,), rows * columns))


@RULES.of(ConvReLU)
def _conv_relu(layer: ConvReLU, sources: tuple[MapAxes, ...]) -> Dependencies:
    """Output channels go with their filters, biases and batch norm, and with the input channels of what reads them."""
    channels, rows, columns = layer.out_shape
    group = _group(layer, UnitKind.CHANNELS, channels)
    out: AxisGroups = (group.name,)
    tensors: dict[str, Mapping[int, AxisGroups]] = {"weight": {0: out, 1: sources[0].along}, "bias": {0: out}}
    if layer.batch_norm is not None:
        tensors |= {f"batch_norm.{name}": {0: out} for name in _NORM} | {"batch_norm.num_batches_tracked": {}}
    return Dependencies((group,), MapAxes(out, rows * columns), tensors, {0: out}, "activation")


@RULES.of(ConvNorm)
def _conv_norm(layer: ConvNorm, sources: tuple[MapAxes, ...]) -> Dependencies:
    """As for a plain convolution, but each has channels of its own; a depthwise one has those of its input."""
    channels, rows, columns = layer.out_shape
    group = DependencyGroup(f"{layer.name}.{UnitKind.CHANNELS}", UnitKind.CHANNELS, channels)
    out: AxisGroups = sources[0].along if layer.depthwise else (group.name,)
    tensors: dict[str, Mapping[int, AxisGroups]] = {
        "weight": {0: out} if layer.depthwise else {0: out, 1: sources[0].along}
    }
    tensors |= {f"norm.{name}": {0: out} for name in _NORM} | {"norm.num_batches_tracked": {}}
    return Dependencies(
        () if layer.depthwise else (group,), MapAxes(out, rows * columns), tensors, {0: out}, "activation"
    )


@RULES.of(MaxPool)
def _max_pool(layer: MaxPool, sources: tuple[MapAxes, ...]) -> Dependencies:
    _, rows, columns = layer.out_shape
    return Dependencies((), MapAxes(sources[0].along, rows * columns))


@RULES.of(MapSum)
def _map_sum(layer: MapSum, sources: tuple[MapAxes, ...]) -> Dependencies:
    """The same channels go from both maps: the branch takes the names of the skip connection."""
    branch, skip = (str(flow.along[0]) for flow in sources)
    return Dependencies((), sources[1], same=((skip, branch),))


@RULES.of(SqueezeExcite)
def _squeeze_excite(layer: SqueezeExcite, sources: tuple[MapAxes, ...]) -> Dependencies:
    """The gate follows its input's channels; its hidden channels stay."""
    along = sources[0].along
    tensors = {"reduce": {1: along}, "reduce_bias": {}, "expand": {0: along}, "expand_bias": {0: along}}
    return Dependencies((), sources[0], tensors)


@RULES.of(ConvCaps2d)
def _conv_caps(layer: ConvCaps2d, sources: tuple[MapAxes, ...]) -> Dependencies:
    """Capsule types go with all their filters; dimensions with their filter in every type. Flat ones share filters."""
    types, dim, rows, columns = layer.out_shape
    if layer.flat:
        own: dict[str, Mapping[int, AxisGroups]] = {"weight": {0: (layer.types * dim,), 1: sources[0].along}}
        return Dependencies((), MapAxes((types, dim), 1), own if layer.bias is None else {**own, "bias": {}})
    groups = _group(layer, UnitKind.TYPES, types), _group(layer, UnitKind.DIM, dim)
    out: AxisGroups = tuple(group.name for group in groups)
    tensors: dict[str, Mapping[int, AxisGroups]] = {"weight": {0: out, 1: sources[0].along}}
    if layer.bias is not None:
        tensors["bias"] = {0: out}
    return Dependencies(groups, MapAxes(out, rows * columns), tensors, {0: out[:1], 1: out[1:]}, "preactivation")


@RULES.of(RoutedConvCaps)
def _routed_conv_caps(layer: RoutedConvCaps, sources: tuple[MapAxes, ...]) -> Dependencies:
    """One filter serves all input types: an input type takes only its votes along, an output type its filters."""
    types, dim, rows, columns = layer.out_shape
    groups = _group(layer, UnitKind.TYPES, types), _group(layer, UnitKind.DIM, dim)
    kinds: AxisGroups = (groups[0].name,)
    dims: AxisGroups = (groups[1].name,)
    in_types, in_dim = sources[0].along[:1], sources[0].along[1:]
    capsules: AxisGroups = (rows * columns, *kinds)
    return Dependencies(
        groups,
        MapAxes(kinds + dims, rows * columns),
        {"weight": {0: kinds + dims, 1: in_dim}, "vote_bias": {0: kinds + dims}, "bias": {0: kinds, 1: dims}},
        {0: capsules, 1: dims},
        "preactivation",
        {0: capsules, 1: in_types},
    )


@RULES.of(ResidualAdd)
def _residual_add(layer: ResidualAdd, sources: tuple[MapAxes, ...]) -> Dependencies:
    """What is added has the same units: a block's layers share their groups (they are of one stage)."""
    first, second = sources
    if first != second:
        raise ModelError(f"layer {layer.name}: it adds tensors along {first.along} and {second.along}, which differ")
    return Dependencies((), first)


@RULES.of(DenseCaps)
def _dense_caps(layer: DenseCaps, sources: tuple[MapAxes, ...]) -> Dependencies:
    """Classes never go. Input capsules go with their matrices and votes, and with their type."""
    group, dims = _group(layer, UnitKind.CAPSULES, layer.in_capsules), _group(layer, UnitKind.DIM, layer.dim)
    out, in_dim = (layer.out_capsules, dims.name), sources[0].along[1:]
    fixed = isinstance(sources[0].along[0], int)  # flat capsules stay
    along: dict[int, AxisGroups] = {2: out} if fixed else {0: (group.name,), 1: in_dim, 2: out}
    tensors: dict[str, Mapping[int, AxisGroups]] = {"weight": along}
    if layer.bias is not None:
        tensors["bias"] = {1: out[1:]}
    if fixed:
        return Dependencies((dims,), MapAxes(out, 1), tensors, {1: out[1:]}, "preactivation")
    voters = Voters(group.name, tuple((str(flow.along[0]), flow.positions) for flow in sources), layer.input_indices)
    same = tuple((str(in_dim[0]), str(flow.along[1])) for flow in sources[1:])
    return Dependencies(
        (group, dims), MapAxes(out, 1), tensors, {1: out[1:]}, "preactivation", {1: (group.name,)}, voters, same
    )
