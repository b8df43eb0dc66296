"""Dynamic routing by agreement in float, and its gradient (Sabour et al. 2017, equations 1 to 3 and procedure 1)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from caplet.nn.functional import no_autocast, squash_backward, squash_reference
from caplet.nn.layer import Layer


def in_parts(layer: Layer, routed: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``routed(x)``, for so many images at a time as the layer keeps votes of; each part's votes are computed twice.

    The second time is when its gradient is. Results are those of the whole but for the order of sums in a matrix
    product, which may depend on the number of images; with a handler attached, all images are routed together.

    Args:
        routed: input capsules (B, ...) -> output capsules (B, ...), each image by itself.
    """
    most = layer.votes_at_once
    if most is None or len(x) <= most or layer.handler is not None:
        return routed(x)
    if not torch.is_grad_enabled():
        return torch.cat([routed(part) for part in torch.split(x, most)])
    parts = (checkpoint(routed, part, use_reentrant=False, preserve_rng_state=False) for part in torch.split(x, most))
    return torch.cat([*parts])


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

    With no handler attached and gradients wanted, :class:`RouteFunction` computes the same values with a cheaper
    gradient.

    Source: Sabour et al. 2017, procedure 1; Rajasegaran et al. 2019, section 3.2 (joint softmax).
    """
    if layer.handler is None and torch.is_grad_enabled() and votes.requires_grad:
        routed: Tensor = RouteFunction.apply(votes, bias, iterations)
        return routed
    whole = None if layer.handler is None else layer.handler.route(layer.name, votes, bias, iterations)
    return route_reference(layer, votes, bias, iterations) if whole is None else whole


def route_reference(layer: Layer, votes: Tensor, bias: Tensor | None, iterations: int) -> Tensor:
    """:func:`route` step by step, every tensor through its point; differentiated by autograd."""
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
            update = agreement(activation, votes)
            logits = layer.tap("logits", update if logits is None else logits + update, iteration)
    return activation


def weighted_sum(coupling: Tensor, votes: Tensor) -> Tensor:
    """Sum of votes (B, G, I, D) weighted by coupling (B or 1, G, I) -> (B, G, D)."""
    return torch.matmul(coupling.unsqueeze(-2), votes).squeeze(-2)


def agreement(activation: Tensor, votes: Tensor) -> Tensor:
    """Scalar products of votes (B, G, I, D) with activations (B, G, D) -> (B, G, I)."""
    return torch.matmul(activation.unsqueeze(-2), votes.transpose(-1, -2)).squeeze(-2)


class RouteFunction(torch.autograd.Function):
    """The routing of :func:`route` as one operation: equal values, a cheaper gradient.

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
