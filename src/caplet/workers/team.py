"""A list of independent measurements over a :class:`concurrent.futures.Executor`; results come in the list's order.

Whoever measures, a value is computed by one torch thread from the same bytes, so it is the same to the last bit on
processors with the same instructions. What is written from the results therefore does not tell how many workers there
were, nor which of them was first or was lost.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from caplet.errors import CapletError, WorkerError
from caplet.progress import Note, silent
from caplet.settings import Few, Settings, option
from caplet.workers.task import forget, identity, measure

T = TypeVar("T")
R = TypeVar("R")
LOSSES = 5
"""How often a task may lose its worker before it is taken to be the reason (out of memory, say)."""
HOPELESS = 8
"""After so many failures, and not one success, the rest is not tried."""
_LOOK = 1.0
"""Seconds after which a team looks again at how many workers it has."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """What many tasks need, such as a model and images: it travels to each worker once.

    Attributes:
        key: of its contents.
        source: see :func:`caplet.workers.task.measure`.
    """

    key: Hashable
    source: Any


@dataclass(frozen=True)
class Failed:
    """In the place of a result.

    Attributes:
        name: of the task.
        error: what became of it.
    """

    name: str
    error: Exception

    def __str__(self) -> str:
        where = "".join(f" (on {note})" for note in getattr(self.error, "__notes__", ())[:1])
        kind = "" if isinstance(self.error, CapletError) else f"{type(self.error).__name__}: "
        return f"{self.name}: {kind}{self.error}{where}"


class ThisProcess(Executor):
    """Runs what is submitted at once: the reference. An error passes as it is."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> "Future[R]":
        """See :class:`concurrent.futures.Executor`."""
        future: Future[R] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Team:
    """Measures lists of tasks, here or elsewhere.

    Args:
        executor: runs them.
        threads: of torch for each; None for all of this process.
        slots: how many workers there are, now; may raise WorkerError.
        pack: ``(prepare, contents)`` to a parcel; None where nothing travels.
        expected: what workers must have, see :func:`caplet.workers.task.measure`.
        lost: ``lost(error)``: how many workers an error says were lost with a task; 0 where it is the task's own.
    """

    def __init__(
        self,
        executor: Executor | None = None,
        threads: int | None = None,
        slots: Callable[[], int] = lambda: 1,
        pack: Callable[[Callable[..., Any], tuple[Any, ...]], Parcel] | None = None,
        lost: Callable[[Exception], int] = lambda error: 0,
        expected: str | None = None,
    ) -> None:
        self._executor, self._threads, self._slots, self._expected = executor, threads, slots, expected
        self._pack, self._lost = pack, lost

    @property
    def away(self) -> bool:
        """Whether other processes measure."""
        return self._pack is not None

    def parcel(self, prepare: Callable[..., Any], *contents: Any) -> Parcel:
        """What tasks need: ``prepare(*contents)``, a function of a module, is called once by each worker."""
        if self._pack is None:
            return Parcel(object(), partial(prepare, *contents))
        return self._pack(prepare, contents)

    def map(
        self, function: Callable[[Any, T], R], tasks: Sequence[tuple[Parcel, T]], name: Callable[[T], str]
    ) -> Iterator[R]:
        """``function(prepared, task)`` of every task, in their order.

        Args:
            function: of a module; it must depend on its arguments alone.
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
                result = results.pop(due)
                due += 1
                if isinstance(result, Failed):
                    failed.append(result)
                else:
                    yield result
        if failed:
            more = f"; so did {', '.join(each.name for each in failed[1:4])}" if failed[1:] else ""
            more += f" and {len(failed) - 4} others" if failed[4:] else ""
            raise WorkerError(f"failed: {failed[0]}{more}; everything else was measured") from failed[0].error

    def completed(
        self, function: Callable[[Any, T], R], tasks: Sequence[tuple[Parcel, T]], name: Callable[[T], str]
    ) -> Iterator[tuple[int, R | Failed]]:
        """As :meth:`map`, with each task's number, in the order in which they are done; failures in their place."""
        executor = self._executor or ThisProcess()
        waiting, losses, ends = deque(range(len(tasks))), Counter[int](), Counter[bool]()
        running: dict[Future[R], int] = {}
        try:
            while waiting or running:
                wanted = 2 * self._slots() if self.away else 1  # the next task is there when one is done
                while waiting and len(running) < wanted:
                    parcel, task = tasks[waiting[0]]
                    arguments = (self._expected, self._threads, parcel.key, parcel.source, function, task)
                    running[executor.submit(measure, *arguments)] = waiting.popleft()
                if not running:  # no worker yet
                    time.sleep(_LOOK)
                for future in wait(running, _LOOK, FIRST_COMPLETED).done:
                    number = running.pop(future)
                    found: R | Failed
                    try:
                        found = future.result()
                    except Exception as error:
                        lost = self._lost(error)
                        losses[number] += lost
                        if lost and losses[number] < LOSSES:
                            waiting.appendleft(number)
                            continue
                        told = f"its worker was lost {losses[number]} times (out of memory?)"
                        found = Failed(name(tasks[number][1]), WorkerError(told) if lost else error)
                    ends[isinstance(found, Failed)] += 1
                    yield number, found
                if ends[True] >= HOPELESS and not ends[False]:
                    told = f"not tried, for {ends[True]} tasks failed and none succeeded"
                    yield from ((each, Failed(name(tasks[each][1]), WorkerError(told))) for each in waiting)
                    waiting.clear()
        finally:
            for future in running:
                future.cancel()


class WorkerSettings(Settings):
    """Who measures.

    Raises:
        ConfigError: both a number of processes and a cluster.
    """

    where = "workers"

    workers: Few | None = option(None, "Run")
    """Processes that measure, one thread each; 1 is this one. Default: this one, with all of torch's threads."""
    cluster: str | None = option(None, "Run")
    """Dask scheduler whose workers measure, such as tcp://host:8786 (pip install 'caplet[cluster]')."""

    def check(self) -> None:
        """Raise ValueError where both are given."""
        if self.workers is not None and self.cluster is not None:
            raise ValueError("workers and cluster are both given; choose one")

    @property
    def given(self) -> bool:
        """Whether it is said who measures: then one thread computes each value, also in this process."""
        return self.workers is not None or self.cluster is not None

    @contextmanager
    def open(self, note: Note = silent) -> Iterator[Team]:
        """The team, for a ``with`` block; at its end, an interrupt included, all that it started ends.

        Raises:
            ConfigError: no scheduler at the address. ToolMissing: no ``distributed`` is installed.
            WorkerError: a worker has another caplet or torch.
        """
        with ExitStack() as stack:
            stack.callback(forget)
            if self.cluster is not None:
                from caplet.workers.cluster import Cluster

                cluster = stack.enter_context(Cluster(self.cluster, note))
                yield Team(cluster.executor, 1, cluster.slots, cluster.pack, cluster.lost, identity())
            elif self.workers is not None and self.workers > 1:
                from caplet.workers.local import LocalProcesses, lost, pack

                folder = Path(stack.enter_context(TemporaryDirectory(prefix="caplet-")))  # for this user alone
                processes = stack.enter_context(LocalProcesses(self.workers))
                yield Team(processes, 1, lambda: processes.count, partial(pack, folder), lost)
            else:
                yield Team(threads=self.workers)
