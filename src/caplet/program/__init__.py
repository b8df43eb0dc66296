"""What ships: a Program of integer ops; its verifier, memory plan, interpreter and file format. No torch."""

from caplet.program.arena import plan_memory
from caplet.program.file import dumps, load_program, loads, save_program
from caplet.program.interpreter import run, trace
from caplet.program.program import Program
from caplet.program.tensor import Constant, TensorSpec
from caplet.program.verify import verify

__all__ = [
    "Constant",
    "Program",
    "TensorSpec",
    "dumps",
    "load_program",
    "loads",
    "plan_memory",
    "run",
    "save_program",
    "trace",
    "verify",
]
