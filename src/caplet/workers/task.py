"""What runs where a measurement is made: one task at a time in a thread, on what was prepared there once."""

import os
import pickle
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any

from caplet.errors import WorkerError
from caplet.files import digest
from caplet.version import __version__

_KEPT = 2
"""Prepared things that a thread keeps: those of the tasks at hand, and of the ones before."""
_prepared: dict[int, OrderedDict[Hashable, Any]] = {}


@cache
def code_digest() -> str:
    """SHA-256 of caplet's own Python files: a version number does not tell two states of a source tree apart."""
    root = Path(__file__).parents[1]
    return digest(*(path.read_bytes().replace(b"\r\n", b"\n") for path in sorted(root.rglob("*.py"))))


@cache
def identity() -> str:
    """What values depend on beside the task: caplet with its code, and torch."""
    import torch

    return f"caplet {__version__} (code {code_digest()[:12]}) and torch {torch.__version__}"


def measure(
    expected: str | None,
    threads: int | None,
    key: Hashable,
    source: Callable[[], Any] | Path | bytes,
    function: Callable[[Any, Any], Any],
    task: Any,
) -> Any:
    """``function(prepared, task)``, computed here.

    Args:
        expected: :func:`identity` of who asks; None where it is the same installation.
        threads: of torch while it runs; None leaves them alone.
        key: of what is prepared; equal ones stand for equal contents.
        source: makes it; or a file, or bytes, that hold ``(prepare, contents)`` pickled.

    Raises:
        WorkerError: caplet or torch is another one here. What ``function`` raises passes, with a note on the place.
    """
    here = f"{socket.gethostname()}, process {os.getpid()}"
    if expected is not None and expected != identity():
        raise WorkerError(f"the worker on {here} has {identity()}, the run {expected}; install the same there")
    before = _set_threads(threads)
    try:
        known = _prepared.setdefault(get_ident(), OrderedDict())
        if key not in known:
            while len(known) >= _KEPT:
                known.popitem(last=False)
            known[key] = _prepare(source)
            _set_threads(threads)  # torch may have come with it
        known.move_to_end(key)
        return function(known[key], task)
    except Exception as error:
        error.add_note(here)
        raise
    finally:
        _set_threads(before)


def _set_threads(count: int | None) -> int | None:
    """Torch's threads until now; None, and nothing is set, where there is no torch yet."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    return before


def _prepare(source: Callable[[], Any] | Path | bytes) -> Any:
    if callable(source):
        return source()
    prepare, contents = pickle.loads(source.read_bytes() if isinstance(source, Path) else source)
    return prepare(*contents)


def forget() -> None:
    """Let go of all that was prepared in this process."""
    _prepared.clear()
