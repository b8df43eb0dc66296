"""A list of independent measurements over a :class:`concurrent.futures.Executor`; results come in the list's order.

Whoever measures, one torch thread computes a value from the same bytes, so it is the same to the last bit on processors
with the same instructions. What is written from results tells neither how many workers there were nor which were lost.
"""

import os
import pickle
import socket
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple, TypeVar

from caplet.errors import CapletError, WorkerError
from caplet.files import digest
from caplet.version import __version__

T = TypeVar("T")
R = TypeVar("R")
LOSSES = 5
"""How often a task may lose its worker before it is taken to be the reason (out of memory, say)."""
HOPELESS = 8
"""After so many failures, and not one success, the rest is not tried."""
SILENCE = 5.0
"""Seconds without a result after which the way to the workers is looked at."""
_KEPT = 2  # prepared parcels of a thread
_prepared: dict[int, OrderedDict[Hashable, Any]] = {}


@cache
def identity() -> str:
    """What values depend on beside the task. A version number does not tell two states of a source tree apart."""
    import torch

    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = digest(*(path.read_bytes().replace(b"\r\n", b"\n") for path in files))
    return f"caplet {__version__} (code {code[:12]}) and torch {torch.__version__}"


class Parcel(NamedTuple):
    """What many tasks need, such as a model and images, by a key of its contents; it travels to each worker once.

    ``source`` makes it, or is a file, or bytes, with ``(prepare, contents)`` pickled.
    """

    key: Hashable
    source: Any


class Failed(NamedTuple):
    """In the place of a result: the task's name, and its error."""

    name: str
    error: Exception

    def __str__(self) -> str:
        kind = "" if isinstance(self.error, CapletError) else f"{type(self.error).__name__}: "
        return f"{self.name}: {kind}{self.error}{''.join(getattr(self.error, '__notes__', ())[:1])}"


def packed(prepare: Callable[..., Any], contents: tuple[Any, ...]) -> tuple[str, bytes]:
    """The key and the bytes of a parcel that travels."""
    content = pickle.dumps((prepare, contents), protocol=pickle.HIGHEST_PROTOCOL)
    return digest(content), content


def measure(
    expected: str | None, threads: int | None, key: Hashable, source: Any, function: Callable[[Any, T], R], task: T
) -> R:
    """``function(prepared, task)``, where it is measured.

    Args:
        expected: :func:`identity` of who asks; None where it is the same installation.
        threads: of torch; None leaves them alone.
        key, source: of the parcel.

    Raises:
        WorkerError: caplet or torch is another one here. What ``function`` raises passes, with a note on the place.
    """
    here = f" (on {socket.gethostname()}, process {os.getpid()})"
    if expected is not None and expected != identity():
        raise WorkerError(f"a worker{here} is refused: it has {identity()}, here is {expected}; install the same")
    before = _set_threads(threads)
    try:
        known = _prepared.setdefault(get_ident(), OrderedDict())
        if key not in known:
            while len(known) >= _KEPT:
                known.popitem(last=False)
            prepare = source if callable(source) else _unpacked(source)
            known[key] = prepare()
            _set_threads(threads)  # torch may have come with it
        known.move_to_end(key)
        return function(known[key], task)
    except Exception as error:
        error.add_note(here)
        raise
    finally:
        if callable(source):  # in the process that asks
            _set_threads(before)


def _unpacked(source: Path | bytes) -> Callable[[], Any]:
    prepare, contents = pickle.loads(source.read_bytes() if isinstance(source, Path) else source)
    return partial(prepare, *contents)


def _set_threads(count: int | None) -> int | None:
    """Torch's threads until now; None, and nothing is set, where there is no torch yet."""
    torch = sys.modules.get("torch")
    before: int | None = None if torch is None else torch.get_num_threads()
    if torch is not None and count is not None:
        torch.set_num_threads(count)
    return before


def forget() -> None:
    """Let go of all that was prepared in this process."""
    _prepared.clear()


class ThisProcess(Executor):
    """Runs what is submitted at once: the reference. An error passes as it is."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> "Future[R]":
        """See :class:`concurrent.futures.Executor`."""
        future: Future[R] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Team:
    """Measures lists of tasks in this process, with ``threads`` of torch (None: all); other places are sub-classes."""

    away = False
    """Whether other processes measure."""
    under_way = 1
    """Tasks that are submitted at once."""
    expected: str | None = None

    def __init__(self, threads: int | None = None, executor: Executor | None = None) -> None:
        self.threads, self.executor = threads, executor or ThisProcess()

    def lost(self, error: Exception) -> int:
        """How many workers an error says were lost with a task; 0 where it is the task's own."""
        return 0

    @property
    def count(self) -> int:
        """Tasks that are computed at once."""
        return 1

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """Inside, this process computes as a task is computed."""
        before = _set_threads(self.threads)
        try:
            yield
        finally:
            _set_threads(before)

    def check(self, silent: float = 0.0) -> None:
        """Raise WorkerError where nobody will answer any more; there was no result for ``silent`` seconds."""

    def warm(self, module: str, tasks: int) -> None:
        """Let workers for so many tasks start, and import a module, while this process does something else."""

    def parcel(self, prepare: Callable[..., Any], *contents: Any) -> Parcel:
        """What tasks need: ``prepare(*contents)``, a function of a module, is called once by each worker."""
        return Parcel(object(), partial(prepare, *contents))

    def close(self, kill: bool) -> None:
        """End what was started; ``kill`` where work is still under way."""
        forget()

    def map(
        self, function: Callable[[Any, T], R], tasks: Sequence[tuple[Parcel, T]], name: Callable[[T], str]
    ) -> Iterator[R]:
        """``function(prepared, task)`` of every task, in their order.

        Args:
            function: of a module; it depends on its arguments alone.
            tasks: each with the parcel it needs; those with the same one best stand together.
            name: what errors call a task.

        Raises:
            WorkerError: tasks failed on a worker; after the results of all others. In this process their own errors.
        """
        results: dict[int, R | Failed] = {}
        failed: list[Failed] = []
        due = 0
        for number, found in self.completed(function, tasks, name):
            results[number] = found
            while due in results:
                if isinstance(result := results.pop(due), Failed):
                    failed.append(result)
                else:
                    yield result
                due += 1
        if failed:
            others = f"; so did {', '.join(each.name for each in failed[1:4])}" if failed[1:] else ""
            others += f" and {len(failed) - 4} more" if failed[4:] else ""
            raise WorkerError(f"failed: {failed[0]}{others}; all others were measured") from failed[0].error

    def completed(
        self, function: Callable[[Any, T], R], tasks: Sequence[tuple[Parcel, T]], name: Callable[[T], str]
    ) -> Iterator[tuple[int, R | Failed]]:
        """As :meth:`map`, with each task's number, in the order in which they are done; failures in their place."""
        waiting, losses, ends = deque(range(len(tasks))), Counter[int](), Counter[bool]()
        running: dict[Future[R], int] = {}
        silent = 0.0
        try:
            while waiting or running:
                while waiting and len(running) < self.under_way:
                    parcel, task = tasks[waiting[0]]
                    asked: Any = (self.expected, self.threads, *parcel, function, task)
                    running[self.executor.submit(measure, *asked)] = waiting.popleft()
                done = wait(running, SILENCE, return_when=FIRST_COMPLETED).done
                silent = 0.0 if done else silent + SILENCE
                if silent:
                    self.check(silent)
                for future in done:
                    number = running.pop(future)
                    found: R | Failed
                    try:
                        found = future.result()
                    except WorkerError:
                        raise
                    except Exception as error:
                        lost = self.lost(error)
                        losses[number] += lost
                        if lost and losses[number] < LOSSES:
                            waiting.appendleft(number)
                            continue
                        told = WorkerError(f"its worker was lost {losses[number]} times (out of memory?)")
                        found = Failed(name(tasks[number][1]), told if lost else error)
                    ends[isinstance(found, Failed)] += 1
                    yield number, found
                if ends[True] >= HOPELESS and not ends[False]:
                    told = WorkerError(f"given up, for {ends[True]} tasks failed and none succeeded")
                    yield from ((each, Failed(name(tasks[each][1]), told)) for each in (*running.values(), *waiting))
                    return
        finally:
            for future in running:
                future.cancel()
