"""Where a job computes, with or without others who share its work."""

from collections.abc import Sequence

import torch

from caplet.errors import ConfigError
from caplet.nn.device import CPU, find_device
from caplet.workers.group import current
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Team


def job_device(
    name: str, workers: WorkerSettings | Team | None = None, auto: Sequence[str] = ("cpu",), *, exact: bool = True
) -> torch.device:
    """As :func:`caplet.nn.device.find_device`, for a job that measures: workers, and processes that torchrun started,
    do so on the CPU. Raises ConfigError also where another device is named beside workers."""
    if isinstance(workers, WorkerSettings):
        away = workers.cluster is not None or (workers.workers or 1) > 1
    else:
        away = workers is not None and workers.away
    shared = away or current().count > 1
    device = find_device(name, ("cpu",) if shared else auto, exact=exact)
    if away and device != CPU:
        raise ConfigError(f"device {name!r}: workers compute on the CPU; leave out --device, or the workers")
    return CPU if shared else device
