"""``lower``: float model + plan -> Program, by one handler per layer type.

A handler appends the ops that compute what the layer computes, in the device's layout.

Point tensors of the PyTorch side map to the device's as ``PointSpec.device_axes`` says: images and capsule maps become
(rows, columns, channels) with the capsule's dimension fastest, votes (I, G, D), coupling and logits (I, G).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caplet.errors import ModelError
from caplet.fixed import ChannelFormat, FixedFormat, Rounding, stochastic_noise
from caplet.models.base import CapsNet
from caplet.nn.caps import ConvCaps2d, DenseCaps, ResidualAdd, RoutedConvCaps
from caplet.nn.conv import (
    SLOPE_FRAC,
    Activation,
    ClassScores,
    ConvNorm,
    ConvReLU,
    InputLayer,
    MapSum,
    MaxPool,
    SqueezeExcite,
)
from caplet.nn.layer import Layer
from caplet.nn.points import PointSpec
from caplet.program import Constant, Program, TensorSpec, ops
from caplet.program.op import Op
from caplet.program.ops import PIXEL_FORMAT, pixel_table
from caplet.program.verify import lengths_format, verify
from caplet.quant.plan.plan import QuantPlan
from caplet.registry import Registry

PIXELS = "input.pixels"
OHWI = (0, 2, 3, 1)


@dataclass
class Lowering:
    """A Program under construction.

    Attributes:
        plan: formats by point key.
        specs: the model's declared points.
        tensors, ops: the Program's, so far.
    """

    plan: QuantPlan
    specs: dict[str, PointSpec]
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def format(self, key: str) -> FixedFormat:
        """The fixed-point format of a computed tensor."""
        fmt = self.plan.points[key]
        assert isinstance(fmt, FixedFormat), f"{key}: {fmt}"  # QuantPlan.check allows powers of two for weights only
        return fmt

    def tensor(self, key: str, shape: tuple[int, ...]) -> str:
        """Declare the tensor of point ``key`` with the device's ``shape``; returns the key."""
        self.tensors[key] = TensorSpec(key, shape, self.format(key), self.plan.rounding_of(key, self.specs[key]))
        return key

    def constant(self, key: str, value: Tensor, axes: tuple[int, ...] | None = None) -> Constant:
        """The codes of a parameter, rounded in the parameter's own order, then transposed to the device's ``axes``."""
        fmt, rounding = self.plan.points[key], self.plan.rounding_of(key, self.specs[key])
        array = value.detach().cpu().numpy().astype(np.float32)
        noise = None
        if rounding is Rounding.STOCHASTIC:  # element e of the noise belongs to element e of the parameter
            noise = np.asarray(stochastic_noise(self.plan.seed, key, array.size)).reshape(array.shape)
        codes = np.asarray(fmt.encode(array, rounding, noise), dtype=np.int32)
        base = fmt.base if isinstance(fmt, ChannelFormat) else fmt
        return Constant(key, codes if axes is None else np.transpose(codes, axes), base)

    def channel_shifts(self, key: str) -> NDArray[np.int32] | None:
        """The shifts per output channel of the weight ``key``, or None where one exponent holds for all."""
        fmt = self.plan.points[key]
        return np.array(fmt.shifts, dtype=np.int32) if isinstance(fmt, ChannelFormat) else None


HANDLERS: Registry[type[Layer], Callable[..., None]] = Registry("handler of layer type", ModelError)
"""By layer type the function (Lowering, layer, the tensors that it reads) that appends the layer's ops."""


@HANDLERS.of(InputLayer)
def _input(low: Lowering, layer: InputLayer, sources: tuple[str, ...]) -> None:
    channels, rows, columns = layer.specs["image"].shape
    low.tensors[PIXELS] = TensorSpec(PIXELS, (rows, columns, channels), PIXEL_FORMAT)
    image = f"{layer.name}.image"
    low.tensors[image] = TensorSpec(image, (rows, columns, channels), low.format(image))  # a table: always nearest
    scale = tuple(1.0 / std for std in layer.std)
    table = pixel_table("input.table", low.format(image), layer.mean, scale)
    low.ops.append(ops.InputQuantize(layer.name, PIXELS, image, table))


@HANDLERS.of(ConvReLU)
def _conv_relu(low: Lowering, layer: ConvReLU, sources: tuple[str, ...]) -> None:
    name = layer.name
    channels, rows, columns = layer.out_shape
    shape = (rows, columns, channels)
    linear = low.tensor(f"{name}.linear", shape) if layer.slope else ""
    output = low.tensor(f"{name}.activation" if layer.batch_norm is None else f"{name}.preactivation", shape)
    _conv(low, layer, sources[0], linear or output, relu=not linear)
    if linear:
        low.ops.append(ops.LeakyRelu(f"{name}.leaky", linear, output, layer.slope_code, SLOPE_FRAC))
    if layer.batch_norm is not None:
        scale, offset = layer.affine()
        scales, offsets = low.constant(f"{name}.scale", scale), low.constant(f"{name}.offset", offset)
        activation = low.tensor(f"{name}.activation", shape)
        low.ops.append(ops.ChannelAffine(f"{name}.affine", output, activation, scales, offsets))


@HANDLERS.of(ConvCaps2d)
def _conv_caps(low: Lowering, layer: ConvCaps2d, sources: tuple[str, ...]) -> None:
    name = layer.name
    types, dim, rows, columns = layer.out_shape
    shape = (rows, columns, types * dim)
    capsules = low.tensor(f"{name}.preactivation", (*layer.positions, layer.types * dim))
    _conv(low, layer, sources[0], capsules, relu=False)
    if layer.flat:
        ordered = f"{name}.list"
        low.tensors[ordered] = TensorSpec(ordered, shape, low.format(capsules))
        low.ops.append(ops.Listing(ordered, capsules, ordered))
        capsules = ordered
    activation = low.tensor(f"{name}.activation", shape)
    low.ops.append(ops.Squash(f"{name}.squash", capsules, activation, dim))


@HANDLERS.of(RoutedConvCaps)
def _routed_conv_caps(low: Lowering, layer: RoutedConvCaps, sources: tuple[str, ...]) -> None:
    name = layer.name
    types, dim, rows, columns = layer.out_shape
    in_types = layer.in_shape[0]
    votes = low.tensor(f"{name}.votes", (in_types, rows * columns * types, dim))
    weight = low.constant(f"{name}.weight", layer.weight, OHWI)
    vote_bias = low.constant(f"{name}.vote_bias", layer.vote_bias)
    shifts, window = low.channel_shifts(f"{name}.weight"), (layer.stride, layer.padding)
    low.ops.append(ops.ConvVotes(f"{name}.vote", sources[0], votes, weight, vote_bias, in_types, dim, *window, shifts))
    _route(low, layer, types, (rows, columns, types * dim))


@HANDLERS.of(DenseCaps)
def _dense_caps(low: Lowering, layer: DenseCaps, sources: tuple[str, ...]) -> None:
    name = layer.name
    votes = low.tensor(f"{name}.votes", (layer.in_capsules, layer.out_capsules, layer.dim))
    weight, shifts = low.constant(f"{name}.weight", layer.weight), low.channel_shifts(f"{name}.weight")
    votes_of = ops.DenseVotes(f"{name}.vote", sources, votes, weight, layer.dim, shifts, layer.input_indices)
    low.ops.append(votes_of)
    _route(low, layer, layer.out_capsules, layer.out_shape)


@HANDLERS.of(ResidualAdd)
def _residual_add(low: Lowering, layer: ResidualAdd, sources: tuple[str, ...]) -> None:
    types, dim, rows, columns = layer.specs["sum"].shape
    output = low.tensor(f"{layer.name}.sum", (rows, columns, types * dim))
    low.ops.append(ops.Add(layer.name, sources[0], sources[1], output))


@HANDLERS.of(ConvNorm)
def _conv_norm(low: Lowering, layer: ConvNorm, sources: tuple[str, ...]) -> None:
    name = layer.name
    if layer.activation is Activation.HARDSWISH:
        raise ModelError(f"layer {name}: hardswish cannot become integers; use relu or relu6, as MobileNetV2 does")
    channels, rows, columns = layer.out_shape
    output = low.tensor(f"{name}.activation", (rows, columns, channels))
    high = None
    if layer.activation is Activation.RELU6:
        high = int(low.format(output).encode(np.array([6.0], dtype=np.float32))[0])
    _conv(low, layer, sources[0], output, relu=layer.activation is not Activation.NONE, high=high)


@HANDLERS.of(MaxPool)
def _max_pool(low: Lowering, layer: MaxPool, sources: tuple[str, ...]) -> None:
    channels, rows, columns = layer.out_shape
    output = low.tensor(f"{layer.name}.activation", (rows, columns, channels))
    low.ops.append(ops.MaxPool2d(layer.name, sources[0], output, layer.kernel, layer.stride, layer.padding))


@HANDLERS.of(MapSum)
def _map_sum(low: Lowering, layer: MapSum, sources: tuple[str, ...]) -> None:
    channels, rows, columns = layer.out_shape
    output = low.tensor(f"{layer.name}.activation", (rows, columns, channels))
    # A plan gives the sum behind a ReLU an unsigned format, whose saturation at 0 is the ReLU.
    low.ops.append(ops.Add(layer.name, sources[0], sources[1], output))


@HANDLERS.of(SqueezeExcite)
def _squeeze_excite(low: Lowering, layer: SqueezeExcite, sources: tuple[str, ...]) -> None:
    todo = "use a trunk without, such as MobileNetV2 or ResNet-18"
    raise ModelError(f"layer {layer.name}: a squeeze-and-excite gate cannot become integers; {todo}")


@HANDLERS.of(ClassScores)
def _class_scores(low: Lowering, layer: ClassScores, sources: tuple[str, ...]) -> None:
    raise ModelError(f"layer {layer.name}: a plain CNN is there to compare with, in float; use a capsule network")


def _conv(
    low: Lowering,
    layer: ConvReLU | ConvCaps2d | ConvNorm,
    source: str,
    output: str,
    relu: bool,
    high: int | None = None,
) -> None:
    """The convolution of a layer; ``high`` is the largest code of its output, None for that of the format."""
    name, window = layer.name, (layer.stride, layer.padding)
    weight, bias = layer.folded() if isinstance(layer, ConvNorm) else (layer.weight, layer.bias)
    groups = layer.groups if isinstance(layer, ConvNorm) else 1
    kernel = low.constant(f"{name}.weight", weight, OHWI)
    added = None if bias is None else low.constant(f"{name}.bias", bias)
    shifts = low.channel_shifts(f"{name}.weight")
    same = any(layer.extra)
    low.ops.append(ops.Conv2d(name, source, output, kernel, added, *window, relu, shifts, groups, high, same))


def _route(low: Lowering, layer: DenseCaps | RoutedConvCaps, types: int, shape: tuple[int, ...]) -> None:
    """The routing of a layer's votes into ``shape``; ``types`` rows of bias repeat over the output capsules."""
    name = layer.name
    out_capsules, in_capsules = layer.specs["coupling"].shape
    pair = (in_capsules, out_capsules)
    coupling = low.tensor(f"{name}.coupling", pair)
    logits = low.tensor(f"{name}.logits", pair) if layer.iterations > 1 else None
    preactivation, activation = low.tensor(f"{name}.preactivation", shape), low.tensor(f"{name}.activation", shape)
    bias = None if layer.bias is None else low.constant(f"{name}.bias", layer.bias)
    tensors = (f"{name}.votes", coupling, logits, preactivation, activation)
    low.ops.append(ops.Routing(f"{name}.route", *tensors, bias, types, layer.iterations))


def lower(
    model: CapsNet,
    plan: QuantPlan,
    *,
    name: str = "model",
    labels: tuple[str, ...] = (),
    meta: dict[str, str] | None = None,
) -> Program:
    """The integer Program of ``model`` under ``plan``.

    Args:
        model: a float model; batch norms are lowered with their running statistics.
        plan: a format for every point of the model.
        name: the Program's name, a C identifier.
        labels: names of the classes, or empty.
        meta: free text about its provenance.

    Raises:
        PlanError: the plan is not one for this model, or an accumulator could overflow 64 bits.
        ModelError: a layer has no integer form; the message names it.
    """
    plan.check(model)
    low = Lowering(plan, model.points())
    stages = model.stages()
    for stage in stages:
        for layer in stage.layers:
            if type(layer) not in HANDLERS:
                known = ", ".join(sorted(kind.__name__ for kind in HANDLERS))
                kind = type(layer).__name__
                raise ModelError(f"layer {layer.name}: type {kind} cannot become integers; supported types: {known}")
            HANDLERS[type(layer)](low, layer, stage.wiring[layer.name])
    output = stages[-1].outputs[0]
    lengths = f"{output.rpartition('.')[0]}.lengths"
    classes, dim = low.tensors[output].shape
    low.tensors[lengths] = TensorSpec(lengths, (classes,), lengths_format(low.format(output), dim))
    low.ops.append(ops.Lengths(lengths, output, lengths))
    program = Program(name, low.tensors, tuple(low.ops), PIXELS, output, lengths, plan.seed, labels, meta or {})
    verify(program)
    return program
