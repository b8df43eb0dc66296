"""What a user of pruning chooses from by name. Imports no torch, so that help texts come fast."""

from enum import StrEnum
from typing import Literal

from caplet.settings import Few, Many, Seed, Settings, Size, option

TORCH_PRUNING = "torch-pruning"
"""As an importance of channels of a CNN: torch-pruning's group magnitude, beside the scores of
:mod:`caplet.prune.scores`."""


class UnitKind(StrEnum):
    """What the units of a group are."""

    CHANNELS = "channels"  # output channels of a plain convolution
    TYPES = "types"  # capsule types: all their positions, filters and votes
    DIM = "dim"  # dimensions of the capsules
    CAPSULES = "capsules"  # single input capsules (type x position): their transformation matrices and votes


class Allocation(StrEnum):
    """How removals are divided among the groups."""

    UNIFORM = "uniform"  # the same fraction of every group
    GLOBAL = "global"  # units of all groups in one order: score per multiply-accumulate
    MEASURED = "measured"  # the same, by the loss that removals from each group alone were measured to add


class BackbonePruneSettings(Settings):
    """Settings of pruning the CNN under capsules, immutable and JSON-able.

    Attributes:
        images: training images that the batch norms see again, and on which the chosen candidate's weights are updated.
    """

    where = "prune-backbone"

    macs: float = option(..., "Target", gt=0.0, le=1.0)
    """Fraction of the whole network's multiply-accumulates to keep, e.g. 0.25."""
    score: str = option(TORCH_PRUNING, "What is removed")
    """Importance of channels: torch-pruning, taylor, length, coupling, weight or random."""
    primary: Literal["follow", "keep"] = option("follow", "What is removed")
    """Primary capsule types: follow (the same fraction of them goes as of the last channels) or keep (to be pruned by
    their own scores afterwards)."""
    candidates: Few = option(16, "What is removed")
    """How many ways to prune are compared; the first removes the same fraction of every layer."""
    spread: float = option(0.75, "What is removed", ge=0.0, lt=1.0)
    """How much the layers' fractions differ, 0 to 1: exponents of the fraction are drawn from 1 - spread to 1 +
    spread."""
    multiple: Size = option(1, "What is removed")
    """Keep multiples of so many channels, where a layer has as many."""
    images: Many = 1000
    refit: bool = option(True, "What is removed")
    """Update the chosen candidate's weights by least squares, where convolutions lost inputs, before fine-tuning."""
    seed: Seed = option(0, "Run")
    """Of the candidates, the choice of images, and fine-tuning."""
