"""The settings of a pruning run."""

import math
from typing import Annotated, Literal

from pydantic import Field

from caplet.prune.choices import Allocation, UnitKind
from caplet.settings import Batch, Bytes, Few, Many, Natural, Percent, Pixels, Positive, Seed, Settings, Weight, option
from caplet.train.settings import FinetuneSettings

Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
TARGETS = ("keep", "macs", "params", "bytes", "max_drop")
TARGET, REMOVAL, TUNING, RUN = "Target", "What is removed", "Fine-tuning", "Run"
"""Headings of the options."""


class TuningOptions(Settings):
    """Fine-tuning after pruning; see :class:`caplet.train.settings.FinetuneSettings`."""

    lr: Positive = option(1e-3, TUNING)
    """Peak learning rate of fine-tuning."""
    batch_size: Batch = option(32, TUNING)
    """Images per step of fine-tuning."""
    shift: Pixels = option(0, TUNING)
    """Augmentation: largest random shift in pixels."""
    flip: bool = option(False, TUNING)
    """Augmentation: random mirroring."""
    threads: Few | None = option(None, TUNING)
    """CPU threads of fine-tuning."""


class BackboneTuning(TuningOptions):
    """Fine-tuning after the CNN under capsules was pruned."""

    where = "prune-backbone"

    epochs: Natural = option(1, TUNING)
    """Fine-tuning, passes over the training split; 0 for none."""

    def finetuning(self, seed: int) -> FinetuneSettings | None:
        """Settings of the fine-tuning; None for none."""
        return FinetuneSettings.of({**self.model_dump(), "seed": seed}) if self.epochs else None


class PruneSettings(TuningOptions):
    """Settings of a pruning run, immutable and JSON-able.

    Exactly one target says how far to go, unless ``spaces`` alone does.
    """

    where = "prune"

    keep: Ratio | None = option(None, TARGET)
    """Fraction of the units to keep, e.g. 0.25."""
    macs: Ratio | None = option(None, TARGET)
    """Fraction of the multiply-accumulates to keep."""
    params: Ratio | None = option(None, TARGET)
    """Fraction of the parameters to keep."""
    bytes: Bytes | None = option(None, TARGET)
    """Size of the float32 parameters, e.g. 500KB."""
    max_drop: Percent | None = option(None, TARGET)
    """Largest loss on the calibration split, in percentage points; bisects."""
    spaces: dict[str, Weight] = option({}, TARGET, flag="--space")
    """What stays of one space: a fraction up to 1, or a number of units from 2; primary.types=8. Repeatable."""

    units: tuple[UnitKind, ...] = option((UnitKind.CHANNELS, UnitKind.TYPES), REMOVAL)
    """What may go: a list of channels, types, dim, capsules (single ones that vote for the classes)."""
    score: str = option("taylor", REMOVAL)
    """Importance: taylor, length, coupling, weight or random."""
    allocation: Allocation = option(Allocation.UNIFORM, REMOVAL)
    """The same fraction everywhere (uniform), the least measured loss per multiply-accumulate (measured), or the lowest
    score per multiply-accumulate (global)."""
    iterations: Few | None = option(None, REMOVAL)
    """Routing iterations of the pruned model's class capsules."""
    dead: bool = True
    """Remove units that are never active on the calibration split first."""
    images: Many = option(1000, REMOVAL)
    """Calibration images that scores look at."""
    refit: Natural = option(1000, REMOVAL)
    """Training images on which convolutions that lost inputs are refitted after surgery; 0 for none."""

    rounds: Few = option(1, TUNING)
    """Prune and fine-tune in so many rounds, to a target that shrinks by equal factors."""
    epochs: float = option(1.0, TUNING, ge=0, le=1e6)
    """Fine-tuning in all, in passes over the training split, shared equally by the rounds (with --max-drop: in every
    trial); 0 for none."""
    teach: bool = option(True, TUNING)
    """Fine-tuning follows the unpruned model beside the labels."""
    precision: Literal["float32", "bfloat16"] = option("float32", TUNING)
    """Number format of fine-tuning."""
    seed: Seed = option(0, RUN)
    """Of the score random and of fine-tuning."""

    def check(self) -> None:
        """Raise ValueError for settings that do not go together, ConfigError for an unknown score."""
        from caplet.prune.scores import SCORES  # which needs torch

        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.spaces or self.iterations):
            raise ValueError(
                f"give exactly one of {', '.join(TARGETS)} (found {', '.join(given) or 'none'}), or spaces"
            )
        if self.max_drop is not None and self.rounds > 1:
            raise ValueError("max_drop searches by itself; leave rounds at 1")
        SCORES.find(self.score)

    @property
    def target(self) -> str | None:
        """The name of the target that is given."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    def finetuning(self, images: int) -> FinetuneSettings:
        """Settings of one round's fine-tuning, with ``images`` in the training split."""
        epochs = self.epochs / self.rounds
        steps = max(1, round(epochs * (images // min(self.batch_size, images))))
        same = self.model_dump(include={*TuningOptions.model_fields, "precision", "seed"})
        return FinetuneSettings.of({**same, "epochs": max(1, math.ceil(epochs)), "steps": steps, "keep": "last"})
