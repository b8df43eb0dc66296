"""The convolutions of a PyTorch module up to its primary capsules, each compared with what the next part reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError, suggest
from caplet.models.assemble import listed, shape_text
from caplet.models.importers.assume import RULES
from caplet.models.importers.watch import Seen, difference
from caplet.nn.layer import Padding

EQUAL = 1e-4
"""Largest relative difference of maps that are the same."""


class Norm(NamedTuple):
    """A batch norm in evaluation mode, every tensor float64 (channels,)."""

    name: str
    tensors: dict[str, Tensor]
    eps: float

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.name,)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and offset of every channel."""
        weight, bias, mean, variance = self.tensors.values()
        scale = weight / torch.sqrt(variance + self.eps)
        return scale, bias - mean * scale


@dataclass
class StemPart:
    """A convolution, with what follows it up to the next one.

    Attributes:
        paths: of the convolution, or of several whose channels follow one another.
        weight: float64 OIHW, as bias with all batch norms folded in that fold exactly.
        slope: of negative values; None where there is no ReLU yet.
        kept: the batch norm after the ReLU, where the next convolution pads its output with zeros.
        folded: names of batch norms.
    """

    paths: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: Padding
    slope: float | None = None
    kept: Norm | None = None
    folded: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.paths[0]

    def scaled(self, norm: Norm) -> None:
        """Fold a batch norm in that comes right after the convolution."""
        scale, offset = norm.affine()
        self.bias = offset if self.bias is None else self.bias * scale + offset
        self.weight = self.weight * scale.view(-1, 1, 1, 1)
        self.folded.append(norm.name)

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        x = F.conv2d(x, self.weight.float(), bias, self.stride, self.padding)
        x = x if self.slope is None else F.leaky_relu(x, self.slope)
        if self.kept is None:
            return x
        scale, offset = (tensor.float().view(-1, 1, 1) for tensor in self.kept.affine())
        return x * scale + offset


def primary_convolution(net: nn.Module, path: str, norm: str | None, where: str) -> StemPart:
    """The convolution of the primary capsules; of several, one that gives the channels of all."""
    part = _part(net, path, where)
    if isinstance(part, nn.ModuleList | nn.Sequential) and len(part):
        several = [_convolution(f"{path}.{name}", child, where) for name, child in part.named_children()]
    else:
        several = [_convolution(path, part, where)]
    first = several[0]
    for other in several[1:]:
        same = other.weight.shape == first.weight.shape and (other.bias is None) == (first.bias is None)
        if not same or (other.stride, other.padding) != (first.stride, first.padding):
            raise ModelError(
                f"{where}: {first.name} and {other.name} differ in shape, stride or padding; name one of them"
            )
    bias = None if first.bias is None else torch.cat([each.bias for each in several if each.bias is not None])
    names = tuple(each.name for each in several)
    last = StemPart(names, torch.cat([each.weight for each in several]), bias, first.stride, first.padding)
    if norm is not None:
        last.scaled(_norm(norm, _part(net, norm, where), len(last.weight), where))
    return last


def read_stem(
    net: nn.Module, names: list[str], last: StemPart, images: Tensor, given: Seen, where: str
) -> tuple[list[StemPart], Tensor]:
    """The convolutions before the primary capsules' ``last``, and what that one gives, float (B, C, H, W).

    Raises ModelError: a part that no caplet model has, or one that reads something else than what is before it gives.
    """
    stem: list[StemPart] = []
    after: list[Norm] = []
    x = images
    for path, part in _expanded(net, names, where):
        before = stem[-1] if stem else None
        if isinstance(part, nn.Conv2d):
            conv = _convolution(path, part, where)
            x = _joined(before, after, conv, _met(conv, before, x, given, where), where)
            stem.append(conv)
            after = []
        elif before is None:
            raise ModelError(f"{where}: {path} comes before any convolution; the first layer is a Conv2d")
        elif isinstance(part, nn.BatchNorm2d):
            norm = _norm(path, part, len(before.weight), where)
            x = _met(norm, before, x, given, where)
            if before.slope is None:
                before.scaled(norm)
            else:
                after.append(norm)
            scale, offset = (tensor.float().view(-1, 1, 1) for tensor in norm.affine())
            x = x * scale + offset
        else:
            slope = _slope(path, part, where)
            if before.slope is not None:
                raise ModelError(f"{where}: {path} follows another activation; one comes after each convolution")
            before.slope, x = slope, F.leaky_relu(x, slope)
    before = stem[-1] if stem else None
    return stem, _joined(before, after, last, _met(last, before, x, given, where), where)


def _met(part: "StemPart | Norm", before: StemPart | None, x: Tensor, given: Seen, where: str) -> Tensor:
    """What ``part`` reads: ``x``, or its ReLU or LeakyReLU, which is then noted in ``before``."""
    for path in part.paths:
        calls = given.parts.get(path, [])
        if len(calls) != 1 or calls[0][0] is None:
            raise ModelError(f"{where}: {path} runs {len(calls)} times for a batch; each layer is one that runs once")
        read = calls[0][0]
        if read.shape != x.shape:
            shapes = f"{shape_text(read.shape[1:])}, but what is named before it gives {shape_text(x.shape[1:])}"
            raise ModelError(f"{where}: {path} reads {shapes}; name all layers, in the order in which they run")
        error = difference(x, read)
        if error > EQUAL and before is not None and before.slope is None:
            below = x < 0
            slope = float((read * x)[below].sum() / (x * x)[below].sum())
            slope = round(slope, 6) if abs(slope) > 1e-6 else 0.0
            if 0 <= slope < 1 and difference(F.leaky_relu(x, slope), read) <= EQUAL:
                before.slope, x, error = slope, F.leaky_relu(x, slope), 0.0
        if error > EQUAL:
            source = "the images" if before is None else f"what {before.name} and the layers named after it give"
            todo = "name what is between" if before else "state how they are prepared (assume), or name a part within"
            raise ModelError(
                f"{where}: first difference in {path}: it reads other maps than {source} ({error:.1e}); {todo}"
            )
    return x


def _joined(before: StemPart | None, after: list[Norm], conv: StemPart, x: Tensor, where: str) -> Tensor:
    """What ``conv`` gives for ``x``; then the batch norms that are ``after`` the ReLU before it are folded or kept."""
    given = conv(x)
    if before is not None and before.slope is None:
        rule = "a convolution of a caplet model has a ReLU or LeakyReLU after it"
        raise ModelError(f"{where}: no activation between {before.name} and {conv.name}; {rule}")
    if before is not None and after and conv.padding:
        if len(after) > 1:
            raise ModelError(
                f"{where}: batch norms {after[0].name} and {after[1].name}, then zeros around the map; use one"
            )
        before.kept = after[0]
        return given
    for norm in reversed(after):
        scale, offset = norm.affine()
        added = (conv.weight * offset.view(-1, 1, 1)).sum((1, 2, 3))
        conv.bias = added if conv.bias is None else conv.bias + added
        conv.weight = conv.weight * scale.view(-1, 1, 1)
        conv.folded.append(norm.name)
    return given


def _expanded(net: nn.Module, names: list[str], where: str) -> "Iterator[tuple[str, nn.Module | str]]":
    """Each layer's path and module, those of a Sequential one by one; an activation in words is its own module."""
    for name in names:
        part = _part(net, name, where)
        if isinstance(part, nn.Sequential):
            yield from _expanded(net, [f"{name}.{child}" for child, _ in part.named_children()], where)
        elif not isinstance(part, nn.Identity | nn.Dropout | nn.Dropout2d):
            yield name, part


def _part(net: nn.Module, path: str, where: str) -> "nn.Module | str":
    try:
        return net.get_submodule(path)
    except AttributeError:
        pass
    try:
        RULES["activation"].read(path)
    except ValueError:
        names = [name for name, _ in net.named_modules() if name]
        hint = suggest(path, names) or f"; it has {listed(names)}"
        raise ModelError(f"{where}: no layer {path!r}{hint}") from None
    return path


def _slope(path: str, part: nn.Module | str, where: str) -> float:
    slope = -1.0
    if isinstance(part, str):
        slope = RULES["activation"].read(part)
    elif isinstance(part, nn.ReLU):
        slope = 0.0
    elif isinstance(part, nn.LeakyReLU):
        slope = part.negative_slope
    elif isinstance(part, nn.PReLU) and part.weight.numel() == 1:
        slope = float(part.weight.detach())
    if not 0 <= slope < 1:
        known = "Conv2d, BatchNorm2d, ReLU and LeakyReLU (slope 0 to 1) can be adopted"
        raise ModelError(f"{where}: {path} is a {type(part).__name__}; only {known}{_inside(path, part)}")
    return slope


def _inside(path: str, part: nn.Module | str) -> str:
    """The convolutions in a part that is none."""
    parts = part.named_modules() if isinstance(part, nn.Module) else ()
    names = [f"{path}.{name}" for name, inner in parts if name and isinstance(inner, nn.Conv2d)]
    return f", such as {listed(names)} in it" if names else ""


def _convolution(path: str, part: nn.Module | str, where: str) -> StemPart:
    if not isinstance(part, nn.Conv2d):
        kind, todo = type(part).__name__, "name a Conv2d, or a list of them"
        raise ModelError(f"{where}: {path} is a {kind}; {todo}{_inside(path, part)}")
    small = part.padding == "same" and part.kernel_size == (1, 1)
    padding = 0 if small or part.padding == "valid" else part.padding
    pairs = {"kernel": part.kernel_size, "stride": part.stride}
    pairs |= {} if isinstance(padding, str | int) else {"padding": padding}
    odd = [f"{name} {shape_text(pair)}" for name, pair in pairs.items() if pair[0] != pair[1]]
    odd += [f"groups {part.groups}"] * (part.groups > 1) + ["dilation"] * (max(part.dilation) > 1)
    if odd or part.padding_mode != "zeros":
        found = odd[0] if odd else f"padding mode {part.padding_mode}"
        rule = "one number for rows and columns, no groups, no dilation, padding with zeros"
        raise ModelError(f"{where}: {path} has {found}; the rule is {rule}")
    weight, bias = part.weight.detach().cpu().double(), part.bias
    sides: Padding = "same" if padding == "same" else padding if isinstance(padding, int) else int(padding[0])
    return StemPart((path,), weight, None if bias is None else bias.detach().cpu().double(), part.stride[0], sides)


def _norm(path: str, part: nn.Module | str, channels: int, where: str) -> Norm:
    if not isinstance(part, nn.BatchNorm2d) or part.running_mean is None or part.running_var is None:
        kind = type(part).__name__
        raise ModelError(f"{where}: {path} is a {kind}; expected a BatchNorm2d that keeps a mean and a variance")
    if part.num_features != channels:
        raise ModelError(f"{where}: {path} has {part.num_features} channels, what comes before it {channels}")
    ones = torch.ones(channels, dtype=torch.float64)
    weight = ones if part.weight is None else part.weight.detach().cpu().double()
    bias = 0 * ones if part.bias is None else part.bias.detach().cpu().double()
    mean, variance = (tensor.detach().cpu().double() for tensor in (part.running_mean, part.running_var))
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    return Norm(path, tensors, part.eps)
