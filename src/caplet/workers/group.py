"""Processes that compute one result together: those that ``torchrun`` started, on one machine or several.

Process 0 runs the command: it alone reads and writes files, draws and decides. The others serve it: they compute their
part of what it deals out, and end when it ends. Who takes part is found from RANK, WORLD_SIZE and MASTER_ADDR.
"""

import atexit
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from typing import Any, TypeVar

from caplet.errors import CapletError, ConfigError, WorkerError
from caplet.workers.team import identity

T = TypeVar("T")
R = TypeVar("R")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""
LIMIT = 60.0
"""Seconds without a sign of life after which a process is taken to be lost."""
START = 300.0
"""Seconds within which all processes must have started."""
_SOON = 5.0  # in place of LIMIT once a connection broke
_BEAT = 0.5
_FAILED, _ENDED = "failed ", "ended"  # signs, beside a number that counts
_FOREVER = timedelta(days=365)  # signs of life, not this, end the wait for a process


class Group:
    """One process's view of all of them; by default this process alone.

    Attributes:
        rank, count: of this process, from 0; of processes.
        local: number of this process among those on its machine.
        neighbours: processes on its machine.
    """

    def __init__(self, rank: int = 0, count: int = 1, local: int = 0, neighbours: int = 1, store: Any = None) -> None:
        self.rank, self.count, self.local, self.neighbours = rank, count, local, neighbours
        self._store, self._sign, self._patience = store, "", LIMIT
        self._lost, self._stop = Event(), Event()
        self._story, self._inside, self._split = "", False, False
        if store is not None:
            self._watching = Thread(target=self._watch, daemon=True)
            self._watching.start()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        return self

    # --- what process 0 calls ---

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the others call ``function(group, *arguments)``, a function of a module; tensors arrive on the CPU."""
        import torch

        content = io.BytesIO()
        torch.save((function, arguments), content)
        self.deal([content.getvalue()] * self.count)

    def deal(self, parts: Sequence[Any]) -> Any:
        """Give each process its own of ``parts``, and return this one's; the others :meth:`receive`."""
        import torch.distributed as dist

        found: list[Any] = [None]
        with self._together():
            dist.scatter_object_list(found, list(parts), 0)
        return found[0]

    def dismiss(self) -> None:
        """Give the others None for their part: the function that they are in can end."""
        if not self._split:
            self.deal([None] * self.count)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Inside, all are needed: an error leaves the others in the middle of something, and nothing can be dealt out
        any more; a lost process ends this one, too."""
        self._inside = self.count > 1
        try:
            yield
        except BaseException:
            self._split = self.count > 1
            raise
        finally:
            self._inside = False

    def each(
        self, function: Callable[[Any, T], R], prepared: Any, tasks: Sequence[T], done: Callable[[int], None]
    ) -> list[R]:
        """``function(prepared, task)`` of every task, shared among all processes, in the order of the tasks.

        Args:
            function: of a module; it depends on its arguments alone.
            done: called with how many tasks are done.

        Raises:
            What ``function`` raised, for the first of the tasks where it did.
        """
        if self.count == 1:
            return [_told(function(prepared, task), done, number) for number, task in enumerate(tasks, 1)]
        self.start(_share, function, prepared, tasks)
        with self.unbroken():
            shares = _share(self, function, prepared, tasks, lambda mine: done(min(mine * self.count, len(tasks))))
        found = [shares[number % self.count][number // self.count] for number in range(len(tasks))]
        for result in found:
            if isinstance(result, _Raised):
                raise result.error
        return found

    def end(self) -> None:
        """Let the others end."""
        global _current
        if self._store is None:
            return
        with suppress(WorkerError):
            self.dismiss()
        self._sign = _ENDED
        if self._split:
            time.sleep(3 * _BEAT)  # to be seen
        self._close()
        self._store, _current = None, Group()

    # --- what the others call ---

    def receive(self) -> Any:
        """This process's part of what process 0 deals out."""
        return self.deal([])

    def serve(self) -> None:
        """Do what process 0 asks for, until it ends."""
        import torch

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # process 0 may still write a checkpoint
        try:
            while (asked := self.receive()) is not None:
                function, arguments = torch.load(io.BytesIO(asked), map_location="cpu", weights_only=False)
                function(self, *arguments)
            self._close()
        except WorkerError:
            self._watching.join(2 * _SOON)  # process 0 ended, or was lost: it sees which, and ends this process
            self._leave()
        except Exception as error:
            kind = "" if isinstance(error, CapletError) else f"{type(error).__name__}: "
            self._sign = _FAILED + kind + " ".join(str(error).split())[:500]
            time.sleep(3 * _BEAT)
            self._leave()

    # --- what all call, at the same place ---

    def broadcast(self, tensor: Any) -> None:
        """Fill ``tensor`` with the values that it has in process 0."""
        import torch.distributed as dist

        with self._together():
            dist.broadcast(tensor, 0)

    def total(self, tensor: Any) -> None:
        """Fill ``tensor`` with its sum over all processes, in process 0 alone."""
        import torch.distributed as dist

        with self._together():
            dist.reduce(tensor, 0)

    def total_everywhere(self, tensor: Any) -> None:
        """Fill ``tensor`` with its sum over all processes."""
        import torch.distributed as dist

        with self._together():
            dist.all_reduce(tensor)

    def collected(self, value: Any) -> list[Any]:
        """The values of all processes, in process 0; in others nothing."""
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        with self._together():
            dist.gather_object(value, found, 0)
        return found or []

    # --- signs of life ---

    @contextmanager
    def _together(self) -> Iterator[None]:
        """An operation of all processes. Raises WorkerError, in process 0 with the name of the one that is lost."""
        before, self._inside = self._inside, True
        try:
            yield
        except RuntimeError as error:
            self._split, self._patience = True, min(_SOON, self._patience)
            self._lost.wait(2 * _SOON)
            raise WorkerError(self._story or f"a process was lost ({str(error).splitlines()[0]})") from None
        finally:
            self._inside = before

    def _watch(self) -> None:
        """Say that this process lives, and see whether those that matter do: for process 0 all, for others that one."""
        others = range(1, self.count) if self.rank == 0 else (0,)
        seen = {other: ("", time.monotonic()) for other in others}
        store, beats = getattr(self._store, "clone", lambda: self._store)(), 0  # old ones of PyTorch have no clone
        while not self._stop.wait(_BEAT):
            beats += 1
            try:
                store.set(f"sign/{self.rank}", self._sign or str(beats))
                signs = {other: store.get(f"sign/{other}").decode() for other in others}
            except RuntimeError:  # where the store was process 0's, it went with it
                signs = {}
                self._patience = min(_SOON, self._patience)
            now = time.monotonic()
            for other, (before, at) in seen.items():
                sign = signs.get(other, before)
                if sign != before:
                    seen[other] = (sign, now)
                if sign == _ENDED:
                    self._leave()
                if sign.startswith(_FAILED):
                    self._found(f"process {other} of {self.count} failed: {sign.removeprefix(_FAILED)}")
                elif now - at > self._patience and sign == before:
                    what = f"process {other} of {self.count} is lost: no sign of life for {now - at:.0f} s"
                    self._found(f"{what} (killed, out of memory, or its machine); --resume goes on")
        with suppress(RuntimeError):
            store.set(f"sign/{self.rank}", self._sign or str(beats + 1))

    def _found(self, story: str) -> None:
        self._story = self._story or story
        self._lost.set()
        if self.rank == 0 and not self._inside:
            return  # what it does alone goes on
        time.sleep(2.0 if self.rank == 0 else 0.0)  # to say it itself
        if self.rank == 0 and not self._inside:
            return
        if self.rank <= 1:  # one line is enough
            print(f"caplet: error: {self._story}", file=sys.stderr, flush=True)
        os._exit(WorkerError.exit_code)

    def _leave(self) -> None:
        sys.stderr.flush()
        os._exit(0 if not self._sign.startswith(_FAILED) else WorkerError.exit_code)

    def _close(self) -> None:
        import torch.distributed as dist

        self._stop.set()
        self._watching.join(_SOON)
        if not self._split:
            dist.destroy_process_group()


class _Raised:
    """In the place of a result: its error."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _told(result: R, done: Callable[[int], None], count: int) -> R:
    done(count)
    return result


def _share(
    group: Group,
    function: Callable[[Any, T], Any],
    prepared: Any,
    tasks: Sequence[T],
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Any]]:
    """Every process's results of its own tasks, in process 0."""
    found: list[Any] = []
    for task in tasks[group.rank :: group.count]:
        try:
            found.append(function(prepared, task))
        except Exception as error:
            found.append(_Raised(error))
        done(len(found))
    return group.collected(found)


_current = Group()


def current() -> Group:
    """The processes that this one has joined; by itself, it alone."""
    return _current


def started_together() -> bool:
    """Whether torchrun started this process, and others."""
    found = [os.environ.get(name, "") for name in VARIABLES]
    return all(found) and found[1].isdecimal() and int(found[1]) > 1


def join() -> None:
    """Join the processes that torchrun started; does nothing where it started none, or only this one.

    Process 0 comes back, and training and scoring share their work from now on. The others serve it, and end with it:
    for them this function does not return.

    Raises:
        ConfigError: not all processes came; one has no GPU of its own. WorkerError: one has another caplet or torch.
    """
    global _current
    if not started_together() or _current.count > 1:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what is lost is said in one line; works before torch comes
    import torch
    from torch.distributed.distributed_c10d import PrefixStore, init_process_group
    from torch.distributed.rendezvous import rendezvous

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local, neighbours = (int(os.environ.get(name, default)) for name, default in _places(rank, count))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and local >= gpus:
        raise ConfigError(f"process {rank} has no GPU: there are {gpus} for {neighbours} processes; start {gpus}")
    if gpus:
        torch.cuda.set_device(local)
    try:
        store, rank, count = next(rendezvous("env://", timeout=timedelta(seconds=START)))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        why = f"within {START:.0f} s ({str(error).splitlines()[0]})"
        raise ConfigError(f"the {count} processes did not meet at {where} {why}") from None
    store = PrefixStore("caplet", store)
    store.set(f"who/{rank}", identity())
    for other in range(count):
        _meet(store, other, count)
    store.set_timeout(_FOREVER)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_FOREVER)
    store.set(f"sign/{rank}", "0")
    store.wait([f"sign/{other}" for other in range(count)])
    group = Group(rank, count, local, neighbours, store)
    if rank:
        group.serve()
        sys.exit(0)
    _current = group
    atexit.register(group.end)


def _places(rank: int, count: int) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("LOCAL_RANK", str(rank)), ("LOCAL_WORLD_SIZE", str(count))


def _meet(store: Any, other: int, count: int) -> None:
    """Wait for a process, which must have the same program."""
    try:
        found = store.get(f"who/{other}").decode()
    except RuntimeError:
        raise ConfigError(f"process {other} of {count} did not come within {START:.0f} s; start all of them") from None
    if found != identity():
        raise WorkerError(f"process {other} is refused: it has {found}, here is {identity()}; install the same")
