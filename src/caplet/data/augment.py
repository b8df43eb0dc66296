"""Training augmentation: small random shifts and horizontal flips, a whole batch at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.errors import ConfigError


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
