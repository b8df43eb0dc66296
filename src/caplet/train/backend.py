"""Where a step is computed: on one device, or by all processes that torchrun started, each with a part of the batch.

Process 0 has the run: it draws the batches, steps the optimiser, averages, evaluates and decides. In every step it
gives each other process the parameters and its images, and gets gradients: what they keep cannot differ from its own.
Batch norms see the statistics of the whole batch, so that many processes compute what one would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from caplet.nn.device import AUTO, TRAINING, find_device
from caplet.train.task import Task
from caplet.workers.group import Group, current

MEASURED = ("loss", "margin", "reconstruction", "distillation", "accuracy")
"""What :meth:`Backend.gradients` gives, in this order."""


class Backend:
    """One device; or all processes that this one has joined (:func:`caplet.workers.group.join`).

    Args:
        device: of each process, as :func:`caplet.nn.device.find_device` takes it.
        exact: whether numbers of plans are computed there.

    Attributes:
        device: where the network lives.
        group: the processes.

    Raises:
        ConfigError: the device is unknown or not there.
    """

    def __init__(self, device: str = AUTO, exact: bool = False) -> None:
        self.group = current()
        together = [name for name in TRAINING if self.group.count == 1 or name != "mps"]  # which no group can use
        self.device = find_device(device, together, exact=exact)
        self._known: dict[str, Any] | None = None

    @contextmanager
    def training(self, task: Task[Any]) -> Iterator[None]:
        """Inside, the other processes have ``task`` and compute their parts of its steps."""
        if self.group.count == 1:
            yield
            return
        self.parameters = _trained(task)
        self._known = task.state()
        self.group.start(_follow, task.to_send(), self.device.type)
        try:
            yield
        finally:
            self.group.dismiss()

    def gradients(self, task: Task[Any], images: Tensor, labels: Tensor) -> list[float]:
        """Leave the gradient of the loss in the parameters, and give the :data:`MEASURED` means of the batch.

        Args:
            images, labels: as :meth:`caplet.train.task.Task.batch` gives them; on the CPU where they are shared out.

        Raises:
            WorkerError: a process was lost, or failed.
        """
        group = self.group
        if group.count == 1:
            return _gradients(task, images.to(self.device), labels.to(self.device)).tolist()
        state = task.state()
        news, self._known = (None if state == self._known else state), state
        parts = zip(images.tensor_split(group.count), labels.tensor_split(group.count), strict=True)
        split = [(task.done, news, len(some) / len(images), some.clone(), its.clone()) for some, its in parts]
        with group.unbroken():
            _, _, part, images, labels = group.deal(split)
            return _part(group, task, self.parameters, part, images.to(self.device), labels.to(self.device)).tolist()


def _trained(task: Task[Any]) -> list[nn.Parameter]:
    return [parameter for each in task.optimizer().param_groups for parameter in each["params"]]


def _gradients(task: Task[Any], images: Tensor, labels: Tensor, part: float = 1.0) -> Tensor:
    """Gradients of ``part`` times the loss; what was measured times ``part``, float (5,)."""
    found = task.losses(images, labels)
    torch.autograd.backward(found["loss"] * part if part != 1.0 else found["loss"])
    zero = torch.zeros_like(found["loss"])
    return torch.stack([found.get(name, zero).detach() for name in MEASURED]) * part


def _part(
    group: Group, task: Task[Any], parameters: list[nn.Parameter], part: float, images: Tensor, labels: Tensor
) -> Tensor:
    """As :func:`_gradients`, of the whole batch, in process 0; each process has ``part`` of it."""
    sizes = [each.numel() for each in parameters]
    values = torch.cat([each.detach().reshape(-1) for each in parameters])
    group.broadcast(values)
    for each, value in zip(parameters, torch.split(values, sizes), strict=True):
        each.detach().copy_(value.view(each.shape))
    with _agreeing(task.network, group, part):
        measured = _gradients(task, images, labels, part)
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    total = torch.cat([*(gradient.reshape(-1) for gradient in gradients), measured.float()])
    group.total(total)
    *sums, measured = torch.split(total, [*sizes, len(MEASURED)])
    for gradient, value in zip(gradients, sums, strict=True):
        gradient.copy_(value.view(gradient.shape))
    return measured


def _follow(group: Group, task: Task[Any], kind: str) -> None:
    """What another process than 0 does in training: its part of every step."""
    device = torch.empty(0, device=kind).device
    task.to(device)
    if task.settings.threads is not None:
        torch.set_num_threads(task.settings.threads)
    parameters = _trained(task)
    while (given := group.receive()) is not None:
        task.done, news, part, images, labels = given
        if news is not None:
            task.restore(news)
        for parameter in parameters:
            parameter.grad = None
        _part(group, task, parameters, part, images.to(device), labels.to(device))


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = value.clone()
        group.total_everywhere(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        ctx.group.total_everywhere(total)
        return total, None


@contextmanager
def _agreeing(network: nn.Module, group: Group, part: float) -> Iterator[None]:
    """Inside, batch norms in training take the statistics of the whole batch, of which ``part`` is here."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for norm in norms:
        vars(norm)["forward"] = _Agreed(norm, group, part)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


class _Agreed:
    """A batch norm's forward pass in training; float (B, C, H, W) to the same."""

    def __init__(self, norm: nn.BatchNorm2d, group: Group, part: float) -> None:
        self.norm, self.group, self.part = norm, group, part

    def __call__(self, x: Tensor) -> Tensor:
        norm, value = self.norm, x.float()
        mean: Tensor = _Total.apply(value.mean((0, 2, 3)) * self.part, self.group)
        centred = value - mean.view(-1, 1, 1)
        variance: Tensor = _Total.apply(centred.square().mean((0, 2, 3)) * self.part, self.group)
        count = x.numel() // x.shape[1] / self.part
        with torch.no_grad():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += 1
            weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach(), weight)
            norm.running_var.lerp_(variance.detach() * (count / (count - 1)), weight)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return (centred * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).to(x.dtype)
