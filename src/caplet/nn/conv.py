"""The image's entry, and the layers of maps before the capsules: convolutions, pooling, residual sums, SE gates."""

from collections.abc import Callable
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.layer import Layer, Padding, Window
from caplet.nn.points import Role, flash, ram

CHW = ("channel", "row", "column")
OIHW = ("out", "in", "kernel_row", "kernel_column")


class InputLayer(Layer):
    """The input image, float (B, C, H, W) in [0, 1]; its one point is ``image``.

    Args:
        mean, std: per channel; the image becomes ``(x - mean) / std``, as pretrained networks expect it. None for
            pixels as they are.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(name)
        channels = shape[0]
        self.mean = mean or (0.0,) * channels
        self.std = std or (1.0,) * channels
        self.plain = mean is None and std is None
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            found = f"mean {self.mean} and std {self.std} for {channels} channels"
            raise ModelError(f"layer {name}: {found}; the rule is one of each per channel, std above 0")
        ends = [(end - m) / s for m, s in zip(self.mean, self.std, strict=True) for end in (0.0, 1.0)]
        bound = (min(ends), max(ends))
        self.declare(ram("image", Role.IMAGE, CHW, shape, signed=bound[0] < 0, bound=bound, output=True))

    def forward(self, x: Tensor) -> Tensor:
        if not self.plain:
            mean, std = x.new_tensor(self.mean).view(-1, 1, 1), x.new_tensor(self.std).view(-1, 1, 1)
            x = (x - mean) / std
        return self.tap("image", x)


def scale_and_offset(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm does at inference: the scale and offset of every channel, float (channels,) each."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


SLOPE_FRAC = 14
"""Fraction bits of a LeakyReLU's slope wherever numbers are fixed-point."""


class ConvReLU(Window):
    """Convolution, then ReLU or LeakyReLU; optionally batch norm *after* the ReLU (DeepCaps' first layer).

    Args:
        in_shape: (C, H, W) of the input.
        channels: output channels.
        batch_norm: what the batch norm after the ReLU adds to the variance, None for none; at inference it is a
            per-channel affine with points ``scale`` and ``offset``, applied to the point ``preactivation`` (the ReLU's
            output).
        slope: of negative values: 0 for ReLU. Any other, below 1, makes it a LeakyReLU, which reads the point
            ``linear``, the convolution's output; under a plan the slope has :data:`SLOPE_FRAC` bits.

    Input float (B, C, H, W) -> float (B, channels, H', W').
    """

    def __init__(
        self,
        name: str,
        in_shape: tuple[int, int, int],
        channels: int,
        kernel: int,
        stride: int = 1,
        padding: Padding = 0,
        *,
        batch_norm: float | None = None,
        slope: float = 0.0,
    ) -> None:
        super().__init__(name, in_shape, kernel, stride, padding)
        self.out_shape, self.slope = (channels, *self.positions), slope
        self.weight = nn.Parameter(torch.empty(channels, in_shape[0], kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.batch_norm = None if batch_norm is None else nn.BatchNorm2d(channels, eps=batch_norm)
        linear = ram("linear", Role.PREACTIVATION, CHW, self.out_shape, signed=True)
        norm = (
            ram("preactivation", Role.PREACTIVATION, CHW, self.out_shape, signed=slope > 0),
            flash("scale", Role.SCALE, ("out",), (channels,)),
            flash("offset", Role.OFFSET, ("out",), (channels,)),
        )
        signed = batch_norm is not None or slope > 0
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, self.weight.shape),
            flash("bias", Role.BIAS, ("out",), (channels,)),
            *([linear] if slope else []),
            *(norm if batch_norm is not None else ()),
            ram("activation", Role.ACTIVATION, CHW, self.out_shape, signed=signed, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tap("weight", self.weight), self.tap("bias", self.bias)
        x = F.conv2d(self.extended(x), weight, bias, self.stride, self.padding)
        if self.slope:
            rounded = self.handler is not None and self.handler.fixed_point
            slope = self.slope_code / (1 << SLOPE_FRAC) if rounded else self.slope
            x = F.leaky_relu(self.tap("linear", x), slope)
        else:
            x = F.relu_(x)
        if self.batch_norm is not None:
            x = self.tap("preactivation", x)
            if self.handler is None and self.batch_norm.training:
                x = self.batch_norm(x)
            else:
                scale, offset = self.affine()
                scale, offset = self.tap("scale", scale), self.tap("offset", offset)
                x = x * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
        return self.tap("activation", x)

    @property
    def slope_code(self) -> int:
        """The slope as a code of :data:`SLOPE_FRAC` fraction bits."""
        one = 1 << SLOPE_FRAC
        return max(1, min(round(self.slope * one), one - 1))

    def affine(self) -> tuple[Tensor, Tensor]:
        """The batch norm's per-channel scale and offset at inference, float (channels,) each."""
        assert self.batch_norm is not None
        return scale_and_offset(self.batch_norm)


MapShape = tuple[int, int, int]
"""(channels, rows, columns) of a map."""


class Activation(StrEnum):
    """What follows a convolution's batch norm."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    HARDSWISH = "hardswish"

    @property
    def signed(self) -> bool:
        """Whether negative values can come out."""
        return self in (Activation.NONE, Activation.HARDSWISH)


FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda x: x,
    Activation.RELU: F.relu,
    Activation.RELU6: F.relu6,
    Activation.HARDSWISH: F.hardswish,
}


class ConvNorm(Window):
    """Convolution without bias, batch norm, activation (in that order): the layer that CNN trunks are made of.

    While training, the batch norm uses the batch's statistics; else, and whenever a point handler is attached, it is
    folded into the convolution (:meth:`folded`), which is what the points ``weight`` and ``bias`` hold.

    Args:
        in_shape: (C, H, W) of the input.
        channels: output channels.
        depthwise: every channel has a filter of its own, and as many come out as come in.
        eps: added to the batch norm's variance.

    Input float (B, C, H, W) -> float (B, channels, H', W').

    Source: Ioffe and Szegedy 2015 (batch norm before the activation).
    """

    def __init__(
        self,
        name: str,
        in_shape: MapShape,
        channels: int,
        kernel: int,
        stride: int = 1,
        padding: Padding = 0,
        *,
        depthwise: bool = False,
        activation: Activation = Activation.RELU,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(name, in_shape, kernel, stride, padding)
        in_channels = in_shape[0]
        if depthwise and channels != in_channels:
            raise ModelError(f"layer {name}: depthwise from {in_channels} to {channels} channels; the rule is as many")
        self.depthwise, self.activation = depthwise, activation
        self.groups = in_channels if depthwise else 1
        self.out_shape = (channels, *self.positions)
        self.weight = nn.Parameter(torch.empty(channels, in_channels // self.groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(channels, eps=eps)
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, tuple(self.weight.shape)),
            flash("bias", Role.BIAS, ("out",), (channels,)),
            ram("activation", Role.ACTIVATION, CHW, self.out_shape, signed=activation.signed, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.extended(x)
        if self.handler is None and self.norm.training:
            x = F.conv2d(x, self.weight, None, self.stride, self.padding, 1, self.groups)
            return FUNCTIONS[self.activation](self.norm(x))
        weight, bias = self.folded()
        weight, bias = self.tap("weight", weight), self.tap("bias", bias)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)
        return self.tap("activation", FUNCTIONS[self.activation](x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (of the convolution's shape) and bias (channels,) that do what convolution and batch norm do."""
        scale, offset = scale_and_offset(self.norm)
        return self.weight * scale.view(-1, 1, 1, 1), offset


class MaxPool(Window):
    """Maximum over square windows; positions outside the map do not count.

    Args:
        signed: whether negative values come in.

    Input float (B, C, H, W) -> float (B, C, H', W').
    """

    def __init__(
        self, name: str, in_shape: MapShape, kernel: int, stride: int, padding: int = 0, *, signed: bool = False
    ) -> None:
        super().__init__(name, in_shape, kernel, stride, padding)
        if 2 * padding > kernel:
            raise ModelError(f"layer {name}: padding {padding}; the rule is at most half of the kernel {kernel}")
        self.out_shape = (in_shape[0], *self.positions)
        self.declare(ram("activation", Role.ACTIVATION, CHW, self.out_shape, signed=signed, output=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.tap("activation", F.max_pool2d(x, self.kernel, self.stride, self.padding))


class MapSum(Layer):
    """Sum of two maps (B, C, H, W), with a ReLU where asked for; the result has the point ``activation``."""

    def __init__(self, name: str, shape: MapShape, *, relu: bool) -> None:
        super().__init__(name)
        self.relu = relu
        self.out_shape = shape
        self.declare(ram("activation", Role.ACTIVATION, CHW, shape, signed=not relu, output=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = a + b
        return self.tap("activation", F.relu(total) if self.relu else total)


class SqueezeExcite(Layer):
    """Every channel times a gate in [0, 1] that depends on all channels' means (Hu et al. 2018; MobileNetV3's form).

    gate = hardsigmoid(expand . relu(reduce . mean(x) + reduce_bias) + expand_bias). In float and fake-quant only.

    Args:
        hidden: channels between the two matrices.
        signed: whether negative values come in.
    """

    def __init__(self, name: str, shape: MapShape, hidden: int, *, signed: bool) -> None:
        super().__init__(name)
        channels = shape[0]
        self.out_shape = shape
        self.reduce = nn.Parameter(torch.empty(hidden, channels))
        self.reduce_bias = nn.Parameter(torch.zeros(hidden))
        self.expand = nn.Parameter(torch.empty(channels, hidden))
        self.expand_bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.reduce)
        nn.init.kaiming_normal_(self.expand)
        self.declare(
            flash("reduce", Role.WEIGHT, ("out", "in"), (hidden, channels)),
            flash("reduce_bias", Role.BIAS, ("out",), (hidden,)),
            flash("expand", Role.WEIGHT, ("out", "in"), (channels, hidden)),
            flash("expand_bias", Role.BIAS, ("out",), (channels,)),
            ram("mean", Role.ACTIVATION, ("channel",), (channels,), signed=signed),
            ram("hidden", Role.ACTIVATION, ("channel",), (hidden,), signed=False),
            ram("gate", Role.ACTIVATION, ("channel",), (channels,), signed=False, bound=(0.0, 1.0)),
            ram("activation", Role.ACTIVATION, CHW, shape, signed=signed, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.tap("mean", x.mean((2, 3)))
        reduce, reduce_bias = self.tap("reduce", self.reduce), self.tap("reduce_bias", self.reduce_bias)
        hidden = self.tap("hidden", F.relu(F.linear(mean, reduce, reduce_bias)))
        expand, expand_bias = self.tap("expand", self.expand), self.tap("expand_bias", self.expand_bias)
        gate = self.tap("gate", F.hardsigmoid(F.linear(hidden, expand, expand_bias)))
        return self.tap("activation", x * gate[:, :, None, None])


class ClassScores(Layer):
    """The end of a plain CNN: softmax of a matrix times every channel's mean over the map. In float only.

    Input float (B, C, H, W) -> class probabilities, float (B, classes, 1).
    """

    def __init__(self, name: str, shape: MapShape, classes: int) -> None:
        super().__init__(name)
        channels = shape[0]
        self.weight = nn.Parameter(torch.empty(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.xavier_uniform_(self.weight)
        self.declare(
            flash("weight", Role.WEIGHT, ("out", "in"), (classes, channels)),
            flash("bias", Role.BIAS, ("out",), (classes,)),
            ram("mean", Role.ACTIVATION, ("channel",), (channels,), signed=False),
            ram("scores", Role.PREACTIVATION, ("out",), (classes,), signed=True),
            ram("activation", Role.ACTIVATION, ("out", "dim"), (classes, 1), signed=False, bound=(0, 1), output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.tap("mean", x.mean((2, 3)))
        scores = F.linear(mean, self.tap("weight", self.weight), self.tap("bias", self.bias))
        return self.tap("activation", torch.softmax(self.tap("scores", scores), 1)[:, :, None])
