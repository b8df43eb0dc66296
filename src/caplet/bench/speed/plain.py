"""ShallowCaps and DeepCaps in plain broadcast form: the usual way to write them, for comparison.

Channels first, votes by multiply-and-sum, and every routing iteration updates the logits, as the public float codes do.
They compute what caplet's models compute (a test compares the outputs), only slower.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.models.base import CapsNet
from caplet.models.deep import CapsBlock, DeepCaps
from caplet.models.shallow import ShallowCaps
from caplet.nn.caps import ConvCaps2d, DenseCaps, RoutedConvCaps
from caplet.nn.conv import ConvReLU


def plain_form(model: CapsNet) -> nn.Module | None:
    """``model`` in plain form with copies of its weights; None for families, or pruned models, that have none here.

    Input float (B, C, H, W) in [0, 1], output float (B, classes, D), as of ``model``.
    """
    if isinstance(model, ShallowCaps) and model.config.kept is None:
        return PlainShallow(model)
    if isinstance(model, DeepCaps) and model.config.kept is None:
        return PlainDeep(model)
    return None


def squash(s: Tensor, dim: int) -> Tensor:
    """v = s |s| / (1 + |s|^2)."""
    norm = torch.linalg.vector_norm(s, dim=dim, keepdim=True)
    squashed: Tensor = s * norm / (1 + norm * norm)
    return squashed


def route(votes: Tensor, bias: Tensor, iterations: int) -> Tensor:
    """Routing of dense votes (B, I, G, D). The votes' dimension is moved to the front for the product with the coupling
    coefficients, and back for the sum."""
    front = votes.permute(3, 0, 1, 2).contiguous()
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(iterations):
        weighted = F.softmax(logits, dim=2) * front
        activation = squash(weighted.permute(1, 2, 3, 0).contiguous().sum(1) + bias, 2)
        logits = logits + (votes * activation.unsqueeze(1)).sum(3)
    return activation


def route_maps(votes: Tensor, bias: Tensor, iterations: int) -> Tensor:
    """Routing of maps of votes (B, I, G, D, H, W) with one softmax over G, H and W."""
    logits = votes.new_zeros(*votes.shape[:3], *votes.shape[4:])
    for _ in range(iterations):
        coupling = F.softmax(logits.flatten(2), dim=2).view_as(logits)
        activation = squash((coupling.unsqueeze(3) * votes).sum(1) + bias, 2)
        logits = logits + (votes * activation.unsqueeze(1)).sum(3)
    return activation


def conv2d(layer: ConvReLU | ConvCaps2d) -> nn.Conv2d:
    """The layer's convolution as PyTorch's own module, contiguous."""
    out, channels, kernel, _ = layer.weight.shape
    conv = nn.Conv2d(channels, out, kernel, layer.stride, layer.padding, bias=layer.bias is not None)
    _copy(conv.weight, layer.weight)
    if conv.bias is not None and layer.bias is not None:
        _copy(conv.bias, layer.bias)
    return conv


class PlainDense(nn.Module):
    """Class capsules: each vote is a broadcast product summed over the input dimension."""

    def __init__(self, layer: DenseCaps) -> None:
        super().__init__()
        self.iterations = layer.iterations
        self.shape = (layer.in_capsules, layer.out_capsules, layer.dim)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        bias = torch.zeros(layer.out_shape) if layer.bias is None else layer.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        votes = (x.unsqueeze(3) * self.weight).sum(2).view(-1, *self.shape)
        return route(votes, self.bias, self.iterations)


class PlainShallow(nn.Module):
    """Stem convolutions, primary capsules, class capsules."""

    def __init__(self, model: ShallowCaps) -> None:
        super().__init__()
        self.stem = nn.ModuleList(conv2d(layer) for layer in model.stem if isinstance(layer, ConvReLU))
        self.slopes = [conv.slope for conv in model.config.stem]
        self.primary = conv2d(model.primary)
        self.capsules = model.primary.out_shape
        self.digit = PlainDense(model.digit)

    def forward(self, x: Tensor) -> Tensor:
        for conv, slope in zip(self.stem, self.slopes, strict=True):
            x = F.leaky_relu(conv(x), slope) if slope else F.relu(conv(x))
        x = squash(self.primary(x).reshape(len(x), *self.capsules), 2)
        capsules: Tensor = self.digit(x.permute(0, 1, 3, 4, 2).reshape(len(x), -1, self.capsules[1]))
        return capsules


class PlainBlock(nn.Module):
    """Three conv-capsule layers and a skip; the last block's skip is a routed 3-D convolution."""

    def __init__(self, block: CapsBlock) -> None:
        super().__init__()
        self.types, self.dim = block.l1.types, block.l1.dim
        self.l1, self.l2, self.l3 = conv2d(block.l1), conv2d(block.l2), conv2d(block.l3)
        self.skip: nn.Module
        if isinstance(block.skip, ConvCaps2d):
            self.skip = conv2d(block.skip)
        else:
            self.skip = conv3d(block.skip)
            self.bias = nn.Parameter(block.skip.bias.detach().clone()[:, :, None, None])
            self.iterations = block.skip.iterations

    def caps(self, x: Tensor) -> Tensor:
        """Squashed capsules (B, T, D, H, W) of a map (B, T * D, H, W)."""
        return squash(x.reshape(len(x), self.types, self.dim, *x.shape[2:]), 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.caps(self.l1(x.flatten(1, -3) if x.ndim == 5 else x))
        second = self.caps(self.l2(first.flatten(1, 2)))
        third = self.caps(self.l3(second.flatten(1, 2)))
        if isinstance(self.skip, nn.Conv3d):
            votes = self.skip(first.flatten(1, 2).unsqueeze(1))  # B, T * D, I, H, W
            votes = votes.permute(0, 2, 1, 3, 4).contiguous().unflatten(2, (self.types, self.dim))
            return third + route_maps(votes, self.bias, self.iterations)
        return third + self.caps(self.skip(first.flatten(1, 2)))


class PlainDeep(nn.Module):
    """Convolution, ReLU and batch norm, four blocks, class capsules over the last two."""

    def __init__(self, model: DeepCaps) -> None:
        super().__init__()
        norm = model.conv1.batch_norm
        assert norm is not None
        self.conv1 = conv2d(model.conv1)
        self.norm = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
        self.norm.load_state_dict(norm.state_dict())
        self.blocks = nn.ModuleList(PlainBlock(block) for block in model.blocks if isinstance(block, CapsBlock))
        self.digit = PlainDense(model.digit)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(self.conv1(x)))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        capsules = [m.permute(0, 1, 3, 4, 2).reshape(len(m), -1, m.shape[2]) for m in maps[-2:]]
        classes: Tensor = self.digit(torch.cat(capsules, 1))
        return classes


def conv3d(layer: RoutedConvCaps) -> nn.Conv3d:
    """The shared convolution of a routed layer as a 3-D one over the stacked input types."""
    out, depth, kernel, _ = layer.weight.shape
    strides, padding = (depth, layer.stride, layer.stride), (0, layer.padding, layer.padding)
    conv = nn.Conv3d(1, out, (depth, kernel, kernel), strides, padding)
    assert conv.bias is not None
    _copy(conv.weight, layer.weight.unsqueeze(1))
    _copy(conv.bias, layer.vote_bias)
    return conv


def _copy(to: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        to.copy_(values)
