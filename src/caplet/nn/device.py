"""Where networks compute, and how: devices by name, what is set while they compute, and mixed precision."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from caplet.errors import CapletError, ConfigError
from caplet.nn.caps import DenseCaps, RoutedConvCaps

AUTO, CPU = "auto", torch.device("cpu")
TRAINING = ("cuda", "mps", "cpu")
"""What ``auto`` takes for training: the first of these that is there. For searches it is the CPU."""
Network = TypeVar("Network", bound=nn.Module)
ROUTED = (DenseCaps, RoutedConvCaps)


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


def has_bfloat16(device: torch.device | None = None) -> bool:
    """Whether a device, this processor by default, computes with bfloat16; False where torch does not tell."""
    if device is not None and device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    ask = getattr(torch.cpu, "get_capabilities", None)
    found: dict[str, Any] = {} if ask is None else ask()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def mixed(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Run what is inside in ``precision``: ``float32``, or ``bfloat16`` by autocast.

    With ``bfloat16`` layers with routing still compute votes, logits and sums in float32: on a CPU with bfloat16
    instructions that was no slower than routing in bfloat16, and agreement adds up over iterations.
    """
    if precision == "float32":
        yield
        return
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ROUTED):
                stack.enter_context(_in_float32(module, device))
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


@contextmanager
def _in_float32(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """Turn autocast off inside ``layer.forward`` and give it float32 input."""
    entered: list[ExitStack] = []

    def before(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        entered.append(ExitStack())
        entered[-1].enter_context(torch.autocast(device.type, enabled=False))
        return tuple(x.float() for x in inputs)

    def after(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entered.pop().close()

    handles = (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
