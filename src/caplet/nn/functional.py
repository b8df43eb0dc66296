"""Squash, softmax and dynamic routing in float (Sabour et al. 2017, equations 1 to 3 and procedure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from caplet.nn.layer import Layer

#: Keeps the gradient of the norm finite at the zero vector; far below float32 resolution of any real capsule.
SQUARED_NORM_GUARD = 1e-12


def squash_reference(capsules: Tensor, dim: int) -> Tensor:
    """Squash capsules along ``dim``: ``v = s * |s| / (1 + |s|^2)``, so that ``|v| = |s|^2 / (1 + |s|^2) < 1``.

    Args:
        capsules: float tensor; axis ``dim`` holds the components of one capsule.

    Returns:
        Tensor of the same shape, dtype and memory layout.

    Source: Sabour et al. 2017, equation 1.

    >>> squash_reference(torch.tensor([[3.0, 4.0]]), 1)
    tensor([[0.5769, 0.7692]])
    """
    squared = (capsules * capsules).sum(dim, keepdim=True, dtype=torch.float32)
    return capsules * _squash_factor(squared).to(capsules.dtype)


def _squash_factor(squared: Tensor) -> Tensor:
    return torch.sqrt(squared + SQUARED_NORM_GUARD) / (1 + squared)


class _Squash(torch.autograd.Function):
    """Squash with a hand-written gradient: three passes over the capsules where autograd makes eight.

    With n = |s|^2 and f(n) = sqrt(n) / (1 + n): v = f s and dL/ds = f g + 2 f'(n) (g . s) s.
    """

    @staticmethod
    def forward(ctx: Any, capsules: Tensor, dim: int) -> Tensor:
        squared = (capsules * capsules).sum(dim, keepdim=True, dtype=torch.float32)
        factor = _squash_factor(squared)
        ctx.save_for_backward(capsules, squared, factor)
        ctx.dim = dim
        return capsules * factor.to(capsules.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        capsules, squared, factor = ctx.saved_tensors
        along = (grad * capsules).sum(ctx.dim, keepdim=True, dtype=torch.float32)
        result = grad * factor.to(grad.dtype)
        return result.addcmul_(capsules, (along * _squash_slope(squared)).to(grad.dtype)), None


class _SquashMaps(torch.autograd.Function):
    """:class:`_Squash` of capsule maps in bfloat16, whose short sums and broadcasts PyTorch does not vectorise.

    The maps are read as rows of T*D channels; sums over a capsule and the way back are products with a 0/1 matrix,
    exact but for the rounding of their results to bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, capsules: Tensor) -> Tensor:
        _, types, dim, _, _ = capsules.shape
        rows, gather, spread = _as_rows(capsules), *_membership(types, dim, capsules)
        squared = ((rows * rows) @ gather).float()
        factor = _squash_factor(squared).to(rows.dtype) @ spread
        ctx.save_for_backward(rows, squared, factor)
        ctx.shape = capsules.shape
        return _as_maps(rows * factor, capsules.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows, squared, factor = ctx.saved_tensors
        gather, spread = _membership(ctx.shape[1], ctx.shape[2], rows)
        grad = _as_rows(grad)
        along = ((grad * rows) @ gather).float() * _squash_slope(squared)
        return _as_maps((grad * factor).addcmul_(rows, along.to(rows.dtype) @ spread), ctx.shape)


def _squash_slope(squared: Tensor) -> Tensor:
    """2 f'(n) of f(n) = sqrt(n) / (1 + n)."""
    return (1 - squared) / (torch.sqrt(squared + SQUARED_NORM_GUARD) * (1 + squared) ** 2)


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


def squash(capsules: Tensor, dim: int) -> Tensor:
    """As :func:`squash_reference`, with a cheaper gradient (tested equal to it)."""
    if torch.is_grad_enabled() and capsules.requires_grad:
        if capsules.dtype is torch.bfloat16 and capsules.ndim == 5 and dim == 2:
            return _SquashMaps.apply(capsules)
        return _Squash.apply(capsules, dim)
    return squash_reference(capsules, dim)


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Coupling coefficients: softmax of ``logits`` along ``dim`` (Sabour et al. 2017, equation 3)."""
    return torch.softmax(logits, dim)


def lengths(capsules: Tensor) -> Tensor:
    """Lengths of capsules (..., D) -> (...)."""
    return torch.sqrt((capsules * capsules).sum(-1) + SQUARED_NORM_GUARD)


def route(layer: Layer, votes: Tensor, bias: Tensor | None, iterations: int) -> Tensor:
    """Dynamic routing by agreement, for dense and convolutional capsules alike.

    The softmax of an input capsule runs over all its output capsules. For a convolutional layer the output capsules
    are all types at all positions, which gives DeepCaps' joint softmax over (types x height x width).

    Args:
        layer: owner of the points ``coupling``, ``preactivation``, ``activation`` and (with more than one iteration)
            ``logits``.
        votes: float (B, G, I, D): the vote of each of I input capsules for each of G output capsules.
        bias: float (G, D) added to every preactivation, or None.
        iterations: at least 1. The last iteration updates no logits; one iteration has neither logits nor softmax.

    Returns:
        Activations, float (B, G, D).

    Source: Sabour et al. 2017, procedure 1; Rajasegaran et al. 2019, section 3.2 (joint softmax).
    """
    _, out_capsules, in_capsules, _ = votes.shape
    coupling = layer.tap("coupling", votes.new_full((1, out_capsules, in_capsules), 1.0 / out_capsules))
    logits: Tensor | None = None
    for iteration in range(iterations):
        if logits is not None:
            coupling = layer.softmax(logits, 1, iteration)
        preactivation = weighted_sum(coupling, votes)
        if bias is not None:
            preactivation = preactivation + bias
        preactivation = layer.tap("preactivation", preactivation, iteration)
        activation = layer.squash(preactivation, -1, iteration)
        if iteration < iterations - 1:
            agreement = torch.matmul(activation.unsqueeze(-2), votes.transpose(-1, -2)).squeeze(-2)
            logits = layer.tap("logits", agreement if logits is None else logits + agreement, iteration)
    return activation


def weighted_sum(coupling: Tensor, votes: Tensor) -> Tensor:
    """Sum of votes (B, G, I, D) weighted by coupling (B or 1, G, I) -> (B, G, D)."""
    return torch.matmul(coupling.unsqueeze(-2), votes).squeeze(-2)
