"""How each layer type's weights look as linear maps; one entry per layer type that has weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.caps import ConvCaps2d, DenseCaps, RoutedConvCaps
from caplet.nn.conv import Activation, ConvNorm, ConvReLU
from caplet.nn.layer import Layer
from caplet.quant.reconstruct.adaptive_rounding import Linear
from caplet.quant.reconstruct.capsules import CapsuleLinear, passed
from caplet.quant.reconstruct.convolution import ConvLinear, DepthwiseLinear
from caplet.quant.reconstruct.settings import ReconstructSettings

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True)
class View:
    """One layer's weights as a linear map.

    Attributes:
        linear: the map on the calibration images.
        bias: name of the parameter that shifts the map's outputs, element by element; None where there is none.
    """

    linear: Linear
    bias: str | None


Make = Callable[[L, Tensor, Tensor, ReconstructSettings], View]
VIEWS: dict[type[Layer], Make] = {}


def views(layer: type[L]) -> Callable[[Make[L]], Make[L]]:
    """Register the view of a layer type; a second one for the same type raises ValueError."""

    def register(make: Make[L]) -> Make[L]:
        if layer in VIEWS:
            raise ValueError(f"layer type {layer.__name__} already has a view")
        VIEWS[layer] = make
        return make

    return register


def make_view(layer: Layer, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    """The view of the float ``layer`` on its inputs as quantized and in float.

    Raises:
        ModelError: no view knows the layer's type.
    """
    make = VIEWS.get(type(layer))
    if make is None:
        known = ", ".join(sorted(kind.__name__ for kind in VIEWS))
        raise ModelError(
            f"layer {layer.name}: type {type(layer).__name__} cannot be reconstructed; supported types: {known}"
        )
    return make(layer, quantized, exact, settings)


def _convolution(
    weight: Tensor, quantized: Tensor, exact: Tensor, stride: int, padding: int, settings: ReconstructSettings
) -> ConvLinear:
    rows = max(settings.least_rows, round(settings.rows_per_column * weight[0].numel()))
    generator = torch.Generator().manual_seed(settings.seed)
    return ConvLinear(weight.shape, quantized, exact, stride, padding, rows, generator)


@views(ConvReLU)
def _conv_relu(layer: ConvReLU, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    linear = _convolution(layer.weight, quantized, exact, layer.stride, layer.padding, settings)
    linear.weigh(layer.weight.detach(), layer.bias.detach(), lambda sums: (sums > 0).float().mean(1).sqrt())
    return View(linear, "bias")


@views(ConvCaps2d)
def _conv_caps(layer: ConvCaps2d, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    linear = _convolution(layer.weight, quantized, exact, layer.stride, layer.padding, settings)
    capsules = (layer.types, layer.dim)
    bias = None if layer.bias is None else layer.bias.detach()
    linear.weigh(layer.weight.detach(), bias, lambda sums: passed(sums.unflatten(1, capsules)).square().mean(1).sqrt())
    return View(linear, None if layer.bias is None else "bias")


@views(RoutedConvCaps)
def _routed_conv_caps(layer: RoutedConvCaps, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    """All input types share one convolution: each vote counts alike, whatever its coupling."""
    maps = (quantized.flatten(0, 1), exact.flatten(0, 1))
    return View(_convolution(layer.weight, *maps, layer.stride, layer.padding, settings), "vote_bias")


@views(DenseCaps)
def _dense_caps(layer: DenseCaps, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    return View(CapsuleLinear(layer, quantized, exact), None if layer.bias is None else "bias")


_PASSED: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: torch.ones_like,
    Activation.RELU: lambda sums: (sums > 0).float(),
    Activation.RELU6: lambda sums: ((sums > 0) & (sums < 6)).float(),
    Activation.HARDSWISH: lambda sums: (
        ((2 * sums + 3) / 6).masked_fill(sums > 3, 1.0).masked_fill(sums < -3, 0.0).abs()
    ),
}
"""How much of a small error the activation passes on: its slope, by size."""
_DEPTHWISE_ROWS = 2048
"""A depthwise filter has a handful of weights."""


@views(ConvNorm)
def _conv_norm(layer: ConvNorm, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    """A trunk's convolution whose batch norm is folded (:func:`caplet.quant.reconstruct.fold.folded`)."""
    weight, bias = (tensor.detach() for tensor in layer.folded())
    slope = _PASSED[layer.activation]
    if layer.depthwise:
        generator = torch.Generator().manual_seed(settings.seed)
        own = DepthwiseLinear(weight.shape, quantized, exact, layer.stride, layer.padding, _DEPTHWISE_ROWS, generator)
        own.weigh(weight, bias, slope)
        return View(own, "bias")
    linear = _convolution(weight, quantized, exact, layer.stride, layer.padding, settings)
    linear.weigh(weight, bias, lambda sums: slope(sums).square().mean(1).sqrt())
    return View(linear, "bias")


def parameter_of(layer: Layer, name: str) -> nn.Parameter:
    """The parameter that holds a point; of a trunk's convolution, the bias is that of its folded batch norm."""
    if isinstance(layer, ConvNorm) and name == "bias":
        return layer.norm.bias
    parameter = getattr(layer, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter
