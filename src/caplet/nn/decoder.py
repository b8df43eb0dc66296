"""Decoders: reconstruct the image from one class capsule. They regularise training and are never shipped."""

from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def longest(capsules: Tensor) -> Tensor:
    """Index of the longest capsule of each image (the first on a tie): (B, G, D) -> int64 (B,)."""
    return (capsules * capsules).sum(-1, dtype=torch.float32).argmax(1)


class Decoder(nn.Module):
    """Base of the decoders: class capsules float (B, G, D) -> image float (B, C, H, W) in (0, 1).

    Attributes:
        image: (C, H, W) of the reconstruction.
    """

    def __init__(self, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.image = image

    def forward(self, capsules: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstruct from the capsule of the true class, or without ``labels`` from the longest.

        Args:
            capsules: float (B, G, D).
            labels: int64 (B,), or None.
        """
        return self.decode(capsules, longest(capsules) if labels is None else labels)

    def decode(self, capsules: Tensor, chosen: Tensor) -> Tensor:
        """Reconstruct from the capsule ``chosen``, int64 (B,), of each image."""
        raise NotImplementedError


class DenseDecoder(Decoder):
    """Three fully connected layers over all class capsules, those not chosen set to zero.

    Args:
        classes, dim: number and dimension of the class capsules.
        image: (C, H, W).
        hidden: widths of the hidden layers.

    Source: Sabour et al. 2017, figure 2.
    """

    def __init__(
        self, classes: int, dim: int, image: tuple[int, int, int], hidden: tuple[int, ...] = (512, 1024)
    ) -> None:
        super().__init__(image)
        widths = (classes * dim, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], prod(image)))

    def decode(self, capsules: Tensor, chosen: Tensor) -> Tensor:
        mask = F.one_hot(chosen, capsules.shape[1]).to(capsules.dtype)
        pixels: Tensor = self.net((capsules * mask.unsqueeze(-1)).flatten(1))
        return torch.sigmoid(pixels.float()).view(pixels.shape[0], *self.image)


class ConvDecoder(Decoder):
    """Transposed convolutions over the chosen class capsule alone, so that all classes share what a dimension means.

    The capsule becomes a map of a quarter of the image's size (rounded up), doubled twice and cropped.

    Args:
        dim: dimension of the class capsules.
        image: (C, H, W), any size.

    Source: Rajasegaran et al. 2019, section 3.3; differs by starting at a quarter of the image's size, so that any
    size works.
    """

    START_CHANNELS = 16

    def __init__(self, dim: int, image: tuple[int, int, int]) -> None:
        super().__init__(image)
        channels, height, width = image
        self.start = (self.START_CHANNELS, -(-height // 4), -(-width // 4))
        self.expand = nn.Linear(dim, prod(self.start))
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(self.START_CHANNELS, 64, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, channels, 3, padding=1),
        ).to(memory_format=torch.channels_last)

    def decode(self, capsules: Tensor, chosen: Tensor) -> Tensor:
        capsule = capsules[torch.arange(len(capsules), device=capsules.device), chosen]
        maps = self.expand(capsule).unflatten(1, self.start).contiguous(memory_format=torch.channels_last)
        _, height, width = self.image
        return torch.sigmoid(self.net(maps)[:, :, :height, :width].float())
