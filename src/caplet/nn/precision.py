"""Mixed precision: bfloat16 where it is fast and harmless, float32 where capsules are routed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from caplet.nn.caps import DenseCaps, RoutedConvCaps

ROUTED = (DenseCaps, RoutedConvCaps)


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
