"""Dynamic routing with a hand-written gradient: the fast path of training in float."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caplet.nn.squash import no_autocast, squash_backward, squash_reference


def weighted_sum(coupling: Tensor, votes: Tensor) -> Tensor:
    """Sum of votes (B, G, I, D) weighted by coupling (B or 1, G, I) -> (B, G, D)."""
    return torch.matmul(coupling.unsqueeze(-2), votes).squeeze(-2)


def agreement(activation: Tensor, votes: Tensor) -> Tensor:
    """Scalar products of votes (B, G, I, D) with activations (B, G, D) -> (B, G, I)."""
    return torch.matmul(activation.unsqueeze(-2), votes.transpose(-1, -2)).squeeze(-2)


class RouteFunction(torch.autograd.Function):
    """The routing of :func:`caplet.nn.functional.route` as one operation: equal values, a cheaper gradient.

    The votes are by far the largest tensor of a capsule layer. Their gradient is a sum of outer products, one per
    weighted sum and one per agreement; autograd writes and adds these one by one, here one matrix product over the
    stacked factors writes the sum once. With s, c, v, b the preactivation, coupling, activation and logits of an
    iteration t and u the votes:

        dL/du_i = sum_t c_i(t) dL/ds(t) + sum_(t < last) dL/db_i(t + 1) v(t)
    """

    @staticmethod
    def forward(ctx: Any, votes: Tensor, bias: Tensor | None, iterations: int) -> Tensor:
        dtype = votes.dtype
        couplings: list[Tensor] = []
        preactivations: list[Tensor] = []
        activations: list[Tensor] = []
        logits: Tensor | None = None
        with no_autocast(votes):
            for iteration in range(iterations):
                if logits is None:
                    coupling = votes.new_full((1, *votes.shape[1:3]), 1.0 / votes.shape[1])
                else:
                    coupling = torch.softmax(logits, 1).to(dtype)
                preactivation = weighted_sum(coupling, votes)
                if bias is not None:
                    preactivation = preactivation + bias.to(dtype)
                activation = squash_reference(preactivation, -1)
                couplings.append(coupling)
                preactivations.append(preactivation)
                activations.append(activation)
                if iteration < iterations - 1:
                    update = agreement(activation, votes)
                    logits = update if logits is None else logits + update
        ctx.save_for_backward(votes, *couplings, *preactivations, *activations)
        ctx.iterations = iterations
        ctx.bias_dtype = None if bias is None else bias.dtype
        return activation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        votes, *saved = ctx.saved_tensors
        count: int = ctx.iterations
        couplings, preactivations, activations = saved[:count], saved[count : 2 * count], saved[2 * count :]
        left: list[Tensor] = []  # factors (B, G, I) of the votes' gradient
        right: list[Tensor] = []  # their partners (B, G, D)
        bias_grad: Tensor | None = None
        logits_grad: Tensor | None = None
        for iteration in reversed(range(count)):
            coupling = couplings[iteration]
            grad = squash_backward(preactivations[iteration], grad, -1)
            bias_grad = grad if bias_grad is None else bias_grad + grad
            left.append(coupling.expand(votes.shape[:3]))
            right.append(grad)
            if iteration == 0:
                break
            slope = agreement(grad, votes) * coupling  # back through the softmax over the output capsules
            update = slope - coupling * slope.sum(1, keepdim=True)
            logits_grad = update if logits_grad is None else logits_grad + update
            left.append(logits_grad)
            right.append(activations[iteration - 1])
            grad = weighted_sum(logits_grad, votes)
        votes_grad = torch.matmul(torch.stack(left, -1), torch.stack(right, -2))
        if ctx.bias_dtype is None or bias_grad is None:
            return votes_grad, None, None
        return votes_grad, bias_grad.sum(0).to(ctx.bias_dtype), None
