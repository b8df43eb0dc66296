"""Export a Program as C, and verify that every engine computes the same integers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError, ConfigError
from caplet.program import Program
from caplet.program.c.emit import EmitSettings, Export, emit
from caplet.program.file import load_program
from caplet.program.interpreter import run, trace
from caplet.progress import Note, silent
from caplet.runs.records import Verified
from caplet.runtime.traces import first_difference

Target = Literal["interpreter", "native", "cortex-m4", "riscv32"]
TARGETS: tuple[Target, ...] = ("interpreter", "native", "cortex-m4", "riscv32")
PREFERRED = ("model.caplet", *(f"model_{role}.caplet" for role in ("finetuned", "satisfied", "accuracy", "memory")))
"""Of a run folder: what a compression chose, then the results of the other jobs."""
_CHUNK = 16


def find_program(path: str | Path) -> Path:
    """The ``.caplet`` file that ``path`` means: itself, or the best one of a run folder.

    Raises:
        ArtefactError: a folder without any (the message lists what is looked for), or a file of another kind.
    """
    path = Path(path)
    if not path.is_dir():
        if path.suffix != ".caplet":
            raise ArtefactError(f"{path}: not a .caplet file; `caplet quantize` makes one from a float model")
        return path
    for name in PREFERRED:
        if (path / name).exists():
            return path / name
    raise ArtefactError(f"{path}: no .caplet file in this folder (looked for {', '.join(PREFERRED)})")


def export_c(source: str | Path | Program, out: str | Path, settings: EmitSettings | None = None) -> Export:
    """Write a Program as a folder of C99: model, runtime, self-test, build files.

    Args:
        source: a Program, a ``.caplet`` file, or a run folder.
        out: a new or empty folder.

    Raises:
        ArtefactError: the file cannot be read, or the folder is not empty or cannot be written.
        PlanError: the Program does not fit the RAM asked for.
    """
    program = source if isinstance(source, Program) else load_program(find_program(source))
    return emit(program, Path(out), settings)


def parse_targets(text: str) -> tuple[Target, ...]:
    """Engines from a list such as ``"interpreter,native"``. Raises ConfigError for an unknown one.

    >>> parse_targets("native, interpreter")
    ('native', 'interpreter')
    """
    found: list[Target] = []
    for name in text.split(","):
        known = [target for target in TARGETS if target == name.strip()]
        if not known:
            raise ConfigError(f"unknown engine {name.strip()!r}; the engines are {', '.join(TARGETS)}")
        found += known
    return tuple(found)


def verify_engines(
    program: Program,
    images: NDArray[np.uint8],
    targets: tuple[Target, ...] = TARGETS,
    *,
    ram: str | int = "small",
    note: Note = silent,
) -> list[Verified]:
    """Run ``images`` on every engine and compare every code with the reference interpreter's int64 arithmetic.

    ``interpreter`` compares all tensors of its fast path (exact float64 sums) with plain int64 sums; ``native`` all
    class capsules; ``cortex-m4`` and ``riscv32`` all class capsules of firmware built for ``ram`` (see
    :func:`caplet.program.arena.plan_memory`), run by an emulator.

    Args:
        images: uint8 (N, C, H, W), N >= 1.

    Raises:
        ConfigError: no image.
        ToolMissing: a compiler or an emulator is needed and absent.
    """
    if not len(images):
        raise ConfigError("verify: no image to run; ask for at least one")
    results = []
    for target in targets:
        note(f"{target}: {len(images):,} images")
        began = time.perf_counter()
        codes, differing, first, device = _run(target, program, images, ram)
        results.append(Verified(target, len(images), codes, differing, first, time.perf_counter() - began, device))
    return results


Outcome = tuple[int, int, str | None, dict[str, Any] | None]


def _run(target: Target, program: Program, images: NDArray[np.uint8], ram: str | int) -> Outcome:
    if target == "interpreter":
        return _interpreter(program, images)
    return _native(program, images) if target == "native" else _device(target, program, images, ram)


def _interpreter(program: Program, images: NDArray[np.uint8]) -> Outcome:
    codes = differing = 0
    first: str | None = None
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        fast, plain = trace(program, part), trace(program, part, exact_floats=False)
        codes += sum(values.size for values in plain.values())
        differing += sum(int((fast[name] != values).sum()) for name, values in plain.items())
        if first is None and (found := first_difference(program, plain, fast)) is not None:
            first = f"of the images from {start} on: {found}"
    return codes, differing, first, None


def _native(program: Program, images: NDArray[np.uint8]) -> Outcome:
    from caplet.runtime import NativeModel

    model = NativeModel(program)
    unequal = run(program, images).capsules != model.run(images).capsules
    if not unequal.any():
        return unequal.size, 0, None, None
    image = int(unequal.any(axis=(1, 2)).argmax())
    one = images[image : image + 1]
    found = first_difference(program, trace(program, one), model.trace(one))
    return unequal.size, int(unequal.sum()), f"image {image}, run alone: {found}", None


def _device(name: str, program: Program, images: NDArray[np.uint8], ram: str | int) -> Outcome:
    from caplet.runtime.boards import BOARDS
    from caplet.runtime.emulator import run_on_device

    run = run_on_device(BOARDS[name], program, images, EmitSettings(ram=ram))
    device = {
        "flash_bytes": run.flash_bytes,
        "arena_bytes": run.arena_bytes,
        "stack_bytes": run.stack_bytes,
        "ram_bytes": run.ram_bytes,
        "emulated_instructions_per_image": int(run.instructions.mean()),
        "toolchain": run.toolchain,
    }
    return run.capsules.size, run.differing, None if run.first is None else str(run.first), device
