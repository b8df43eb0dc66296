"""The workers of a Dask scheduler that somebody else has started: a list of hosts, Slurm, PBS, Kubernetes.

Parcels are the results of tasks: the scheduler knows how to make one again where the workers that held it are lost.
"""

import logging
import pickle
import time
from asyncio import CancelledError as AsyncCancelled
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any

from caplet.errors import ConfigError, ToolMissing, WorkerError
from caplet.files import digest
from caplet.progress import Note
from caplet.version import __version__
from caplet.workers.task import code_digest, forget
from caplet.workers.team import Parcel

SECONDS = 5.0
"""To wait for an answer from the scheduler's address."""
_LOOK = 1.0
_ASK = "{name: getattr(__import__(name), '__version__', 'of no version') for name in ('caplet', 'torch')}"
"""Understood by every worker, also one that has another caplet."""
_PROCESSOR = "__import__('torch').backends.cpu.get_cpu_capability()"


def _same(content: bytes) -> bytes:
    return content


class Cluster:
    """A connection to a scheduler, for a ``with`` block. Every worker's caplet and torch are compared when it appears.

    Args:
        address: such as ``tcp://host:8786``; ``tls://`` with Dask's own configuration.
        note: called with one line about workers.

    Attributes:
        executor: of the cluster.

    Raises:
        ToolMissing: no ``distributed`` is installed. ConfigError: no scheduler at the address.
        WorkerError: a worker has another caplet or torch; it is named.
    """

    def __init__(self, address: str, note: Note) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise ToolMissing("--cluster needs Dask's distributed: pip install 'caplet[cluster]'") from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are said in one line, here
        self._address, self._note = address, note
        connect: Any = Client  # its functions have no types
        try:
            self._client = connect(address, timeout=SECONDS, set_as_default=False)
        except Exception as error:
            text = f"--cluster {address}: no scheduler answers there ({type(error).__name__}: {error})"
            raise ConfigError(f"{text}; start one with: dask scheduler") from None
        self.executor = self._client.get_executor(pure=False)
        self._known: dict[str, int] = {}
        self._looked = -_LOOK
        self._waits = False
        self._parcels: dict[str, Parcel] = {}

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None and self._client.status == "running":
            self._client.run(forget, on_error="ignore")
        self.executor.shutdown(wait=False)
        self._parcels.clear()
        self._client.close(timeout=SECONDS)

    def slots(self) -> int:
        """Threads of all workers; 0 while there are none. Raises WorkerError."""
        if time.monotonic() - self._looked < _LOOK:
            return sum(self._known.values())
        self._looked = time.monotonic()
        try:
            found = dict(self._client.nthreads())
            self._compare([each for each in found if each not in self._known])
        except (OSError, TimeoutError, AsyncCancelled) as error:
            raise WorkerError(f"--cluster {self._address}: the scheduler went away ({error})") from error
        self._known = found
        if not found and not self._waits:
            self._note(f"no worker at {self._address} yet; waiting (start some with: dask worker {self._address})")
        self._waits = not found
        return sum(found.values())

    def _compare(self, addresses: list[str]) -> None:
        """Refuse workers whose caplet or torch is another one."""
        if not addresses:
            return
        import torch

        wanted = {"caplet": __version__, "torch": torch.__version__}
        for address, found in self._ask(addresses, eval, _ASK).items():
            self._refuse(address, found, wanted)
        for address, code in self._ask(addresses, code_digest).items():
            self._refuse(address, {"caplet's code": code}, {"caplet's code": code_digest()})
        own = torch.backends.cpu.get_cpu_capability()
        for address, other in self._ask(addresses, eval, _PROCESSOR).items():
            if other != own:
                self._note(f"worker {address} computes with {other}, this machine with {own}: last digits may differ")

    def _ask(self, addresses: list[str], *call: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._client.run(*call, workers=addresses, on_error="return")
        return found

    def _refuse(self, address: str, found: Any, wanted: dict[str, str]) -> None:
        if isinstance(found, OSError):
            return  # it is gone
        if isinstance(found, Exception):
            raise WorkerError(f"worker {address} is refused: {type(found).__name__}: {found}; install caplet there")
        for name, here in wanted.items():
            if found[name] != here:
                other = f"{name} {found[name]}, here {here}"
                raise WorkerError(f"worker {address} is refused: it has {other}; install the same, or stop that worker")

    def pack(self, prepare: Callable[..., Any], contents: tuple[Any, ...]) -> Parcel:
        """See :class:`caplet.workers.team.Team`."""
        content = pickle.dumps((prepare, contents), protocol=pickle.HIGHEST_PROTOCOL)
        key = digest(content)
        if key not in self._parcels:
            self._parcels[key] = Parcel(key, self._client.submit(_same, content, key=f"caplet-{key}"))
        return self._parcels[key]

    def lost(self, error: Exception) -> int:
        """See :class:`caplet.workers.team.Team`. Before Dask says that a worker was killed, it has tried several."""
        from distributed import KilledWorker

        if isinstance(error, CancelledError | AsyncCancelled):
            if self._client.status != "running":
                raise WorkerError(f"--cluster {self._address}: the scheduler went away") from error
            return 1
        return 3 if isinstance(error, KilledWorker) else 0
