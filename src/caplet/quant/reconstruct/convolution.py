"""Convolutions as linear maps on a sample of their output positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256
"""Columns of a block, unless one kernel position has more."""


class ConvLinear:
    """A convolution (O, I, kh, kw) as one linear map; the columns of a block are whole kernel positions.

    Nothing is unfolded: a kernel position's columns are rows of the channels-last maps, gathered when asked for.

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
    ) -> None:
        self._shape = weight
        self._quantized, self._exact = _channels_last(quantized, padding), _channels_last(exact, padding)
        self._base, offsets = _sample(weight, quantized.shape, stride, padding, rows, generator)
        per_block = max(1, _BLOCK // weight[1])
        self._offsets = [offsets[start : start + per_block] for start in range(0, len(offsets), per_block)]
        self.blocks = len(self._offsets)
        self.scale = torch.ones(1, len(self._base), 1)

    def weigh(self, weight: Tensor, bias: Tensor | None, passed: Callable[[Tensor], Tensor]) -> None:
        """Weigh every row by how much of an error there the non-linearity after the sums passes on.

        Args:
            weight, bias: of the float layer.
            passed: from the float sums (rows, O) to the rows' weights (rows,).
        """
        sums = (
            torch.zeros(self.scale.shape[1], self._shape[0]) if bias is None else bias.expand(self.scale.shape[1], -1)
        )
        sums = sums.unsqueeze(0).clone()
        for block, matrix in enumerate(self.split(weight)):
            sums.baddbmm_(self._gather(self._exact, block), matrix)
        self.scale = passed(sums[0]).view(1, -1, 1)

    def columns(self, block: int) -> Tensor:
        return self.scale * self._gather(self._quantized, block)

    def difference(self, block: int) -> Tensor:
        return self.scale * (self._gather(self._quantized, block) - self._gather(self._exact, block))

    def _gather(self, maps: Tensor, block: int) -> Tensor:
        return torch.cat([maps[self._base + offset] for offset in self._offsets[block]], 1).unsqueeze(0)

    def split(self, weight: Tensor) -> list[Tensor]:
        out, channels = self._shape[:2]
        matrix = weight.permute(2, 3, 1, 0).reshape(-1, channels, out)
        sizes = [len(offsets) for offsets in self._offsets]
        return [part.reshape(1, -1, out).contiguous() for part in matrix.split(sizes)]

    def join(self, matrices: list[Tensor]) -> Tensor:
        out, channels, kernel_rows, kernel_columns = self._shape
        matrix = torch.cat(matrices, 1).view(kernel_rows, kernel_columns, channels, out)
        return matrix.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


class DepthwiseLinear:
    """A depthwise convolution (C, 1, kh, kw) as one small linear map per channel; arguments as of
    :class:`ConvLinear`."""

    unit = 1
    blocks = 1

    def __init__(
        self,
        weight: torch.Size,
        quantized: Tensor,
        exact: Tensor,
        stride: int,
        padding: int,
        rows: int,
        generator: torch.Generator,
    ) -> None:
        self._shape = weight
        base, offsets = _sample(weight, quantized.shape, stride, padding, rows, generator)
        index = base[:, None] + torch.tensor(offsets)
        self._quantized, self._exact = (
            _channels_last(maps, padding)[index].permute(2, 0, 1).contiguous() for maps in (quantized, exact)
        )  # C, rows, kh * kw
        self.scale = torch.ones(weight[0], len(base), 1)

    def weigh(self, weight: Tensor, bias: Tensor, passed: Callable[[Tensor], Tensor]) -> None:
        """As :meth:`ConvLinear.weigh`, with a weight for every channel of a row: ``passed`` keeps the shape."""
        self.scale = passed(torch.bmm(self._exact, self.split(weight)[0]) + bias.view(-1, 1, 1))

    def columns(self, block: int) -> Tensor:
        return self.scale * self._quantized

    def difference(self, block: int) -> Tensor:
        return self.scale * (self._quantized - self._exact)

    def split(self, weight: Tensor) -> list[Tensor]:
        return [weight.flatten(1).unsqueeze(-1).contiguous()]

    def join(self, matrices: list[Tensor]) -> Tensor:
        return matrices[0].reshape(self._shape)


def _sample(
    weight: torch.Size, maps: torch.Size, stride: int, padding: int, rows: int, generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """Some output positions, as places of their windows' first elements among all padded positions of all images, and
    the distances of the windows' elements from there."""
    _, _, kernel_rows, kernel_columns = weight
    images, height, width = maps[0], *(size + 2 * padding for size in maps[2:])
    out_height, out_width = (height - kernel_rows) // stride + 1, (width - kernel_columns) // stride + 1
    total = images * out_height * out_width
    picked = torch.randperm(total, generator=generator)[:rows].sort().values
    image, position = picked // (out_height * out_width), picked % (out_height * out_width)
    base = (image * height + position // out_width * stride) * width + position % out_width * stride
    return base, [row * width + column for row in range(kernel_rows) for column in range(kernel_columns)]


def _channels_last(maps: Tensor, padding: int) -> Tensor:
    """(N, C, H, W) -> (N * H' * W', C) with a border of zeros."""
    padded = F.pad(maps, (padding,) * 4) if padding else maps
    return padded.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
