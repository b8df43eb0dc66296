"""The image's entry and the plain convolutions before the capsules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.layer import Layer, conv_size
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
            raise ModelError(
                f"layer {name}: mean {self.mean} and std {self.std} for {channels} channels; the rule is one of each"
                " per channel, std above 0"
            )
        ends = [(end - m) / s for m, s in zip(self.mean, self.std, strict=True) for end in (0.0, 1.0)]
        bound = (min(ends), max(ends))
        self.declare(ram("image", Role.IMAGE, CHW, shape, signed=bound[0] < 0, bound=bound, output=True))

    def forward(self, x: Tensor) -> Tensor:
        if not self.plain:
            mean, std = x.new_tensor(self.mean).view(-1, 1, 1), x.new_tensor(self.std).view(-1, 1, 1)
            x = (x - mean) / std
        return self.tap("image", x)


class ConvReLU(Layer):
    """Convolution, then ReLU; optionally batch norm *after* the ReLU (DeepCaps' first layer).

    Args:
        in_shape: (C, H, W) of the input.
        channels: output channels.
        batch_norm: add batch norm after the ReLU; at inference it is a per-channel affine with points ``scale`` and
            ``offset``, applied to the point ``preactivation`` (the ReLU's output).

    Input float (B, C, H, W) -> float (B, channels, H', W').
    """

    def __init__(
        self,
        name: str,
        in_shape: tuple[int, int, int],
        channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(name)
        in_channels, height, width = in_shape
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.in_shape = in_shape
        self.out_shape = (
            channels,
            conv_size(name, height, kernel, stride, padding),
            conv_size(name, width, kernel, stride, padding),
        )
        self.weight = nn.Parameter(torch.empty(channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.batch_norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1) if batch_norm else None
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, tuple(self.weight.shape)),
            flash("bias", Role.BIAS, ("out",), (channels,)),
        )
        if batch_norm:
            self.declare(
                ram("preactivation", Role.PREACTIVATION, CHW, self.out_shape, signed=False),
                flash("scale", Role.SCALE, ("out",), (channels,)),
                flash("offset", Role.OFFSET, ("out",), (channels,)),
            )
        self.declare(ram("activation", Role.ACTIVATION, CHW, self.out_shape, signed=batch_norm, output=True))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tap("weight", self.weight), self.tap("bias", self.bias)
        x = F.relu_(F.conv2d(x, weight, bias, self.stride, self.padding))
        if self.batch_norm is not None:
            x = self._normalise(self.tap("preactivation", x), self.batch_norm)
        return self.tap("activation", x)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The batch norm's per-channel scale and offset at inference, float (channels,) each."""
        assert self.batch_norm is not None
        norm = self.batch_norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return scale, norm.bias - norm.running_mean * scale

    def _normalise(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        if self.handler is None and norm.training:
            return norm(x)
        scale, offset = self.affine()
        scale, offset = self.tap("scale", scale), self.tap("offset", offset)
        return x * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
