"""Processes on this machine. Each is a pool of one, so that a lost one takes its own task with it, and no other."""

import os
import pickle
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

from loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from caplet.files import digest, write_bytes
from caplet.workers.team import Parcel

R = TypeVar("R")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",  # glibc's malloc keeps freed blocks, as in the command line itself
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def pack(folder: Path, prepare: Callable[..., Any], contents: tuple[Any, ...]) -> Parcel:
    """A parcel as a file in ``folder``, written once; see :class:`caplet.workers.team.Team`."""
    content = pickle.dumps((prepare, contents), protocol=pickle.HIGHEST_PROTOCOL)
    path = folder / digest(content)
    if not path.exists():
        write_bytes(path, content)
    return Parcel(path.name, path)


class LocalProcesses(Executor):
    """Runs every task in one of ``count`` processes, which start when there is a task for them.

    At the end of a ``with`` block, and on an interrupt, they are killed; where this process is killed, they end within
    two seconds.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count)
        self._idle: list[ProcessPoolExecutor] = []
        self._all: set[ProcessPoolExecutor] = set()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> "Future[R]":
        """See :class:`concurrent.futures.Executor`. A future whose process ends raises BrokenProcessPool."""
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        try:
            pool = self._idle.pop()
        except IndexError:
            pool = ProcessPoolExecutor(1, initializer=_serve, env=_ENVIRONMENT)
            self._all.add(pool)
        try:
            result: R = pool.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            self._all.discard(pool)
            pool.shutdown(wait=False, kill_workers=True)
            raise
        except BaseException:
            self._idle.append(pool)
            raise
        self._idle.append(pool)
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kill the processes; what has not begun is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in tuple(self._all):
            pool.shutdown(wait=wait, kill_workers=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.shutdown()


def lost(error: Exception) -> int:
    """See :class:`caplet.workers.team.Team`."""
    return int(isinstance(error, TerminatedWorkerError))


def _serve() -> None:
    """Leave Ctrl-C to the process that asks, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
