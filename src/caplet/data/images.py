"""Image files decoded, decoded images in another size or with other channels, and training augmentation."""

import io
import os
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from caplet.data.files import read_bytes
from caplet.data.imageset import ImageSet, pixel_array
from caplet.errors import ConfigError, DataError


def convert(images: ImageSet, *, size: tuple[int, int] | None, channels: int | None) -> ImageSet:
    """The same images with other channels, and stretched to another size; the set itself if nothing changes.

    Gray is ITU-R 601 as Pillow computes it, ``(19595 R + 38470 G + 7471 B + 32768) >> 16``; sizes change by Pillow's
    bilinear filter, antialiased when shrinking.
    """
    have, *shape = images.image_shape
    height, width = size or shape
    if (channels or have, height, width) == images.image_shape:
        return images
    if have not in (1, 3) and channels not in (None, have):
        raise ConfigError(f"{images.name}: images of {have} channels are no pictures: leave channels (--channels) out")
    mode = "RGB" if 3 in (have, channels) and channels != 1 else "L"
    result = pixel_array((len(images), channels or have, height, width))
    pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()

    def one(index: int) -> None:
        planes = pixels[index] if have == 3 else np.moveaxis(pixels[index], 2, 0)
        made = (Image.fromarray(plane).convert(mode) for plane in ((planes,) if have == 3 else planes))
        drawn = [_planes(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))) for image in made]
        result[index] = np.concatenate(drawn)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(len(images)), chunksize=256))
    return replace(images, images=torch.from_numpy(result))


def _planes(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) as (C, H, W)."""
    return np.atleast_3d(image).transpose(2, 0, 1)


_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow only names, or for which it starts another program."""
_GRAY_MODES = ("1", "L", "LA", "La")
_CHUNK = 256
_FRAMES, _WIDE = "have several frames: the first was taken", "are gray of 16 bits: scaled to 8, divided by 257"
_CLEAR = "have transparent pixels"


@cache
def endings() -> dict[str, str]:
    """The endings of image files that are read, such as ``.png``, and the format that Pillow calls each of them."""
    Image.init()
    known = set(Image.OPEN) - _NOT_PICTURES
    return {ending: kind for ending, kind in Image.registered_extensions().items() if kind in known}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image still to decode: the name that messages show, and its bytes or Pillow's image; None: the named file."""

    name: str
    data: bytes | Image.Image | None = None


def decode_one(
    file: ImageFile, size: tuple[int, int] | None, channels: int | None, grounds: Sequence[str] = ("white",)
) -> tuple[list[np.ndarray], list[str]]:
    """One image as uint8 (H, W) if gray or (H, W, 3) if RGB, and what must be said of it.

    The camera's orientation tag is obeyed; 16 bits of gray become 8; the first frame of an animation counts.

    Args:
        size: (height, width) to stretch to (Pillow's bilinear filter, antialiased); None keeps the image's own.
        channels: 1 for gray, 3 for RGB; None for what the file holds.
        grounds: colours; an image with transparent pixels is given over each of them, any other once.

    Raises:
        DataError: the file is not an image, is damaged, or has more than 16 bits per channel.
    """
    data = read_bytes(Path(file.name)) if file.data is None else file.data
    try:
        with data if isinstance(data, Image.Image) else _opened(data) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            image.load()
            facts = [_FRAMES] if getattr(opened, "n_frames", 1) > 1 else []
    except Exception as error:  # a damaged image can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else reason
        where = f"{file.name} ({len(data)} bytes)" if isinstance(data, bytes) else file.name
        raise DataError(f"unreadable image {where}: {reason}; replace or remove it") from error
    if image.mode.split(";")[0] in ("I", "F"):
        values = np.asarray(image).astype(np.int64)
        wide = image.mode == "F" or (image.mode == "I" and opened.format not in ("PNG", "PPM"))
        if wide or values.min() < 0 or values.max() >= 1 << 16:
            raise DataError(
                f"image {file.name} has mode {image.mode}, more than 16 bits per channel: convert it to 8 bits"
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        facts.append(_WIDE)
    mode = "L" if channels == 1 or (channels is None and image.mode in _GRAY_MODES) else "RGB"
    drawn = [image]
    if image.has_transparency_data and np.asarray((image := image.convert("RGBA")).getchannel("A")).min() < 255:
        facts.append(_CLEAR)
        colours = (Image.new("RGBA", image.size, ImageColor.getrgb(ground)[:3]) for ground in grounds)
        drawn = [Image.alpha_composite(colour, image) for colour in colours]
    drawn = [image.convert(mode) for image in drawn]
    if size is not None:
        drawn = [image.resize((size[1], size[0]), Image.Resampling.BILINEAR) for image in drawn]
    return [np.asarray(image) for image in drawn], facts


def _opened(data: bytes) -> Image.Image:
    """The image in a file's bytes, not decoded yet."""
    opened = Image.open(io.BytesIO(data), formats=[*{*endings().values()}])
    if opened.width * opened.height > max(1 << 24, 256 * len(data)):
        raise ValueError(f"{opened.width:,} x {opened.height:,} pixels in so few bytes")
    return opened


def _contrast(image: np.ndarray) -> int:
    """An image's variance, times the square of its number of values."""
    values = image.astype(np.int64)
    return int(image.size * (values * values).sum() - values.sum() ** 2)


def decode_all(
    files: Sequence[ImageFile],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, str]:
    """Decode images of one size, in order, on all cores.

    Args:
        size: (height, width) to stretch every image to; None asks that all have the same size.
        channels: 1 for gray, 3 for RGB; None for RGB if any image has colour, else gray.
        background: what transparent pixels are laid over; None for white or black, over which the images vary more.
        progress: draw a bar on stderr.

    Returns:
        uint8 (N, C, H, W), contiguous; and what a user must know about how they were read, in one line or ``""``.

    Raises:
        DataError: there are no files, an image is unreadable, or sizes differ (first such file in order).
    """
    from rich.console import Console
    from rich.progress import track

    if not files:
        raise DataError("no images to decode")
    shape: tuple[int, ...] = ()
    facts, gain, clear = Counter[str](), 0, list[int]()
    grounds = ("white", "black") if background is None else (background,)
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    about: dict[str, Any] = {"total": len(files), "console": console, "transient": True, "disable": hidden}
    with closing(_decoded(files, size, channels, grounds)) as decoded:
        for place, ((pixels, *more), found) in enumerate(track(decoded, "Decoding images", **about)):
            facts.update(found)
            for other in more:
                clear.append(place)
                gain += _contrast(other) - _contrast(pixels)
            if place == 0:
                shape = pixels.shape[:2]
                result = pixel_array((len(files), 1, *shape))
            if pixels.shape[:2] != shape:
                raise DataError(
                    f"images differ in size: {files[0].name} is {shape[1]} x {shape[0]} pixels, {files[place].name} is "
                    f"{pixels.shape[1]} x {pixels.shape[0]}; all must be equal: resize them, or give size= (--size) to "
                    "have them resized"
                )
            if pixels.ndim == 3 and result.shape[1] == 1:  # the first colour image: all become RGB
                gray, result = result, pixel_array((len(files), 3, *shape))
                result[:place] = gray[:place]
            result[place] = _planes(pixels)
    if gain > 0:
        over_black = _decoded([files[place] for place in clear], size, channels, ("black",))
        for place, ((pixels,), _) in zip(clear, over_black, strict=True):
            result[place] = _planes(pixels)
    most, less = ("black", "white") if gain > 0 else ("white", "black")
    notes = [f"{count:,} of {len(files):,} images {fact}" for fact, count in facts.items()]
    if facts[_CLEAR]:
        why = f"{most}, which keeps more contrast than {less} (--background states another)"
        notes.append(f"transparent pixels were laid over {background or why}")
    return result, "; ".join(notes)


def _decoded(
    files: Sequence[ImageFile], size: tuple[int, int] | None, channels: int | None, grounds: Sequence[str]
) -> Generator[tuple[list[np.ndarray], list[str]]]:
    """:func:`decode_one` of each file, in order, on all cores, a few images ahead of who takes them."""
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[tuple[list[np.ndarray], list[str]]]]] = deque()
    try:
        for start in range(0, len(files), _CHUNK):
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
            chunk = files[start : start + _CHUNK]
            waiting.append(pool.submit(lambda chunk: [decode_one(f, size, channels, grounds) for f in chunk], chunk))
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def augment(
    images: Tensor, generator: torch.Generator, *, shift: int = 2, flip: bool = False, cutout: int = 0
) -> Tensor:
    """Shift each image by its own random whole-pixel offset, mirror each with probability 1/2, blank out a square.

    Offsets are uniform in ``-shift .. shift``, down and across independently; pixels that come in from outside are 0.
    The draws depend on the generator's state and the batch size alone, so a resumed run repeats them.

    Args:
        images: float (N, C, H, W); not changed.
        generator: source of the randomness; it advances.
        shift: largest offset in pixels; 0 for none.
        flip: mirror left and right at random.
        cutout: side in pixels of a square of zeros at a random place of each image, cut off at the border where its
            centre is near; 0 for none (DeVries and Taylor 2017, "Improved regularization of CNNs with cutout").

    Returns:
        A new tensor of the same shape, dtype, device and memory format (the input itself if there is nothing to do).

    Raises:
        ConfigError: ``shift`` or ``cutout`` is negative.
    """
    if min(shift, cutout) < 0:
        raise ConfigError(f"augmentation shift and cutout must be at least 0 pixels, found {shift} and {cutout}")
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
    if cutout and count:
        inside = []
        for side in (height, width):
            first = torch.randint(0, side, (count, 1), generator=generator, device=generator.device) - cutout // 2
            places = torch.arange(side, device=generator.device)
            inside.append(((places >= first) & (places < first + cutout)).to(images.device))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        result = result.masked_fill(square, 0.0)
    if result is images:
        return images
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
