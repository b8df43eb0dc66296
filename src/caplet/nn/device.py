"""Where networks compute: devices by name, models there, and what is set while they compute."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

from caplet.errors import CapletError, ConfigError

AUTO, CPU = "auto", torch.device("cpu")
TRAINING = ("cuda", "mps", "cpu")
"""What ``auto`` takes for training: the first of these that is there. For searches it is the CPU."""
Network = TypeVar("Network", bound=nn.Module)


def find_device(name: str = AUTO, auto: Sequence[str] = TRAINING, *, exact: bool = False) -> torch.device:
    """The device ``cpu``, ``cuda``, ``cuda:1``, ``mps``; for ``auto`` the first of ``auto`` that can be used.

    ``exact``: the numbers of plans are computed there, which takes float64; ``mps`` has none. Raises ConfigError, in
    one line that says what is here, for a name that is unknown, not here, or not exact.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == AUTO:
        name = next(each for each in auto if there[each] and not (exact and each == "mps"))
    try:
        device = torch.empty(0, device=name).device
        torch.empty(0, dtype=torch.float64 if exact else None, device=device).cpu()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        here = ", ".join(each for each in there if there[each])
        why = str(error).splitlines()[0][:120] if there.get(name.partition(":")[0], True) else "there is none"
        raise ConfigError(f"device {name!r} cannot be used: {why} (--device: here is {here}, or auto)") from error
    return device


def placed(model: Network, device: torch.device) -> Network:
    """The model on ``device``: itself where it is there already, else a copy."""
    return model if next(model.parameters()).device == device else copy.deepcopy(model).to(device)


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Inside, a GPU convolves in float32, as plans need. Raises CapletError where its memory runs out."""
    cudnn = torch.backends.cudnn
    with ExitStack() as stack:
        if device.type == "cuda":
            flags = cudnn.flags(True, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False)
            stack.enter_context(flags)
        try:
            yield
        except torch.OutOfMemoryError as error:
            why = str(error).splitlines()[0][:160]
            raise CapletError(f"out of memory on {device.type}: use fewer images, or --device cpu ({why})") from error
