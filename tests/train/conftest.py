"""A tiny run that every training test can start: a small ShallowCaps on a few digits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from caplet.data import Splits
from caplet.train.settings import TrainSettings

TINY = {
    "model": "shallow-digits",
    "overrides": {"stem": ({"kernel": 3, "channels": 8},), "primary_types": 2, "primary_dim": 4, "class_dim": 4},
    "dataset": "digits",
    "epochs": 2,
    "batch_size": 16,
    "lr": 5e-3,
    "ema": 0.9,
    "shift": 1,
}


@pytest.fixture
def tiny() -> Callable[..., TrainSettings]:
    """Settings of a run of a second or two; keyword arguments replace settings."""

    def make(**changes: Any) -> TrainSettings:
        return TrainSettings.of({**TINY, **changes})

    return make


@pytest.fixture(scope="session")
def few_digits(digits: Splits) -> Splits:
    """100 images to train on (6 steps of 16 and a rest), 50 to calibrate with."""
    train, calibration = digits.train.subset(range(100)), digits.calibration.subset(range(50))
    return replace(digits, train=train, calibration=calibration)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
