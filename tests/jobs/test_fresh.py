"""Which images decide: none that a search, a fit or a trial has seen."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.jobs.quantize import promise
from caplet.jobs.quantize.choose import WIDE
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.promise import FreshImages, Promise, divide
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import correct_images
from caplet.models.checkpoint import load_model
from caplet.models.registry import build
from caplet.runs.promised import Look


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


@pytest.mark.parametrize("classes", [2, 10])
def test_half_of_each_class_is_moved_where_classes_take_turns(classes: int) -> None:
    labels = torch.arange(600) % classes
    names = tuple(map(str, range(classes)))
    pixels = torch.randint(0, 256, (600, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    moved = promise.varied(ImageSet(pixels, labels, torch.arange(600), names, "all"))
    differ = (moved.images != pixels).flatten(1).any(1)
    for label in range(classes):
        of_class = differ[labels == label]
        assert not of_class[::2].any()
        assert 0.6 < of_class[1::2].float().mean() < 0.97  # one of nine moves is none


class Unchanged(Promise):
    """Accepts plans that change no answer."""

    def look(self, plan: Any, error: float, changed: float = 0.01, loss: float = 0.0) -> Look:
        found = super().look(plan, error)
        return replace(found, accepted=found.lost + found.gained == 0)


def test_where_no_plan_of_a_search_is_accepted_wide_ones_are(trained: Path, digits: Splits, tmp_path: Path) -> None:
    model = load_model(trained / "model.safetensors")
    fresh = FreshImages(digits.train, "training images")
    few = replace(digits, calibration=digits.calibration.subset(range(120)))
    settings = QuantizeSettings.of({"method": "progressive", "tolerance": 10})
    asked = Unchanged(fresh, partial(correct_images, model), 10.0)
    done = quantize(model, few, tmp_path / "run", settings, promise=asked)
    assert done.met
    asked_of, expected = done.metrics["promise"]["looks"], done.metrics["promise"]["expected"]
    assert not asked_of[0]["accepted"], "of a plan that the search proposes"
    assert (expected["accepted"], expected["lost"], expected["gained"]) == (True, 0, 0)
    widths = {bits for unit in done.models[0].record["widths"].values() for bits in unit.values()}
    assert widths & {*WIDE}
