"""ImageSet: what it accepts, its selections, batches and hash."""

import dataclasses

import pytest
import torch

from caplet.data import ImageSet, to_float
from caplet.errors import ConfigError, DataError


def make(count: int = 10, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, 4, 5), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 3, torch.arange(count) * 2 + 100, ("a", "b", "c"), "made/train")


def test_length_shape_and_counts():
    images = make()
    assert len(images) == 10
    assert images.image_shape == (3, 4, 5)
    assert images.class_counts() == (4, 3, 3)


def test_images_become_contiguous():
    nhwc = torch.zeros(2, 4, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    made = ImageSet(nhwc, torch.tensor([0, 1]), torch.tensor([0, 1]), ("a", "b"), "made")
    assert made.images.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(10, 3, 4, 5)}, "images must be uint8"),
        ({"images": torch.zeros(10, 4, 5, dtype=torch.uint8)}, "shape"),
        ({"labels": torch.zeros(10, dtype=torch.int32)}, "labels must be int64"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, "labels must be int64 of shape"),
        ({"labels": torch.tensor([0] * 7 + [3, 0, 0])}, "label 3 of image 7 is out of range; 3 classes allow 0..2"),
        ({"labels": torch.tensor([-1] + [0] * 9)}, "label -1 of image 0 is out of range"),
        ({"ids": torch.zeros(10, dtype=torch.int64)}, "occurs twice"),
    ],
)
def test_bad_tensors_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(make(), **change)


def test_subset_keeps_ids_and_order():
    images = make()
    chosen = images.subset([7, 2])
    assert chosen.ids.tolist() == [114, 104]
    assert chosen.labels.tolist() == [1, 2]
    assert torch.equal(chosen.images, images.images[[7, 2]])
    assert chosen.name == "made/train"
    assert len(images.subset([])) == 0


def test_with_ids_finds_images_by_their_original_position():
    images = make().subset([9, 0, 5])
    assert images.with_ids([110, 118]).ids.tolist() == [110, 118]
    assert torch.equal(images.with_ids([110]).images, make().images[5:6])
    assert len(images.with_ids([])) == 0


@pytest.mark.parametrize("indices", [[10], [-1], [0, 99]])
def test_subset_out_of_range(indices):
    with pytest.raises(DataError, match=r"the set has 0\.\.9"):
        make().subset(indices)


@pytest.mark.parametrize("chosen", [make(), make().subset([])])
def test_unknown_id(chosen):
    with pytest.raises(DataError, match="no image with id 101"):
        chosen.with_ids([101])


def test_hash_follows_content_not_name_or_ids():
    images = make()
    same = dataclasses.replace(images, ids=torch.arange(10), name="other", images=images.images.clone())
    assert images.sha256() == same.sha256()
    assert len(images.sha256()) == 64
    changed = images.images.clone()
    changed[3, 1, 2, 2] ^= 1
    others = [
        dataclasses.replace(images, images=changed),
        dataclasses.replace(images, labels=images.labels.flip(0)),
        dataclasses.replace(images, classes=("a", "b", "d")),
        dataclasses.replace(images, images=images.images.reshape(10, 3, 5, 4)),
        images.subset(list(range(9))),
    ]
    assert len({other.sha256() for other in others} | {images.sha256()}) == len(others) + 1


def test_to_float_is_pixels_over_255():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8)
    result = to_float(images)
    assert result.dtype == torch.float32
    assert torch.equal(result, images.double().div(255).float())
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert images.max() == 255


def test_batches_in_order_cover_the_set_once():
    images = make()
    batches = list(images.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), to_float(images.images))
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)


def test_batches_of_a_bad_size():
    with pytest.raises(ConfigError, match="batch size must be at least 1, found 0"):
        next(make().batches(0))


@pytest.mark.parametrize(("size", "most"), [(5000, 1024), (1000, 820), (1000, 128), (1001, 101), (1000, 100), (7, 5)])
def test_evenly_spaced_images_come_from_the_whole_set(size: int, most: int):
    taking_turns = torch.arange(size) % 10  # as the classes of a calibration split
    pixels = torch.zeros(size, 1, 1, 1, dtype=torch.uint8)
    every = ImageSet(pixels, taking_turns, torch.arange(size), tuple("0123456789"), "turns")
    chosen, part = every.evenly_spaced(most), -(-size // most)
    assert len(chosen) == most
    gaps = chosen.ids.diff()
    assert int(gaps.min()) >= 1
    assert int(gaps.max()) < 2 * part
    assert int(chosen.ids[0]) < part
    assert int(chosen.ids[-1]) >= size - part
    assert torch.equal(every.evenly_spaced(most).ids, chosen.ids)
    if most >= 100:  # fixed distances of 4 or 10 would see five classes, or one
        counts = chosen.labels.bincount(minlength=10)
        assert int(counts.min()) >= 0.5 * most / 10
        assert int(counts.max()) < 1.5 * most / 10


def test_evenly_spaced_is_all_of_a_small_set():
    images = make()
    assert images.evenly_spaced(10) is images
    with pytest.raises(DataError, match="0 evenly spaced images asked for"):
        images.evenly_spaced(0)
