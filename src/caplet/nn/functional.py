"""Squash and its gradient, softmax, lengths: the functions of capsules in float (Sabour et al. 2017)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Keeps the gradient of the norm finite at the zero vector; far below float32 resolution of any real capsule.
SQUARED_NORM_GUARD = 1e-12


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Coupling coefficients: softmax of ``logits`` along ``dim`` (Sabour et al. 2017, equation 3)."""
    return torch.softmax(logits, dim)


def lengths(capsules: Tensor) -> Tensor:
    """Lengths of capsules (..., D) -> (...)."""
    return torch.sqrt((capsules * capsules).sum(-1) + SQUARED_NORM_GUARD)


def squash_reference(capsules: Tensor, dim: int) -> Tensor:
    """Squash capsules along ``dim``: ``v = s * |s| / (1 + |s|^2)``, so that ``|v| = |s|^2 / (1 + |s|^2) < 1``.

    Args:
        capsules: float tensor; axis ``dim`` holds the components of one capsule.

    Returns:
        Tensor of the same shape, dtype and memory layout; lengths are computed in float32 or wider.

    Source: Sabour et al. 2017, equation 1.

    >>> squash_reference(torch.tensor([[3.0, 4.0]]), 1)
    tensor([[0.5769, 0.7692]])
    """
    return capsules * _factor(_dot(capsules, capsules, dim)).to(capsules.dtype)


def squash(capsules: Tensor, dim: int) -> Tensor:
    """As :func:`squash_reference`, with a cheaper gradient (tested equal to it)."""
    if torch.is_grad_enabled() and capsules.requires_grad:
        maps = capsules.dtype is torch.bfloat16 and capsules.ndim == 5 and dim == 2
        result: Tensor = _SquashMaps.apply(capsules) if maps else _Squash.apply(capsules, dim)
        return result
    return squash_reference(capsules, dim)


def squash_backward(capsules: Tensor, grad: Tensor, dim: int) -> Tensor:
    """Gradient of a loss by ``capsules``, given its gradient ``grad`` by their squash.

    With n = |s|^2 and f(n) = sqrt(n) / (1 + n): v = f s and dL/ds = f g + 2 f'(n) (g . s) s.
    """
    return _backward(capsules, _dot(capsules, capsules, dim), grad, dim)


def _dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return (a * b).sum(dim, keepdim=True, dtype=torch.promote_types(a.dtype, torch.float32))


def _factor(squared: Tensor) -> Tensor:
    return torch.sqrt(squared + SQUARED_NORM_GUARD) / (1 + squared)


def _slope(squared: Tensor) -> Tensor:
    """2 f'(n) of f(n) = sqrt(n) / (1 + n)."""
    return (1 - squared) / (torch.sqrt(squared + SQUARED_NORM_GUARD) * (1 + squared) ** 2)


def _backward(capsules: Tensor, squared: Tensor, grad: Tensor, dim: int) -> Tensor:
    along = _dot(grad, capsules, dim) * _slope(squared)
    result = grad * _factor(squared).to(grad.dtype)
    return result.addcmul_(capsules, along.to(grad.dtype))


class _Squash(torch.autograd.Function):
    """Squash with a hand-written gradient: three passes over the capsules where autograd makes eight."""

    @staticmethod
    def forward(ctx: Any, capsules: Tensor, dim: int) -> Tensor:
        squared = _dot(capsules, capsules, dim)
        ctx.save_for_backward(capsules, squared)
        ctx.dim = dim
        return capsules * _factor(squared).to(capsules.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        capsules, squared = ctx.saved_tensors
        return _backward(capsules, squared, grad, ctx.dim), None


class _SquashMaps(torch.autograd.Function):
    """:class:`_Squash` of capsule maps (B, T, D, H, W), whose short sums and broadcasts PyTorch does not vectorise.

    The maps are read as rows of T*D channels; sums over a capsule and the way back are products with a 0/1 matrix,
    exact but for the rounding of their results to the maps' dtype and the order of the sums.
    """

    @staticmethod
    def forward(ctx: Any, capsules: Tensor) -> Tensor:
        _, types, dim, _, _ = capsules.shape
        rows, gather, scatter = _as_rows(capsules), *_membership(types, dim, capsules)
        with no_autocast(capsules):
            squared = _wide((rows * rows) @ gather)
            factor = _factor(squared).to(rows.dtype) @ scatter
        ctx.save_for_backward(rows, squared, factor)
        ctx.shape = capsules.shape
        return _as_maps(rows * factor, capsules.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows, squared, factor = ctx.saved_tensors
        gather, scatter = _membership(ctx.shape[1], ctx.shape[2], rows)
        grad = _as_rows(grad)
        along = _wide((grad * rows) @ gather) * _slope(squared)
        return _as_maps((grad * factor).addcmul_(rows, along.to(rows.dtype) @ scatter), ctx.shape)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off on the device of ``x``; tensors without data (``meta``) have none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _as_rows(maps: Tensor) -> Tensor:
    """(B, T, D, H, W) -> (B*H*W, T*D), a view of channels-last memory."""
    return maps.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2)


def _as_maps(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, types, dim, height, width = shape
    return rows.view(batch, height, width, types, dim).permute(0, 3, 4, 1, 2)


def _membership(types: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """0/1 matrix (T*D, T) that sums the components of each capsule, and its transpose."""
    gather = torch.eye(types, dtype=like.dtype, device=like.device).repeat_interleave(dim, 0)
    return gather, gather.T.contiguous()
