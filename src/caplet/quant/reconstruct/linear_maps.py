"""Layers as linear maps of their weights: convolutions on a sample of their output positions, class capsules through
their routing's couplings; one entry per layer type that has weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.caps import ConvCaps2d, DenseCaps, RoutedConvCaps
from caplet.nn.conv import Activation, ConvNorm, ConvReLU
from caplet.nn.layer import Layer
from caplet.nn.points import Watch
from caplet.quant.reconstruct.adaptive_rounding import Linear
from caplet.quant.reconstruct.settings import ReconstructSettings

_COLUMNS = 256
"""Columns of a block, unless one kernel position or one capsule has more."""
_BATCH = 64

View = tuple[Linear, str | None]
"""A layer's weights as a linear map of its inputs, and the name of the parameter that shifts the map's outputs, element
by element; None where there is none."""


class ConvLinear:
    """A convolution (O, I, kh, kw) as one linear map, or a depthwise one (C, 1, kh, kw) as a small map per channel.

    Rows are a sample of its output positions. The columns of a block are whole kernel positions; of a depthwise
    convolution all of them. Nothing is unfolded: a kernel position's columns are rows of the channels-last maps,
    gathered when asked for.

    Args:
        weight: its shape.
        quantized, exact: float (N, I, H, W): the layer's input as quantized and in float.
        rows: output positions to use, of all images together; all of them where there are fewer.
        generator: chooses them.
    """

    unit = 1

    def __init__(
        self,
        weight: torch.Size,
        quantized: Tensor,
        exact: Tensor,
        stride: int,
        padding: int,
        rows: int,
        generator: torch.Generator,
        *,
        depthwise: bool = False,
    ) -> None:
        self._shape, self._depthwise = weight, depthwise
        self.same, self.moments = torch.equal(quantized, exact), list[Tensor]()
        self._exact = _channels_last(exact, padding)
        self._quantized = self._exact if self.same else _channels_last(quantized, padding)
        self.nbytes = self._exact.nbytes + (0 if self.same else self._quantized.nbytes)
        images, height, width = quantized.shape[0], *(size + 2 * padding for size in quantized.shape[2:])
        out_height, out_width = ((size - k) // stride + 1 for size, k in zip((height, width), weight[2:], strict=True))
        total = images * out_height * out_width
        picked = torch.randperm(total, generator=generator)[:rows].sort().values.to(exact.device)
        image, position = picked // (out_height * out_width), picked % (out_height * out_width)
        # Places of the windows' first elements among all padded positions of all images, and distances from there.
        self._base = (image * height + position // out_width * stride) * width + position % out_width * stride
        down, across = (torch.arange(size, device=exact.device) for size in weight[2:])
        places = (down[:, None] * width + across).flatten()
        self._offsets = torch.split(places, len(places) if depthwise else max(1, _COLUMNS // weight[1]))
        self.blocks = len(self._offsets)
        self.scale = self._exact.new_ones(weight[0] if depthwise else 1, len(self._base), 1)

    def weigh(self, weight: Tensor, bias: Tensor | None, passed: Callable[[Tensor], Tensor]) -> None:
        """Weigh every row by how much of an error there the non-linearity after the sums passes on.

        Args:
            weight, bias: of the float layer.
            passed: how much of an error in the float sums (groups, rows, outputs), element by element or capsule by
                capsule.
        """
        groups, rows, _ = self.scale.shape
        bias = weight.new_zeros(self._shape[0]) if bias is None else bias
        sums = bias.view(groups, 1, -1).expand(-1, rows, -1).clone()
        for block, matrix in enumerate(self.split(weight)):
            sums.baddbmm_(self._gather(self._exact, block), matrix)
        self.scale = passed(sums).square().mean(-1, keepdim=True).sqrt()

    def columns(self, block: int) -> Tensor:
        return self.scale * self._gather(self._quantized, block)

    def difference(self, block: int) -> Tensor:
        return self.scale * (self._gather(self._quantized, block) - self._gather(self._exact, block))

    def _gather(self, maps: Tensor, block: int) -> Tensor:
        found = maps[self._base[:, None] + self._offsets[block]]  # rows, kernel positions, I
        return found.permute(2, 0, 1).contiguous() if self._depthwise else found.flatten(1).unsqueeze(0)

    def split(self, weight: Tensor) -> list[Tensor]:
        if self._depthwise:
            return [weight.flatten(1).unsqueeze(-1).contiguous()]
        out, channels = self._shape[:2]
        matrix = weight.permute(2, 3, 1, 0).reshape(-1, channels, out)
        sizes = [len(offsets) for offsets in self._offsets]
        return [part.reshape(1, -1, out).contiguous() for part in torch.split(matrix, sizes)]

    def join(self, matrices: list[Tensor]) -> Tensor:
        if self._depthwise:
            return matrices[0].reshape(self._shape)
        out, channels, kernel_rows, kernel_columns = self._shape
        matrix = torch.cat(matrices, 1).view(kernel_rows, kernel_columns, channels, out)
        return matrix.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _channels_last(maps: Tensor, padding: int) -> Tensor:
    """(N, C, H, W) -> (N * H' * W', C) with a border of zeros."""
    padded = F.pad(maps, (padding,) * 4) if padding else maps
    return padded.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


class CapsuleLinear:
    """The map from input capsules to preactivations, one per output capsule, with the float routing's couplings.

    A preactivation is ``sum over i of c_i W_i x_i``: linear in the weights for given couplings. Each image gives a row
    for every routing iteration. The row's error is weighted by how much the squash passes of it: rows in which a
    capsule is short or saturated count less.

    Args:
        layer: the float layer.
        quantized, exact: float (N, I, K): the layer's input as quantized and in float, capsules that do not vote too.
    """

    def __init__(self, layer: DenseCaps, quantized: Tensor, exact: Tensor) -> None:
        self.unit = layer.in_dim
        chosen = layer.input_indices
        voters = slice(None) if chosen is None else torch.tensor(chosen, device=exact.device)
        self._quantized, self._exact = quantized[:, voters], exact[:, voters]
        self.same, self.moments = torch.equal(quantized, exact), list[Tensor]()
        self._out = (layer.out_capsules, layer.dim)
        coupling, preactivation = _routing(layer, exact)  # (T, N, G, I), (T, N, G, D)
        self._coupling = coupling.permute(2, 0, 1, 3).flatten(1, 2)  # G, T * N, I
        self.nbytes = self._quantized.nbytes + self._exact.nbytes + self._coupling.nbytes
        per_block = max(1, _COLUMNS // layer.in_dim)
        self._ranges = [
            slice(start, min(start + per_block, layer.in_capsules)) for start in range(0, layer.in_capsules, per_block)
        ]
        self.blocks = len(self._ranges)
        self.scale = passed(preactivation).permute(2, 0, 1).flatten(1).unsqueeze(-1)

    def columns(self, block: int) -> Tensor:
        return self._weighted(self._quantized[:, self._ranges[block]], block)

    def difference(self, block: int) -> Tensor:
        chosen = self._ranges[block]
        return self._weighted(self._quantized[:, chosen] - self._exact[:, chosen], block)

    def _weighted(self, capsules: Tensor, block: int) -> Tensor:
        """Capsules (N, i, K) times coupling and row weight: (G, T * N, i * K)."""
        factor = self._coupling[:, :, self._ranges[block]] * self.scale  # G, T * N, i
        iterations = factor.shape[1] // len(capsules)
        by_iteration = torch.unflatten(factor, 1, (iterations, -1)).unsqueeze(-1)
        return (by_iteration * capsules).flatten(3).flatten(1, 2)

    def split(self, weight: Tensor) -> list[Tensor]:
        out_capsules, dim = self._out
        by_capsule = torch.unflatten(weight, 2, (out_capsules, dim)).permute(2, 0, 1, 3)  # G, I, K, D
        return [by_capsule[:, chosen].flatten(1, 2).contiguous() for chosen in self._ranges]

    def join(self, matrices: list[Tensor]) -> Tensor:
        by_capsule = torch.unflatten(torch.cat(matrices, 1), 1, (-1, self.unit))
        return by_capsule.permute(1, 2, 0, 3).flatten(2).contiguous()


def _routing(layer: DenseCaps, capsules: Tensor) -> tuple[Tensor, Tensor]:
    """Couplings (T, N, G, I) and preactivations (T, N, G, D) of all iterations in float."""
    found: dict[str, list[Tensor]] = {"coupling": [], "preactivation": []}
    couplings, preactivations = [], []
    previous = layer.handler
    layer.handler = Watch(lambda key, spec, value, iteration: found.get(spec.name, []).append(value))
    try:
        with torch.inference_mode():
            for batch in torch.split(capsules, _BATCH):
                layer(batch)
                couplings.append(torch.stack([c.expand(len(batch), -1, -1) for c in found["coupling"]]))
                preactivations.append(torch.stack(found["preactivation"]))
                for values in found.values():
                    values.clear()
    finally:
        layer.handler = previous
    return torch.cat(couplings, 1).clone(), torch.cat(preactivations, 1).clone()


def passed(preactivation: Tensor) -> Tensor:
    """Root mean square of the squash's Jacobian over the directions of a capsule: (..., D) -> (...).

    Across s the squash multiplies by f = |s| / (1 + |s|^2), along s by 2 |s| / (1 + |s|^2)^2.
    """
    dim = preactivation.shape[-1]
    size = torch.linalg.vector_norm(preactivation, dim=-1)
    across = size / (1 + size**2)
    along = 2 * size / (1 + size**2) ** 2
    return torch.sqrt(((dim - 1) * across**2 + along**2) / dim)


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


def _convolution(
    layer: ConvReLU | ConvNorm | ConvCaps2d | RoutedConvCaps,
    quantized: Tensor,
    exact: Tensor,
    settings: ReconstructSettings,
) -> ConvLinear:
    weight, depthwise = layer.weight, isinstance(layer, ConvNorm) and layer.depthwise
    rows = max(settings.least_rows, round(settings.rows_per_column * weight[0].numel()))
    generator = torch.Generator().manual_seed(settings.seed)
    sample = (layer.stride, layer.padding, _DEPTHWISE_ROWS if depthwise else rows, generator)
    return ConvLinear(weight.shape, layer.extended(quantized), layer.extended(exact), *sample, depthwise=depthwise)


def _conv_relu(layer: ConvReLU | ConvNorm, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    """A trunk's batch norm is folded (:func:`caplet.quant.reconstruct.equalization.folded`)."""
    weight, bias = layer.folded() if isinstance(layer, ConvNorm) else (layer.weight, layer.bias)
    leak = layer.slope if isinstance(layer, ConvReLU) else 0.0
    slope = _PASSED[layer.activation if isinstance(layer, ConvNorm) else Activation.RELU]
    linear = _convolution(layer, quantized, exact, settings)
    linear.weigh(weight.detach(), bias.detach(), lambda sums: slope(sums).clamp_min(leak) if leak else slope(sums))
    return linear, "bias"


def _conv_caps(layer: ConvCaps2d, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    linear = _convolution(layer, quantized, exact, settings)
    bias, caps = None if layer.bias is None else layer.bias.detach(), (layer.types, layer.dim)
    if not layer.flat:  # of flat capsules a row, which is one position, holds single components: each counts alike
        linear.weigh(layer.weight.detach(), bias, lambda sums: passed(torch.unflatten(sums, -1, caps)))
    return linear, None if layer.bias is None else "bias"


def _routed_conv_caps(layer: RoutedConvCaps, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    """All input types share one convolution: each vote counts alike, whatever its coupling."""
    return _convolution(layer, quantized.flatten(0, 1), exact.flatten(0, 1), settings), "vote_bias"


def _dense_caps(layer: DenseCaps, quantized: Tensor, exact: Tensor, settings: ReconstructSettings) -> View:
    return CapsuleLinear(layer, quantized, exact), None if layer.bias is None else "bias"


VIEWS: Mapping[type[Layer], Callable[[Any, Tensor, Tensor, ReconstructSettings], View]] = {
    ConvReLU: _conv_relu,
    ConvCaps2d: _conv_caps,
    RoutedConvCaps: _routed_conv_caps,
    DenseCaps: _dense_caps,
    ConvNorm: _conv_relu,
}


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


def parameter_of(layer: Layer, name: str) -> nn.Parameter:
    """The parameter that holds a point; of a trunk's convolution, the bias is that of its folded batch norm."""
    if isinstance(layer, ConvNorm) and name == "bias":
        return layer.norm.bias
    parameter = getattr(layer, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter
