"""Where a run computes: one device in plain torch, or several through Hugging Face ``accelerate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from caplet.errors import ConfigError


class Backend:
    """One device, plain torch.

    Attributes:
        device: where the network lives.
        main: whether this process writes files and shows progress.
        processes: number of processes; each works on its share of every batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.main = True
        self.processes = 1

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network to call and the optimiser to step in place of these."""
        return network, optimizer

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, on its device."""
        return batch.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over the processes."""
        loss.backward()

    def mean(self, values: Tensor) -> list[float]:
        """Values float (n,) averaged over the processes."""
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag


class AccelerateBackend(Backend):
    """All processes that ``accelerate launch`` started (without it, one).

    Raises:
        ConfigError: accelerate is not installed.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ConfigError("accelerate is not installed: pip install 'caplet[accelerate]'") from error
        self.accelerator = Accelerator()
        super().__init__(self.accelerator.device)
        self.main = self.accelerator.is_main_process
        self.processes = self.accelerator.num_processes

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return self.accelerator.prepare(network, optimizer)

    def share(self, batch: Tensor) -> Tensor:
        size = len(batch) // self.processes
        start = self.accelerator.process_index * size
        return batch[start : start + size].to(self.device)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def mean(self, values: Tensor) -> list[float]:
        return self.accelerator.reduce(values, reduction="mean").tolist()

    def any(self, flag: bool) -> bool:
        if self.processes == 1:
            return flag
        return self.mean(torch.tensor([float(flag)], device=self.device))[0] > 0


def make_backend(accelerate: bool, device: str | None) -> Backend:
    """The backend asked for; without ``accelerate`` on ``device``, or the GPU if there is one, or the CPU.

    Raises:
        ConfigError: accelerate is not installed, or the device is unknown or not there.
    """
    if accelerate:
        return AccelerateBackend()
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return Backend(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
