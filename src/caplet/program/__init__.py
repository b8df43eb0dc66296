"""What ships: a Program of integer ops; its verifier, memory plan, interpreter and file format. No torch."""

from caplet.program.ops import (
    OPS,
    PIXEL_FORMAT,
    Add,
    ChannelAffine,
    Conv2d,
    ConvVotes,
    DenseVotes,
    InputQuantize,
    Lengths,
    Op,
    Routing,
    Shifts,
    Squash,
    conv_weight,
    pixel_table,
)
from caplet.program.program import Program
from caplet.program.tensor import Constant, TensorSpec, WideFormat

__all__ = [
    "OPS",
    "PIXEL_FORMAT",
    "Add",
    "ChannelAffine",
    "Constant",
    "Conv2d",
    "ConvVotes",
    "DenseVotes",
    "InputQuantize",
    "Lengths",
    "Op",
    "Program",
    "Routing",
    "Shifts",
    "Squash",
    "TensorSpec",
    "WideFormat",
    "conv_weight",
    "pixel_table",
]
