"""Squash, softmax and dynamic routing in float (Sabour et al. 2017, equations 1 to 3 and procedure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caplet.nn.points import RoutingHandler
from caplet.nn.routing_grad import RouteFunction, agreement, weighted_sum
from caplet.nn.squash import SQUARED_NORM_GUARD, squash, squash_reference

if TYPE_CHECKING:
    from caplet.nn.layer import Layer

__all__ = ["SQUARED_NORM_GUARD", "lengths", "route", "route_reference", "softmax", "squash", "squash_reference"]


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

    With no handler attached and gradients wanted, :class:`caplet.nn.routing_grad.RouteFunction` computes the same
    values with a cheaper gradient.

    Source: Sabour et al. 2017, procedure 1; Rajasegaran et al. 2019, section 3.2 (joint softmax).
    """
    if layer.handler is None and torch.is_grad_enabled() and votes.requires_grad:
        return RouteFunction.apply(votes, bias, iterations)
    if isinstance(layer.handler, RoutingHandler):
        return layer.handler.route(layer.name, votes, bias, iterations)
    return route_reference(layer, votes, bias, iterations)


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
