"""Batch norms of CNN trunks folded into their convolutions, so that fitted weights have parameters to live in."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from caplet.models.base import CapsNet
from caplet.nn.conv import ConvNorm


def folded(model: CapsNet) -> CapsNet:
    """A copy that computes the same, in which ``weight`` of every :class:`ConvNorm` is what its point holds.

    Its batch norm has scale 1 and mean 0, exactly; its bias is what the point ``bias`` holds.
    """
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for layer in copied.layers():
            if isinstance(layer, ConvNorm):
                _fold(layer)
    return copied


def _fold(layer: ConvNorm) -> None:
    weight, bias = (tensor.clone() for tensor in layer.folded())
    norm = layer.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    layer.weight.copy_(weight)
    norm.weight.fill_(1.0)
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.copy_(_unit_variance(norm.running_var, norm.eps))


def _unit_variance(like: Tensor, eps: float) -> Tensor:
    """The variance to which ``eps`` adds up to exactly 1."""
    near = torch.ones_like(like) - eps
    for variance in (near, torch.nextafter(near, near + 1), torch.nextafter(near, near - 1)):
        if bool((variance + eps == 1).all()):
            return variance
    raise AssertionError(f"no float32 plus {eps} is 1")
