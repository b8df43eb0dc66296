"""Capsule layers: convolutional capsules, plain and routed (DeepCaps' 3-D convolution), and class capsules."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.conv import OIHW
from caplet.nn.layer import Layer, Padding, Window
from caplet.nn.points import PointSpec, Role, flash, ram
from caplet.nn.routing import in_parts, route

TDHW = ("type", "dim", "row", "column")
UNIT = (-1.0, 1.0)


def flatten_capsules(x: Tensor) -> Tensor:
    """Capsule maps (B, T, D, H, W) -> list of capsules (B, T*H*W, D), type by type, row by row."""
    return x.permute(0, 1, 3, 4, 2).flatten(1, 3)


class ConvCaps2d(Window):
    """Convolutional capsules without routing: one convolution over all types together, then squash.

    With an image-like input these are the primary capsules of ShallowCaps; with capsule input, DeepCaps' serial
    layers (Rajasegaran et al. 2019, section 3.1).

    Args:
        in_shape: (channels, H, W), the channels being types x dimension of the input.
        types, dim: capsule types and capsule dimension of the output.
        bias: whether a bias per (type, dimension) is added.
        flat: a capsule's components are neighbours in the map (types * dim, H', W') as PyTorch stores it, as codes have
            it that view a map as capsules; each capsule is then a type of its own, at one place.

    Input float (B, channels, H, W) -> float (B, types, dim, H', W'), or (B, types * H' * W', dim, 1, 1) where flat.
    """

    def __init__(
        self,
        name: str,
        in_shape: tuple[int, int, int],
        types: int,
        dim: int,
        kernel: int,
        stride: int = 1,
        padding: Padding = 0,
        *,
        bias: bool = True,
        flat: bool = False,
    ) -> None:
        super().__init__(name, in_shape, kernel, stride, padding)
        self.types, self.dim, self.flat = types, dim, flat
        maps = (types, dim, *self.positions)
        self.out_shape = (types * prod(self.positions), dim, 1, 1) if flat else maps
        self.weight = nn.Parameter(torch.empty(types * dim, in_shape[0], kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(types * dim)) if bias else None
        nn.init.xavier_uniform_(self.weight)
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, self.weight.shape),
            *([flash("bias", Role.BIAS, ("out",), (types * dim,))] if bias else []),
            ram("preactivation", Role.PREACTIVATION, TDHW, maps, signed=True),
            ram("activation", Role.ACTIVATION, TDHW, self.out_shape, signed=True, bound=UNIT, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.tap("bias", self.bias)
        x = F.conv2d(self.extended(x), self.tap("weight", self.weight), bias, self.stride, self.padding)
        x = self.tap("preactivation", x.view(x.shape[0], self.types, self.dim, *x.shape[2:]))
        return self.squash(x.reshape(len(x), *self.out_shape) if self.flat else x, 2)


def routing_points(
    out_capsules: int, in_capsules: int, dim: int, iterations: int, carries: bool = False
) -> tuple[PointSpec, ...]:
    """Points of a routing from ``in_capsules`` to ``out_capsules`` of ``dim`` dimensions; ``carries``: of its votes."""
    routed = iterations > 1
    pair, out = ("out", "in"), ("out", "dim")
    pairs, capsules = (out_capsules, in_capsules), (out_capsules, dim)
    logits = ram("logits", Role.LOGITS, pair, pairs, signed=True, routed=True)
    votes = ram("votes", Role.VOTES, ("out", "in", "dim"), (*pairs, dim), signed=True, routed=routed)
    return (
        replace(votes, carries=carries),
        ram("coupling", Role.COUPLING, pair, pairs, signed=False, bound=(0.0, 1.0), routed=routed),
        ram("preactivation", Role.PREACTIVATION, out, capsules, signed=True, routed=routed),
        ram("activation", Role.ACTIVATION, out, capsules, signed=True, bound=UNIT, output=True, routed=routed),
        *((logits,) if routed else ()),
    )


class DenseCaps(Layer):
    """Fully connected capsules with dynamic routing: the class capsules.

    Args:
        in_capsules, in_dim: input capsules (I of them vote), of K dimensions.
        out_capsules, dim: G output capsules of D dimensions.
        iterations: routing iterations, at least 1.
        bias: whether a bias per (output capsule, dimension) is added to the preactivation.
        input_indices: which input capsules vote, ascending; None for all of them.

    Parameters: ``weight`` float (I, K, G*D) with a row for each capsule that votes, ``bias`` float (G, D).
    Input float (B, in_capsules, K) -> float (B, G, D).

    Raises:
        ModelError: ``input_indices`` is empty, out of order or out of range.

    Source: Sabour et al. 2017, equation 2.
    """

    def __init__(
        self,
        name: str,
        in_capsules: int,
        in_dim: int,
        out_capsules: int,
        dim: int,
        iterations: int,
        *,
        bias: bool = True,
        input_indices: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(name)
        if input_indices is not None:
            found, in_order = len(input_indices), all(a < b for a, b in pairwise((-1, *input_indices, in_capsules)))
            if not found or not in_order:
                raise ModelError(
                    f"layer {name}: voting input capsules {input_indices[:3]}, ... ({found} of {in_capsules}); the rule"
                    f" is at least one index from 0 to {in_capsules - 1}, in rising order"
                )
            in_capsules = found
        self.input_indices = input_indices
        self.in_capsules, self.in_dim = in_capsules, in_dim
        self.out_capsules, self.dim, self.iterations = out_capsules, dim, iterations
        self.out_shape = (out_capsules, dim)
        self.weight = nn.Parameter(torch.empty(in_capsules, in_dim, out_capsules * dim))
        self.bias = nn.Parameter(torch.zeros(out_capsules, dim)) if bias else None
        nn.init.normal_(self.weight, std=0.1)
        self.declare(
            flash("weight", Role.WEIGHT, ("in", "in_dim", "out_dim"), self.weight.shape),
            *([flash("bias", Role.BIAS, ("out", "dim"), (out_capsules, dim))] if bias else []),
            *routing_points(out_capsules, in_capsules, dim, iterations, carries=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return in_parts(self, self._routed, x)

    def _routed(self, x: Tensor) -> Tensor:
        if self.input_indices is not None:
            x = x.index_select(1, torch.tensor(self.input_indices, device=x.device))
        votes = torch.bmm(x.transpose(0, 1), self.tap("weight", self.weight))  # I, B, G*D
        votes = votes.view(*votes.shape[:2], self.out_capsules, self.dim).permute(1, 2, 0, 3).contiguous()
        bias = None if self.bias is None else self.tap("bias", self.bias)
        return route(self, self.tap("votes", votes), bias, self.iterations)


class RoutedConvCaps(Window):
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
        super().__init__(name, in_shape, kernel, stride, padding)
        in_types, in_dim, _, _ = in_shape
        self.types, self.dim, self.iterations = types, dim, iterations
        self.out_shape = (types, dim, *self.positions)
        self.weight = nn.Parameter(torch.empty(types * dim, in_dim, kernel, kernel))
        self.vote_bias = nn.Parameter(torch.zeros(types * dim))
        self.bias = nn.Parameter(torch.zeros(types, dim))
        nn.init.kaiming_uniform_(self.weight)
        self.declare(
            flash("weight", Role.WEIGHT, OIHW, tuple(self.weight.shape)),
            flash("vote_bias", Role.BIAS, ("out",), (types * dim,)),
            flash("bias", Role.BIAS, ("type", "dim"), (types, dim)),
            *routing_points(prod(self.positions) * types, in_types, dim, iterations),
        )

    def forward(self, x: Tensor) -> Tensor:
        return in_parts(self, self._routed, x)

    def _routed(self, x: Tensor) -> Tensor:
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
