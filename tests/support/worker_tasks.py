"""Tasks for workers: what a worker runs must be a function of a module that it can import."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Sheet:
    """What tasks need; says in a file when it was prepared, and where."""

    factor: int
    folder: Path

    def __post_init__(self) -> None:
        (self.folder / f"prepared-{os.getpid()}-{time.monotonic_ns()}").touch()


def product(sheet: Sheet, task: int) -> tuple[int, int]:
    """The product, and the process that computed it."""
    return sheet.factor * task, os.getpid()


def slow_product(sheet: Sheet, task: int) -> int:
    """As :func:`product`, after a moment; leaves a file with the process in its name while it works."""
    mark = sheet.folder / f"works-{os.getpid()}"
    mark.touch()
    time.sleep(0.05)
    mark.unlink()
    return sheet.factor * task


def troubled(sheet: Sheet, task: int) -> int:
    """Fails for some tasks, each in its way."""
    if task == 2:
        raise MemoryError("cannot allocate 9 GB")
    if task == 4:
        raise ValueError("no such thing")
    if task == 5:
        os._exit(9)
    return sheet.factor * task


def hopeless(sheet: Sheet, task: int) -> int:
    """Fails."""
    raise ValueError(f"{sheet.factor} x {task}")


def fails(group: Any) -> None:
    """Ends a process of a group with an error of its own."""
    raise ValueError("no such thing")
