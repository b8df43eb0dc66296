"""Running a Program on many images, by the compiled C or by the reference interpreter: the same integers either way."""

import logging
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError, ToolMissing, choose
from caplet.program import Program
from caplet.program.interpreter import RunResult, run

_note = cache(logging.getLogger(__name__).warning)  # each text once; on stderr, where logging is not set up


class Engine(StrEnum):
    """What runs a Program."""

    AUTO = "auto"
    NATIVE = "native"
    INTERPRETER = "interpreter"

    @classmethod
    def _missing_(cls, value: object) -> "Engine":
        return choose(str(value), cls, "engine")


def predictions(
    program: Program, images: NDArray[np.uint8], engine: Engine | str = Engine.AUTO
) -> tuple[NDArray[np.int64], Engine]:
    """Predicted classes, int64 (N,), of images, and the engine that computed them; see :func:`results`."""
    found, used = results(program, images, engine)
    return found.predictions, used


def results(
    program: Program, images: NDArray[np.uint8], engine: Engine | str = Engine.AUTO
) -> tuple[RunResult, Engine]:
    """What a Program computes of images uint8 (N, C, H, W), and the engine that computed it.

    ``auto`` is the native runtime where it can be compiled, else the interpreter, which is said once.

    Raises:
        ConfigError: unknown engine.
        ToolMissing: ``native`` without a C compiler.
        DataError: images of another shape or type.
    """
    engine = Engine(engine)
    if engine is not Engine.INTERPRETER:
        from caplet.runtime import NativeModel

        try:
            native = NativeModel(program)
        except (ToolMissing, ArtefactError) as error:
            if engine is Engine.NATIVE:
                raise
            _note(f"the reference interpreter computes the integers, tens of times slower than compiled C: {error}")
        else:
            return native.run(images), Engine.NATIVE
    return run(program, images), Engine.INTERPRETER
