"""Image files decoded, decoded images in another size or with other channels, and training augmentation."""

import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from caplet.data.files import read_bytes
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError, DataError


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


EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_GRAY_MODES = ("1", "L", "LA", "La")
_WIDE_MODES = ("I", "F")
_CHUNK = 256


@dataclass(frozen=True)
class ImageFile:
    """An image still to decode: the name that messages show, and its file or its bytes."""

    name: str
    data: Path | bytes


def decode_one(file: ImageFile, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """One image as uint8 (H, W) if gray or (H, W, 3) if RGB.

    The camera's orientation tag is obeyed; transparency is dropped; the first frame of an animation counts.

    Args:
        size: (height, width) to stretch to (Pillow's bilinear filter, antialiased); None keeps the image's own.
        channels: 1 for gray, 3 for RGB; None for what the file holds.

    Raises:
        DataError: the file is not an image, is damaged, or has more than 8 bits per channel.
    """
    data = file.data if isinstance(file.data, bytes) else read_bytes(file.data)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            image.load()
    except UnidentifiedImageError as error:
        raise DataError(
            f"unreadable image {file.name} ({len(data)} bytes): no known image format; replace or remove it"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"unreadable image {file.name} ({len(data)} bytes): {reason}; replace or remove it") from error
    if image.mode.split(";")[0] in _WIDE_MODES:
        raise DataError(f"image {file.name} has mode {image.mode}, more than 8 bits per channel: convert it to 8 bits")
    gray = channels == 1 or (channels is None and image.mode in _GRAY_MODES)
    image = image.convert("L" if gray else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def decode_all(
    files: Sequence[ImageFile],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Decode images of one size, in order, on all cores.

    Args:
        size: (height, width) to stretch every image to; None asks that all have the same size.
        channels: 1 for gray, 3 for RGB; None for RGB if any image has colour, else gray.
        progress: draw a bar on stderr.

    Returns:
        uint8 (N, C, H, W), contiguous.

    Raises:
        DataError: there are no files, an image is unreadable, or sizes differ (first such file in order).
    """
    from rich.console import Console
    from rich.progress import track

    if not files:
        raise DataError("no images to decode")
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    shape: tuple[int, ...] = ()
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        done = pool.map(lambda chunk: [decode_one(file, size, channels) for file in chunk], chunks)
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        shown = track(done, "Decoding images", len(chunks), console=console, transient=True, disable=hidden)
        for place, pixels in enumerate(chain.from_iterable(shown)):
            if place == 0:
                shape = pixels.shape[:2]
                result = np.empty((len(files), 1, *shape), dtype=np.uint8)
            if pixels.shape[:2] != shape:
                raise DataError(
                    f"images differ in size: {files[0].name} is {shape[1]} x {shape[0]} pixels, {files[place].name} is "
                    f"{pixels.shape[1]} x {pixels.shape[0]}; all must be equal: resize them, or give size= (--size) to "
                    "have them resized"
                )
            if pixels.ndim == 3 and result.shape[1] == 1:  # the first colour image: all become RGB
                result = np.repeat(result, 3, axis=1)
            result[place] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    finally:
        pool.shutdown(cancel_futures=True)
    return result


def augment(images: Tensor, generator: torch.Generator, *, shift: int = 2, flip: bool = False) -> Tensor:
    """Shift each image by its own random whole-pixel offset and mirror each with probability 1/2.

    Offsets are uniform in ``-shift .. shift``, down and across independently; pixels that come in from outside are 0.
    The draws depend on the generator's state and the batch size alone, so a resumed run repeats them.

    Args:
        images: float (N, C, H, W); not changed.
        generator: source of the randomness; it advances.
        shift: largest offset in pixels; 0 for none.
        flip: mirror left and right at random.

    Returns:
        A new tensor of the same shape, dtype, device and memory format (the input itself if there is nothing to do).

    Raises:
        ConfigError: ``shift`` is negative.
    """
    if shift < 0:
        raise ConfigError(f"augmentation shift must be at least 0 pixels, found {shift}")
    count, _, height, width = images.shape
    result = images
    if shift and count:
        offsets = torch.randint(0, 2 * shift + 1, (2, count), generator=generator, device=generator.device)
        down, across = offsets.to(images.device)
        # A view (N, C, 2*shift+1, 2*shift+1, H, W) of every window of the padded images; each image picks one.
        windows = F.pad(images, [shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        result = windows[torch.arange(count, device=images.device), :, down, across]
    if flip and count:
        mirrored = torch.rand(count, generator=generator, device=generator.device) < 0.5
        result = torch.where(mirrored.to(images.device)[:, None, None, None], result.flip(3), result)
    if result is images:
        return images
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
