"""The settings of a sweep."""

from typing import Any

from pydantic import Field

from caplet.jobs.compress.settings import Limits
from caplet.settings import Bytes, Count, Few, Many, Percent, Positive, Settings, option

TARGET, SEARCH = "Target", "Search"
TRIALS, UNTIMED = 40, 100_000
"""Trials where neither their number nor the time is said, and where the time ends them."""


class SweepSettings(Settings):
    """Settings of a sweep; ``train`` are settings of training to change (:class:`caplet.train.settings.TrainSettings`).

    Raises:
        ConfigError: a setting is unknown or out of range; both an accuracy and a loss are asked for.
    """

    where = "sweep"

    flash: Bytes = option(256_000, TARGET)
    """Limit of the whole firmware (packed weights, tables, code), e.g. 64KB."""
    ram: Bytes | None = option(None, TARGET)
    """Limit of the arena, with votes stored or recomputed, whichever takes less, e.g. 32KB."""
    macs: Count | None = option(None, TARGET)
    """Limit of the multiply-accumulates of one image, e.g. 2M."""
    min_accuracy: Percent | None = option(None, TARGET)
    """Find the smallest network with this accuracy on calibration images, in percent. Without it and --max-drop: the
    most accurate one within the limits."""
    max_drop: Percent | None = option(None, TARGET)
    """Find the smallest network that loses at most so many percentage points against the best one of the sweep."""
    tolerance: Percent = option(0.2, TARGET)
    """What narrower weights may cost the winner in the end, in percentage points; less where an accuracy is asked for.
    Otherwise training images decide, and where they are too few to show so little, it is what they can show."""

    trials: Many | None = option(None, SEARCH)
    """Networks that are trained for a short time. More of them go on with a finished sweep, with --resume. Default: 40;
    with --minutes, as many as there is time for."""
    minutes: Positive | None = option(None, SEARCH)
    """Draw no further network when this call would take longer than so, finalists included (an estimate)."""
    finalists: Few = option(4, SEARCH)
    """Networks trained in full: the most accurate trials, or, where the smallest network is wanted, some that no other
    one beats in accuracy and flash."""
    trial_images: Many = option(4000, SEARCH)
    """At most so many training images for a trial."""
    trial_epochs: Few | None = option(None, SEARCH)
    """Epochs of a trial. Default: as many as show it 20,000 images, from 5 to 15."""
    epochs: Few | None = option(None, SEARCH)
    """Epochs of a finalist. Default: as many as show it 200,000 images, from 4 to 120."""
    seed: int = option(0, SEARCH, ge=0, lt=1 << 32)
    """Of draws and of training."""
    train: dict[str, Any] = Field(default={})

    def check(self) -> None:
        """Raise ValueError for two targets at once."""
        if self.min_accuracy is not None and self.max_drop is not None:
            raise ValueError("min_accuracy and max_drop: both given; give the accuracy, or the loss that is accepted")

    @property
    def most(self) -> int:
        """Trials, unless the time ends before."""
        return self.trials or (TRIALS if self.minutes is None else UNTIMED)

    @property
    def limits(self) -> Limits:
        """Of the sizes."""
        return Limits(flash=self.flash, ram=self.ram, macs=self.macs)
