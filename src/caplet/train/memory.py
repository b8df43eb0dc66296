"""What a training step takes of memory, found without taking it; and how much of the votes is kept at once."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caplet.errors import CapletError
from caplet.models.base import CapsNet
from caplet.models.cost import FLOAT_BYTES
from caplet.nn.device import ROUTED
from caplet.nn.points import Storage
from caplet.train.task import Task

USABLE = 0.8
"""Of a machine's or device's memory, the part that training plans with."""
LIBRARIES = 90_000_000
"""What libraries take for themselves while they compute."""
EVALUATED = 128
"""Images per batch where the averaged weights are evaluated."""
_LIVE, _WEIGHTS = 4, 8
"""No network had more copies of its points and of its weights alive at once: what fits so is not looked at closer."""


@dataclass(frozen=True)
class RoutingMemory:
    """Bytes of a batch in float32: of all votes, of one coupling for each, and of what is saved for the gradient."""

    votes: int
    couplings: int
    saved: int

    def __str__(self) -> str:
        return f"{in_words(self.saved)} (votes {in_words(self.votes)}, couplings {in_words(self.couplings)})"


def routing_memory(model: CapsNet, batch: int) -> RoutingMemory:
    """What routing takes of ``batch`` images."""
    votes = couplings = saved = 0
    for layer in (layer for layer in model.layers() if isinstance(layer, ROUTED)):
        found, pairs, out = (layer.specs[name].elements for name in ("votes", "coupling", "activation"))
        votes, couplings = votes + found, couplings + pairs
        saved += found + (layer.iterations - 1) * pairs + 2 * layer.iterations * out
    return RoutingMemory(*(FLOAT_BYTES * batch * count for count in (votes, couplings, saved)))


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class says no types
    """Counts the bytes of all tensors that operations inside make, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._known:
                self._known.add(key)
                finalize(storage, self._freed, key, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def step_memory(task: Task[Any], shape: tuple[int, ...], batch: int, at_once: int | None = None) -> int:
    """Bytes that training ``task`` with ``batch`` images of ``shape`` (C, H, W) a step takes where it takes most.

    Two steps and an evaluation are gone through with tensors that have no data; all of them are counted, and
    :data:`LIBRARIES`. Votes of ``at_once`` images are kept; None for all.
    """
    with _Live() as live, FakeTensorMode(allow_non_fake_inputs=True):
        bare, made = task.to_send(), dict[int, Any]()
        for tensor in (t for module in _networks(task) for t in (*module.parameters(), *module.buffers())):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            trained = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
        copied = copy.deepcopy(bare, made)
        del made, empty
        keep_votes_of(copied, at_once)
        copied.network.first = 0
        go_through(copied, lambda count: torch.empty(count, *shape), batch)
    return int(live.peak) + LIBRARIES


def go_through(task: Task[Any], images: Callable[[int], Tensor], batch: int) -> None:
    """Two training steps with ``batch`` new images each, and an evaluation of the averaged network."""
    task.network.train()
    optimizer = task.optimizer()
    for _ in range(2):
        loss = task.losses(images(batch), torch.zeros(batch, dtype=torch.int64))["loss"]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    del loss
    with torch.no_grad():
        task.average.eval()(images(EVALUATED))


def _networks(task: Task[Any]) -> list[nn.Module]:
    """The network that is trained, the averaged one, and a teacher."""
    return [value for value in vars(task).values() if isinstance(value, nn.Module)]


def keep_votes_of(task: Task[Any], at_once: int | None) -> None:
    """Let the task's networks keep the votes of so many images at once; None for all."""
    for layer in (layer for network in _networks(task) for layer in network.modules() if isinstance(layer, ROUTED)):
        layer.votes_at_once = at_once


def usable_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that each process plans with: :data:`USABLE` of its GPU's, or of what this machine or its container has."""
    if device.type == "cuda":
        return int(USABLE * torch.cuda.mem_get_info(device)[1])
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [8 << 30]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return int(USABLE * min(found) / processes)


@dataclass(frozen=True)
class Fit:
    """How a task fits into memory.

    Attributes:
        shape, batch, limit: (C, H, W) and number of a step's images, and the bytes to keep to.
        whole, needed: bytes of a step with all votes kept, and as it is done; None where it is far below the limit.
        at_once: images of which votes are kept at once; None for all.
        batch_size: a batch size that fits, where this one does not; 0 where not even one image does.
    """

    shape: tuple[int, ...]
    batch: int
    routing: RoutingMemory
    limit: int
    whole: int | None = None
    needed: int | None = None
    at_once: int | None = None
    batch_size: int | None = None

    def __str__(self) -> str:
        text = f"routing takes {self.routing} of memory at batch size {self.batch}"
        if self.whole is None or self.needed is None:
            return text
        text += f"; a training step {in_words(self.whole)} in all"
        if self.at_once is not None and self.at_once < self.batch:
            text += f", {in_words(self.needed)} with the votes of {self.at_once} images at once"
        if self.batch_size is None:
            return text
        return f"{text}; warning: that is more than {in_words(self.limit)}: {_todo(self.batch_size)}"

    @contextmanager
    def explained(self, task: Task[Any]) -> Iterator[None]:
        """Where memory runs out inside, of the machine or a device, raise CapletError with a batch size that fits."""
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            words = ("out of memory", "allocate memory", "not enough memory")
            if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in words):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        found = self.batch // 2
        if task.in_parts:
            taken = (self.needed or step_memory(task, self.shape, self.batch)) - LIBRARIES
            limit = min(self.limit, int(USABLE * taken) + LIBRARIES)
            found = fitting_batch(task, self.shape, self.batch, limit)
        raise CapletError(f"out of memory at batch size {self.batch}: {_todo(found)} ({reason})")


def _todo(batch_size: int) -> str:
    return f"{batch_size} fit (batch_size={batch_size})" if batch_size else "use smaller images or a smaller network"


def fit(task: Task[Any], shape: tuple[int, ...], batch: int, limit: int) -> Fit:
    """The most votes at once with which a step of ``batch`` images of ``shape`` (C, H, W) keeps to ``limit`` bytes.

    Where not even the votes of a part of 1/16 of the images do, those of such a part are kept.
    """
    routing = routing_memory(task.model, batch)
    values = sum(spec.elements for spec in task.model.points().values() if spec.storage is Storage.RAM)
    most = LIBRARIES + FLOAT_BYTES * (_LIVE * max(batch, EVALUATED) * values + _WEIGHTS * task.model.parameter_count())
    if most <= limit or not task.in_parts:
        return Fit(shape, batch, routing, limit)
    at_once = batch
    if limit <= LIBRARIES:  # nothing keeps to that
        return Fit(shape, batch, routing, limit, most, most, max(batch // 16, 1), 0)
    needed = whole = step_memory(task, shape, batch)
    while needed > limit and at_once > max(batch // 16, 1):
        at_once = (at_once + 1) // 2
        needed = step_memory(task, shape, batch, at_once)
    smaller = fitting_batch(task, shape, batch, limit) if needed > limit else None
    return Fit(shape, batch, routing, limit, whole, needed, at_once if needed < whole else None, smaller)


def fitting_batch(task: Task[Any], shape: tuple[int, ...], batch: int, limit: int) -> int:
    """The largest half, quarter, ... of ``batch`` images with which a step keeps to ``limit`` bytes; 0 if none does."""
    while (batch := batch // 2) and step_memory(task, shape, batch, max(batch // 16, 1)) > limit:
        pass
    return batch


def in_words(size: float) -> str:
    """Bytes such as ``1.31 GB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
