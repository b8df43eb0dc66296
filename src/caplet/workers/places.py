"""Where else measurements are made: processes on this machine, and the workers of a Dask scheduler."""

import logging
import os
import signal
import socket
import time
from asyncio import CancelledError as Cancelled
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread, local
from typing import Any, TypeVar

from caplet.errors import ConfigError, ToolMissing, WorkerError
from caplet.files import write_bytes
from caplet.progress import Note
from caplet.workers.team import Parcel, Team, forget, identity, packed

R = TypeVar("R")
SECONDS = 5.0
"""To wait for an answer from a scheduler's address."""
PAUSED = 60.0
"""Seconds without a result after which it is an error that Dask has paused a worker and no other one has work."""
_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # as the command line sets it
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18", **_MALLOC}
"""Of a local process; that it keeps data sets and freed memory is no leak, for which loky would start it again."""


class LocalProcesses(Executor):
    """Runs every task in one of ``count`` processes, which start when there is a task for them.

    Each is a pool of one, so that a lost one takes its own task with it, and no other.
    """

    def __init__(self, count: int) -> None:
        self._threads, self._own, self._all = ThreadPoolExecutor(count), local(), list[Any]()
        self._spare, self._ended = deque[Any](), False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> "Future[R]":
        """See :class:`concurrent.futures.Executor`. A future whose process ends raises BrokenProcessPool."""
        return self._threads.submit(self._run, partial(fn, *args, **kwargs))

    def start(self, count: int, module: str) -> None:
        """Let so many processes start and import a module; tasks take these first."""
        for _ in range(count):
            pool = self._pool()
            pool.submit(import_module, module)
            self._spare.append(pool)

    def _pool(self) -> Any:
        from loky.process_executor import ProcessPoolExecutor

        self._all.append(pool := ProcessPoolExecutor(1, initializer=_serve, env=_ENVIRONMENT))
        return pool

    def _run(self, call: Callable[[], R]) -> R:
        if getattr(self._own, "pool", None) is None:
            try:
                self._own.pool = self._spare.popleft()
            except IndexError:
                self._own.pool = self._pool()
        if self._ended:
            raise CancelledError
        try:
            result: R = self._own.pool.submit(call).result()
        except BrokenProcessPool:
            self._own.pool = None
            raise
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kill the processes; what has not begun is cancelled."""
        self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in self._all:
            pool.shutdown(wait=wait, kill_workers=True)


def _serve() -> None:
    """Leave Ctrl-C to the process that asks, and end within two seconds of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Processes(Team):
    """Measures in ``count`` processes on this machine; parcels are files that only this user can read."""

    away = True

    def __init__(self, count: int) -> None:
        self._processes = LocalProcesses(count)
        super().__init__(1, self._processes)
        self._count, self.under_way = count, 2 * count  # the next task is there when one is done
        self._folder = TemporaryDirectory(prefix="caplet-")

    @property
    def count(self) -> int:
        return self._count

    def warm(self, module: str, tasks: int) -> None:
        self._processes.start(min(tasks, self.count), module)

    def lost(self, error: Exception) -> int:
        from loky.process_executor import TerminatedWorkerError

        return int(isinstance(error, TerminatedWorkerError))

    def parcel(self, prepare: Callable[..., Any], *contents: Any) -> Parcel:
        key, content = packed(prepare, contents)
        path = Path(self._folder.name) / key
        if not path.exists():
            write_bytes(path, content)
        return Parcel(key, path)

    def close(self, kill: bool) -> None:
        self.executor.shutdown()
        self._folder.cleanup()


def _reach(address: str) -> None:
    """Raise ValueError or OSError unless something listens there: of a client that does not connect, Dask leaves a
    traceback behind."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("", "tcp", "tls") or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("the rule is tcp://host:port or tls://host:port")
    socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()


class Cluster(Team):
    """Measures on the workers of a scheduler that somebody else has started: hosts, Slurm, PBS, Kubernetes.

    Parcels are results of tasks: the scheduler can have one made again where the workers that held it are lost.

    Args:
        address: such as ``tcp://host:8786``; ``tls://`` with Dask's own configuration.
        note: called with one line while there are no workers.

    Raises:
        ToolMissing: no ``distributed`` is installed. ConfigError: no scheduler at the address.
        WorkerError: a worker has another caplet or torch; it is named.
    """

    away, under_way = True, 10**9  # Dask has queues of its own

    def __init__(self, address: str, note: Note) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise ToolMissing("--cluster needs Dask's distributed: pip install 'caplet[cluster]'") from None
        for name in [name for name in logging.root.manager.loggerDict if name.startswith(("distributed", "tornado"))]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are said in one line, here
        connect: Any = Client  # its functions have no types
        try:
            _reach(address)
            self._client = connect(address, timeout=SECONDS, set_as_default=False)
        except Exception as error:
            text = f"--cluster {address}: no scheduler answers there ({type(error).__name__}: {error})"
            raise ConfigError(f"{text}; start one with: dask scheduler") from None
        super().__init__(1, self._client.get_executor(pure=False))
        self._address, self._way, self.expected = address, self._client.scheduler_comm, identity()
        self._note, self._told = note, set[str]()
        self._parcels: dict[str, Parcel] = {}
        workers = self._client.run(identity, on_error="return")
        if not workers:
            note(f"no worker at {address} yet; waiting (start some with: dask worker {address})")
        for worker, found in workers.items():
            if found != self.expected and not isinstance(found, OSError):  # which says that it has gone
                self.close(kill=True)
                other = repr(found) if isinstance(found, Exception) else found
                raise WorkerError(
                    f"worker {worker} is refused: it has {other}, here is {self.expected}; install the same"
                )

    @property
    def count(self) -> int:
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def check(self, silent: float = 0.0) -> None:
        """See :meth:`Team.check`. With its connection a client forgets what was asked; not all that wait are told.

        A worker without nanny that uses most of its memory limit gets no more tasks, and may wait so for ever.
        """
        if self._client.status != "running" or self._client.scheduler_comm is not self._way:
            raise WorkerError(f"--cluster {self._address}: the scheduler went away, or the connection to it")
        if not silent:
            return
        try:
            known = self._client.sync(self._client.scheduler.identity, callback_timeout=SECONDS)["workers"]
        except OSError:  # no answer in time: the next check sees why
            return
        paused, at_work = dict[str, str](), False
        for address, worker in known.items():
            held = worker["status"] == "paused"
            if held:
                used, limit = worker["metrics"].get("memory", 0), worker["memory_limit"]
                paused[address] = (
                    f"worker {address} is paused: it uses {used / 1e6:,.0f} MB, its limit is {limit / 1e6:,.0f}"
                )
            counts = worker["metrics"].get("task_counts", {})
            at_work |= any(counts.get(state) for state in ("executing", *(() if held else ("flight", "fetch"))))
        for address in paused.keys() - self._told:
            self._note(f"warning: {paused[address]}; Dask gives it no tasks until it uses less")
        self._told |= paused.keys()
        if paused and not at_work and silent >= PAUSED:
            more = "nothing else goes on; start it with more (dask worker --memory-limit); --resume goes on"
            raise WorkerError(f"{next(iter(paused.values()))}; {more}")

    def lost(self, error: Exception) -> int:
        from distributed import KilledWorker

        if isinstance(error, CancelledError | Cancelled):
            self.check()
            return 1
        return 3 if isinstance(error, KilledWorker) else 0  # which Dask says after several

    def parcel(self, prepare: Callable[..., Any], *contents: Any) -> Parcel:
        key, content = packed(prepare, contents)
        if key not in self._parcels:
            self._parcels[key] = Parcel(key, self._client.submit(bytes, content, key=f"caplet-{key}"))
        return self._parcels[key]

    def close(self, kill: bool) -> None:
        if not kill and self._client.status == "running":
            self._client.run(forget, on_error="ignore")
        self.executor.shutdown(wait=False)
        self._client.close(timeout=SECONDS)
