"""A PyTorch module at work: what its parts read and give on images, in evaluation mode, without a change to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from caplet.errors import ModelError
from caplet.models.assemble import first_line, shape_text

LEAST = 0.01
"""Differences are relative to an image's largest value, or to this where all of its values are smaller."""


class Seen(NamedTuple):
    """What a module gave for a batch of images.

    Attributes:
        outputs: every tensor that its forward returned, at any depth.
        parts: by path of a part that ran, for each of its calls the first tensor that it read and that it gave.
    """

    outputs: list[Tensor]
    parts: dict[str, list[tuple[Tensor | None, Tensor | None]]]


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two batches, relative to each image's largest expected value; infinite for a NaN."""
    scale = expected.flatten(1).abs().amax(1).clamp(min=LEAST)
    worst = ((found - expected).flatten(1).abs().amax(1) / scale).max()
    return float(torch.nan_to_num(worst, nan=torch.inf))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``. Raises ModelError."""
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        kind = type(module).__name__
        raise ModelError(f"a {kind} cannot be adopted; give the torch.nn.Module itself (not a file, script or trace)")
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def watch(net: nn.Module, images: Tensor, where: str) -> Seen:
    """Run ``net`` on ``images``, with weights of 16 bits as float32; its state, weights and mode stay as they are.

    Raises:
        ModelError: its forward fails.
    """
    parts: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}

    def note(path: str, _: nn.Module, read: Any, given: Any) -> None:
        first = [next((_plain(tensor) for tensor in _tensors(value)), None) for value in (read, given)]
        parts.setdefault(path, []).append((first[0], first[1]))

    tensors = dict((*net.named_parameters(), *net.named_buffers()))
    wide = {name: t.float() for name, t in tensors.items() if t.dtype in (torch.float16, torch.bfloat16)}
    floats = [t for t in tensors.values() if t.is_floating_point()]
    if floats:
        images = images.to(floats[0].device, torch.float64 if floats[0].dtype is torch.float64 else torch.float32)
    hooks = [part.register_forward_hook(partial(note, path)) for path, part in net.named_modules()]
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), _evaluating(net):
            outputs = [_plain(tensor) for tensor in _tensors(functional_call(net, wide, (images,)))]
    except Exception as error:  # a user's code can fail in any way
        call = f"its forward fails on one argument, a batch of images {shape_text(images.shape)}"
        todo = "give image=(channels, rows, columns), and the part of the module that takes images alone"
        raise ModelError(f"{where}: {call}: {first_line(error)}; {todo}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(outputs, parts)


def check_alone(net: nn.Module, images: Tensor, outputs: list[Tensor], tolerance: float, where: str) -> None:
    """Raise ModelError where an image's outputs depend on chance, or on the other images of its batch."""
    half = len(images) // 2
    for batch, what in ((images, "from run to run"), (images[:half], "with the other images of the batch")):
        for first, again in zip(outputs, watch(net, batch, where).outputs, strict=False):
            alike = first.ndim > 0 < again.ndim and (len(first), len(again)) == (len(images), len(batch))
            alike = alike and first.is_floating_point() and first.shape[1:] == again.shape[1:]
            worst = difference(again, first[: len(batch)]) if alike else 0.0
            if worst > tolerance:
                rule = "no caplet model has dropout, batch statistics or routing logits averaged over a batch"
                raise ModelError(f"{where}: what it gives for an image changes {what}, by {worst:.1e}; {rule}")


def _plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU, floating-point values as float32: what comes later may change the original in place."""
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
