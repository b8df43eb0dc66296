"""What ships: a Program of integer ops; its verifier, memory plan, interpreter and file format. No torch."""

from caplet.program.arena import MemoryMap, plan_memory
from caplet.program.bounds import AccumulatorBound
from caplet.program.file import dumps, load_program, loads, save_program
from caplet.program.interpreter import RunResult, run, trace
from caplet.program.op import OPS, Op, Shifts
from caplet.program.ops import (
    PIXEL_FORMAT,
    Add,
    ChannelAffine,
    Conv2d,
    ConvVotes,
    DenseVotes,
    InputQuantize,
    Lengths,
    MaxPool2d,
    Routing,
    Squash,
    pixel_table,
)
from caplet.program.program import Program
from caplet.program.tensor import Constant, TensorSpec, WideFormat
from caplet.program.verify import Proof, lengths_format, verify

__all__ = [
    "OPS",
    "PIXEL_FORMAT",
    "AccumulatorBound",
    "Add",
    "ChannelAffine",
    "Constant",
    "Conv2d",
    "ConvVotes",
    "DenseVotes",
    "InputQuantize",
    "Lengths",
    "MaxPool2d",
    "MemoryMap",
    "Op",
    "Program",
    "Proof",
    "Routing",
    "RunResult",
    "Shifts",
    "Squash",
    "TensorSpec",
    "WideFormat",
    "dumps",
    "lengths_format",
    "load_program",
    "loads",
    "pixel_table",
    "plan_memory",
    "run",
    "save_program",
    "trace",
    "verify",
]
