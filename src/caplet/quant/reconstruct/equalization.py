"""Cross-layer equalization: channels of a ReLU convolution scaled so that they and what reads them use their ranges.

ReLU is homogeneous: dividing a channel by a positive factor before it and multiplying the next convolution's weights
for that channel by the same factor changes nothing in float. Squash is not homogeneous, so nothing is ever moved
across one. Batch norms of CNN trunks are folded into their convolutions, so that fitted weights have parameters to live
in.

Source: Nagel et al. 2019 (data-free quantization, cross-layer equalization). Differs: the range of a channel is that of
its activations on calibration images, the tensor that is rounded, not that of the weights that make it.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.caps import ConvCaps2d
from caplet.nn.conv import ConvNorm, ConvReLU
from caplet.nn.points import PointSpec, Watch

_BATCH = 64
_FARTHEST = 16.0
"""Largest factor and largest reciprocal of one."""

Pair = tuple[ConvReLU, ConvReLU | ConvCaps2d]


def pairs(model: CapsNet) -> Iterator[Pair]:
    """ReLU convolutions whose output a single other convolution reads, and that one."""
    layers = {layer.name: layer for layer in model.layers()}
    readers: dict[str, list[str]] = {}
    for stage in model.stages():
        for name, sources in stage.wiring.items():
            for source in sources:
                readers.setdefault(source, []).append(name)
    for layer in layers.values():
        if isinstance(layer, ConvReLU):
            names = readers.get(f"{layer.name}.activation", [])
            reader = layers[names[0]] if len(names) == 1 else None
            if isinstance(reader, ConvReLU | ConvCaps2d):
                yield layer, reader


def equalized(model: CapsNet, images: Tensor) -> tuple[CapsNet, tuple[str, ...]]:
    """A copy that computes the same, and the keys of the points whose values changed.

    Channel i is divided by ``sqrt(a_i / w_i)``, a and w being the root mean squares of its activations and of the
    weights that read it (a channel without either is left alone), up to one common factor that keeps the geometric
    mean. A batch norm after the ReLU takes the factor into its scale and offset.

    Args:
        images: uint8 (N, C, H, W), a few dozen calibration images.
    """
    copied = copy.deepcopy(model).eval()
    power = _channel_power(copied, images)
    changed: list[str] = []
    with torch.no_grad():
        for first, second in pairs(copied):
            factor = _factor(power[f"{first.name}.activation"], second.weight)
            if first.batch_norm is None:
                first.weight.div_(factor.view(-1, 1, 1, 1))
                first.bias.div_(factor)
                touched = ("weight", "bias", *(("linear",) if first.slope else ()), "activation")
            else:
                first.batch_norm.weight.div_(factor)
                first.batch_norm.bias.div_(factor)
                touched = ("scale", "offset", "activation")
            second.weight.mul_(factor.view(1, -1, 1, 1))
            changed += [*(f"{first.name}.{name}" for name in touched), f"{second.name}.weight"]
    return copied, tuple(dict.fromkeys(changed))


def _factor(power: Tensor, weight: Tensor) -> Tensor:
    """What each channel is divided by, float (channels,)."""
    reading = weight.square().mean((0, 2, 3)).sqrt()
    size = power.sqrt()
    alive = (size > 0) & (reading > 0)
    logarithm = torch.zeros_like(size)
    logarithm[alive] = (size[alive].log() - reading[alive].log()) / 2
    logarithm[alive] -= logarithm[alive].mean()
    return logarithm.exp().clamp(1 / _FARTHEST, _FARTHEST)


def _channel_power(model: CapsNet, images: Tensor) -> dict[str, Tensor]:
    """Sum of squares of every channel of the activations that can be scaled, by point."""
    keys = {f"{first.name}.activation" for first, _ in pairs(model)}
    sums: dict[str, Tensor] = {}

    def add(key: str, spec: PointSpec, value: Tensor, iteration: int) -> None:
        if key in keys:
            sums[key] = sums.get(key, value.new_zeros(spec.shape[0])) + value.square().sum((0, 2, 3))

    with torch.no_grad(), model.handle(Watch(add)):
        for batch in torch.split(images, _BATCH):
            model(to_float(batch, model.device))
    return sums


def folded(model: CapsNet) -> CapsNet:
    """A copy that computes the same, in which ``weight`` of every :class:`ConvNorm` is what its point holds.

    Its batch norm has scale 1 and mean 0, exactly; its bias is what the point ``bias`` holds.
    """
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for layer in copied.layers():
            if isinstance(layer, ConvNorm):
                norm = layer.norm
                assert norm.running_mean is not None
                assert norm.running_var is not None
                weight, bias = (tensor.clone() for tensor in layer.folded())
                layer.weight.copy_(weight)
                norm.weight.fill_(1.0)
                norm.bias.copy_(bias)
                norm.running_mean.zero_()
                norm.running_var.copy_(_unit_variance(norm.running_var, norm.eps))
    return copied


def _unit_variance(like: Tensor, eps: float) -> Tensor:
    """The variance to which ``eps`` adds up to exactly 1."""
    near = torch.ones_like(like) - eps
    for variance in (near, torch.nextafter(near, near + 1), torch.nextafter(near, near - 1)):
        if bool((variance + eps == 1).all()):
            return variance
    raise AssertionError(f"no float32 plus {eps} is 1")
