"""Augmentation: against a plain loop, reproducible, and only what was asked for."""

import pytest
import torch

from caplet.data import augment
from caplet.errors import ConfigError


def reference(images: torch.Tensor, generator: torch.Generator, shift: int, flip: bool) -> torch.Tensor:
    """One pixel at a time, with the same draws."""
    n, _, h, w = images.shape
    result = images.clone()
    if shift:
        offsets = torch.randint(0, 2 * shift + 1, (2, n), generator=generator) - shift
        result = torch.zeros_like(images)
        for i in range(n):
            for y in range(h):
                for x in range(w):
                    from_y, from_x = y + int(offsets[0, i]), x + int(offsets[1, i])
                    if 0 <= from_y < h and 0 <= from_x < w:
                        result[i, :, y, x] = images[i, :, from_y, from_x]
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        result = torch.stack([r.flip(2) if m else r for r, m in zip(result, mirrored, strict=True)])
    return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3, 9])
def test_equals_the_plain_loop(shift, flip, memory_format):
    images = torch.rand(12, 3, 6, 7).contiguous(memory_format=memory_format)
    before = images.clone()
    made = augment(images, torch.Generator().manual_seed(5), shift=shift, flip=flip)
    assert torch.equal(made, reference(images, torch.Generator().manual_seed(5), shift, flip))
    assert torch.equal(images, before)
    assert made.is_contiguous(memory_format=memory_format)


def test_generator_decides_and_advances():
    images = torch.rand(64, 1, 8, 8)
    generator = torch.Generator().manual_seed(3)
    first, second = augment(images, generator), augment(images, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(3)))


def test_every_offset_and_both_sides_occur():
    images = torch.zeros(2000, 1, 9, 9)
    images[:, 0, 4, 3] = 1.0
    made = augment(images, torch.Generator().manual_seed(0), shift=2, flip=True)
    places = {tuple(p) for p in made[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(y, x) for y in range(2, 7) for x in range(1, 8)}
    assert made.sum() == 2000


def test_nothing_to_do_and_empty_batch():
    images = torch.rand(4, 1, 8, 8)
    assert augment(images, torch.Generator(), shift=0) is images
    assert augment(images[:0], torch.Generator(), flip=True).shape == (0, 1, 8, 8)


def test_negative_shift():
    with pytest.raises(ConfigError, match="at least 0 pixels, found -1"):
        augment(torch.rand(1, 1, 8, 8), torch.Generator(), shift=-1)


@pytest.mark.parametrize("cutout", [1, 3, 4, 40])
def test_cutout_blanks_one_square_of_every_image(cutout: int) -> None:
    images = torch.rand(1000, 3, 9, 7) + 0.1
    made = augment(images, torch.Generator().manual_seed(1), shift=0, cutout=cutout)
    blank = made == 0
    assert torch.equal(made[~blank], images[~blank])
    assert (blank == blank[:, :1]).all()  # the same in every channel
    for hole in blank[:, 0]:
        rows, columns = (hole.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        assert hole.sum() == len(rows) * len(columns)
        for found, side in ((rows, 9), (columns, 7)):
            assert found == list(range(found[0], found[-1] + 1))
            assert len(found) == cutout or found[0] == 0 or found[-1] == side - 1
    assert blank[:, 0].any(0).all()  # every pixel is hit in some image


def test_cutout_comes_after_the_other_draws() -> None:
    images = torch.rand(20, 1, 8, 8) + 0.1
    plain = augment(images, torch.Generator().manual_seed(4), shift=2, flip=True)
    made = augment(images, torch.Generator().manual_seed(4), shift=2, flip=True, cutout=3)
    assert torch.equal(made[made > 0], plain[made > 0])


def test_a_negative_cutout_is_refused() -> None:
    with pytest.raises(ConfigError, match="cutout"):
        augment(torch.rand(1, 1, 4, 4), torch.Generator(), cutout=-1)
