"""Which images decide: none that a search, a fit or a trial has seen."""

import pytest
import torch

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.jobs.quantize import promise
from caplet.jobs.quantize.promise import divide
from caplet.models.registry import build


def images_of(name: str, first: int, n: int) -> ImageSet:
    ids = torch.arange(first, first + n)
    pixels = (ids % 251).to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 28, 28).clone()
    return ImageSet(pixels, ids % 10, ids, tuple("0123456789"), name)


@pytest.fixture
def splits() -> Splits:
    info = {"name": "numbers", "note": "", "hashes": {}}
    return Splits(images_of("train", 0, 300), images_of("calibration", 300, 50), images_of("test", 0, 50), info)


@pytest.mark.parametrize("validation", [None, "train"])
def test_trials_take_training_images_from_those_that_decide(
    splits: Splits, validation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promise, "TRIAL_IMAGES", 100)
    model = build("shallow", {})
    searched, images = divide(model, splits, validation)
    trial = images.trial
    assert trial is not None
    assert len(trial) == 100
    deciding, tried, seen = (set(part.ids.tolist()) for part in (images.images, trial, searched.calibration))
    assert deciding | tried == set(range(300))
    assert not deciding & tried
    assert not seen & (deciding | tried)
    for first in (50, 100, 150):
        assert (images.images.labels[:first].bincount() - first // 10).abs().max() <= 1
    monkeypatch.setattr(promise, "TRIAL_IMAGES", 151)  # too many: all decide
    _, images = divide(model, splits, validation)
    assert (len(images.images), images.trial) == (300, None)
