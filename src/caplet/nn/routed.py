"""Convolutional capsules with dynamic routing: DeepCaps' 3-D convolution (Rajasegaran et al. 2019, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.nn.caps import TDHW, routing_points
from caplet.nn.conv import OIHW
from caplet.nn.functional import route
from caplet.nn.layer import Layer, conv_size
from caplet.nn.points import Role, flash, ram


class RoutedConvCaps(Layer):
    """Every input type votes through one shared convolution; the votes are routed.

    The papers write this as a 3-D convolution with kernel (K, k, k) and stride K in depth over the stacked input
    types; it is computed as a 2-D convolution over each type.

    Args:
        in_shape: (I, K, H, W): input types, input dimension, rows, columns.
        types, dim: J output types of D dimensions.
        iterations: routing iterations; the softmax runs over (types x rows x columns) jointly.

    Output capsules are counted position by position, types fastest, inside the routing.

    Parameters: ``weight`` float (J*D, K, k, k), ``vote_bias`` float (J*D) added to every vote, ``bias`` float (J, D)
    added to every preactivation.
    Input float (B, I, K, H, W) -> float (B, J, D, H', W').
    """

    def __init__(
        self,
        name: str,
        in_shape: tuple[int, int, int, int],
        types: int,
        dim: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        iterations: int = 3,
    ) -> None:
        super().__init__(name)
        in_types, in_dim, height, width = in_shape
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.types, self.dim, self.iterations = types, dim, iterations
        self.in_shape = in_shape
        rows = conv_size(name, height, kernel, stride, padding)
        columns = conv_size(name, width, kernel, stride, padding)
        self.out_shape = (types, dim, rows, columns)
        self.weight = nn.Parameter(torch.empty(types * dim, in_dim, kernel, kernel))
        self.vote_bias = nn.Parameter(torch.zeros(types * dim))
        self.bias = nn.Parameter(torch.zeros(types, dim))
        nn.init.kaiming_uniform_(self.weight)
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, tuple(self.weight.shape)),
            flash("vote_bias", Role.BIAS, ("out",), (types * dim,)),
            flash("bias", Role.BIAS, ("type", "dim"), (types, dim)),
            *routing_points(types * rows * columns, in_types, dim, iterations),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, in_types = x.shape[:2]
        types, dim, rows, columns = self.out_shape
        weight, vote_bias = self.tap("weight", self.weight), self.tap("vote_bias", self.vote_bias)
        votes = F.conv2d(x.flatten(0, 1), weight, vote_bias, self.stride, self.padding)
        votes = votes.view(batch, in_types, types, dim, rows, columns)
        votes = votes.permute(0, 4, 5, 2, 1, 3).contiguous().view(batch, rows * columns * types, in_types, dim)
        bias = self.tap("bias", self.bias).repeat(rows * columns, 1)
        capsules = route(self, self.tap("votes", votes), bias, self.iterations)
        return capsules.view(batch, rows, columns, types, dim).permute(0, 3, 4, 1, 2)


class ResidualAdd(Layer):
    """Sum of two capsule maps (B, T, D, H, W); the sum has a point of its own, ``sum``."""

    def __init__(self, name: str, shape: tuple[int, int, int, int]) -> None:
        super().__init__(name)
        self.declare(ram("sum", Role.ACTIVATION, TDHW, shape, signed=True, bound=(-2.0, 2.0), output=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.tap("sum", a + b)
