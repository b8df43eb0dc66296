"""What a user of pruning chooses from by name. Imports no torch, so that help texts come fast."""

from enum import StrEnum


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
