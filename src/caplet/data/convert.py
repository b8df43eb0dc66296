"""Changing the channels and the size of images that are already decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caplet.data.imageset import ImageSet


def to_gray(images: Tensor) -> Tensor:
    """RGB to grayscale by ITU-R 601 as Pillow computes it: ``(19595 R + 38470 G + 7471 B + 32768) >> 16``.

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        uint8 (N, 1, H, W).
    """
    red, green, blue = (images[:, c : c + 1].to(torch.int32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch images to (height, width) by Pillow's bilinear filter, antialiased when shrinking.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        size: (height, width) in pixels.

    Returns:
        uint8 (N, C, height, width).
    """
    height, width = size
    result = np.empty((len(images), images.shape[1], height, width), dtype=np.uint8)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()

    def one(index: int) -> None:
        image = Image.fromarray(pixels[index] if pixels.shape[3] == 3 else pixels[index, :, :, 0])
        smaller = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        result[index] = smaller.transpose(2, 0, 1) if smaller.ndim == 3 else smaller

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(images)), chunksize=256))
    return torch.from_numpy(result)


def convert(images: ImageSet, *, size: tuple[int, int] | None, channels: int | None) -> ImageSet:
    """The same images with other channels (first) and another size (second); the set itself if nothing changes."""
    have, height, width = images.image_shape
    pixels = images.images
    if channels is not None and channels != have:
        pixels = to_gray(pixels) if channels == 1 else pixels.expand(-1, 3, -1, -1)
    if size is not None and size != (height, width):
        pixels = resize(pixels, size)
    return images if pixels is images.images else replace(images, images=pixels)
