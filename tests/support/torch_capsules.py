"""Capsule networks in plain PyTorch, written as their users write them: layouts, orders and squashes of many kinds."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Squash = Callable[[Tensor], Tensor]


def safe_squash(s: Tensor) -> Tensor:
    """With a small number under the fraction, as many codes have it."""
    norm = s.norm(dim=-1, keepdim=True)
    return s * norm**2 / (1 + norm**2) / (norm + 1e-8)


def squash_by_root(s: Tensor) -> Tensor:
    squared = (s**2).sum(-1, keepdim=True)
    return squared * s / ((1 + squared) * torch.sqrt(squared))


def other_squash(s: Tensor) -> Tensor:
    """Of another family: no length of Sabour et al."""
    norm = s.norm(dim=-1, keepdim=True)
    return s / norm * (1 - torch.exp(-norm))


class Agreement(nn.Module):
    """Routing of votes (B, I, G, D), with every choice that codes differ in."""

    def __init__(self, iterations: int, squash: Squash = safe_squash, over: int = 2, averaged: bool = False) -> None:
        super().__init__()
        self.iterations, self.squash, self.over, self.averaged = iterations, squash, over, averaged

    def forward(self, votes: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(self.iterations):
            coupling = logits.softmax(self.over)
            capsules = self.squash((coupling.unsqueeze(-1) * votes).sum(1) + bias)
            step = (votes * capsules.unsqueeze(1)).sum(-1)
            logits = logits + (step.mean(0, keepdim=True) if self.averaged else step)
        return capsules


class FlatPrimary(nn.Module):
    """One convolution whose output is viewed as capsules, wherever its values come from."""

    def __init__(self, channels: int, out: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.dim = dim
        self.conv2d = nn.Conv2d(channels, out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return safe_squash(self.conv2d(x).view(len(x), -1, self.dim))


class FlatNet(nn.Module):
    """Flat primary capsules, weights (out, in, out dim, in dim); gives lengths and a reconstruction."""

    def __init__(self, size: int = 8, classes: int = 10, routings: int = 3) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.relu = nn.ReLU()
        self.primarycaps = FlatPrimary(16, 16, 4, 3, 1)
        capsules = 16 * (size - 4) ** 2 // 4
        self.weight = nn.Parameter(0.3 * torch.randn(classes, capsules, 6, 4))
        self.routing = Agreement(routings)
        self.decoder = nn.Sequential(nn.Linear(6 * classes, 32), nn.ReLU(), nn.Linear(32, size**2), nn.Sigmoid())

    def capsules(self, x: Tensor) -> Tensor:
        x = self.primarycaps(self.relu(self.conv1(x)))
        return self.routing(torch.einsum("oidk,bik->biod", self.weight, x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        capsules = self.capsules(x)
        length = capsules.norm(dim=-1)
        mask = F.one_hot(length.argmax(1), length.shape[1]).to(x.dtype)
        return length, self.decoder((capsules * mask[:, :, None]).flatten(1)).view(-1, 1, self.size, self.size)


class TypedPrimary(nn.Module):
    """Convolution, split into types x components, listed type by type."""

    def __init__(self, channels: int, types: int, dim: int, kernel: int, stride: int, squash: Squash) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, types * dim, kernel, stride)
        self.types, self.dim, self.squash = types, dim, squash

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = out.view(len(x), self.types, self.dim, *out.shape[2:])
        return self.squash(out.permute(0, 1, 3, 4, 2).flatten(1, 3))


class TypedVotes(nn.Module):
    """Weights (in, in dim, out * out dim), a routing module of its own."""

    def __init__(self, inputs: int, in_dim: int, outputs: int, dim: int, routing: nn.Module) -> None:
        super().__init__()
        self.outputs, self.dim, self.routing = outputs, dim, routing
        self.weights = nn.Parameter(0.3 * torch.randn(inputs, in_dim, outputs * dim))

    def forward(self, capsules: Tensor) -> Tensor:
        votes = capsules.unsqueeze(2).matmul(self.weights)
        out: Tensor = self.routing(votes.view(len(capsules), -1, self.outputs, self.dim))
        return out


class TypedNet(nn.Module):
    """Returns capsules and lengths."""

    def __init__(
        self, size: int = 8, classes: int = 10, squash: Squash = squash_by_root, routing: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3)
        self.primaryCaps = TypedPrimary(12, 3, 4, 3, 2, squash)
        side = (size - 5) // 2 + 1
        self.digitCaps = TypedVotes(3 * side**2, 4, classes, 6, routing or Agreement(3, squash))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.digitCaps(self.primaryCaps(F.relu(self.conv1(x))))
        return x, x.pow(2).sum(2).sqrt()


class ListedPrimary(nn.Module):
    """A convolution for each component, joined along the last axis."""

    def __init__(self, channels: int, types: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.capsules = nn.ModuleList([nn.Conv2d(channels, types, kernel, stride) for _ in range(dim)])

    def forward(self, x: Tensor) -> Tensor:
        return squash_by_root(torch.cat([conv(x).view(len(x), -1, 1) for conv in self.capsules], -1))


class ListedNet(nn.Module):
    """Weights (out, in, in dim, out dim), class axis first; gives the softmax of lengths and a reconstruction."""

    def __init__(self, size: int = 8, classes: int = 10, over: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3)
        self.primary_capsules = ListedPrimary(12, 3, 4, 3, 2)
        side = (size - 5) // 2 + 1
        self.route_weights = nn.Parameter(0.5 * torch.randn(classes, 3 * side**2, 4, 6))
        self.routing = Agreement(3, squash_by_root, over)
        self.decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(inplace=True), nn.Linear(32, size**2), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.primary_capsules(F.relu(self.conv1(x), inplace=True))
        votes = (x[None, :, :, None, :] @ self.route_weights[:, None]).squeeze(3)  # G, B, I, D
        capsules = self.routing(votes.permute(1, 2, 0, 3))
        classes = (capsules**2).sum(-1) ** 0.5
        chosen = capsules[torch.arange(len(x)), classes.argmax(1)]
        return classes.softmax(-1), self.decoder(chosen)


class OpenPrimary(nn.Module):
    """Primary capsules in any order: ``channels`` and ``listed`` as caplet calls them."""

    def __init__(self, conv: nn.Module, dim: int, channels: str, listed: str, squash: Squash = safe_squash) -> None:
        super().__init__()
        self.conv, self.dim, self.channels, self.listed, self.squash = conv, dim, channels, listed, squash

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        batch, _, rows, columns = maps.shape
        if self.channels == "flat":
            return self.squash(maps.reshape(batch, -1, self.dim))
        if self.channels == "types":
            maps = maps.view(batch, -1, self.dim, rows, columns).transpose(1, 2)
        else:
            maps = maps.view(batch, self.dim, -1, rows, columns)
        axes = (0, 2, 3, 4, 1) if self.listed == "types" else (0, 3, 4, 2, 1)
        return self.squash(maps.permute(axes).flatten(1, 3))


class OpenVotes(nn.Module):
    """Weights of any layout, a bias, and routing."""

    def __init__(
        self, layout: str, sizes: dict[str, int], routing: nn.Module, bias: bool = False, extra: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.layout, self.routing = layout, routing
        weight = 0.5 * torch.randn([sizes[letter] for letter in layout])
        for axis in extra:
            weight = weight.unsqueeze(axis)
        self.W = nn.Parameter(weight)
        self.bias = nn.Parameter(0.3 * torch.randn(sizes["o"], sizes["d"])) if bias else None

    def forward(self, capsules: Tensor) -> Tensor:
        votes = torch.einsum(f"bik,{self.layout}->biod", capsules, self.W.squeeze())
        out: Tensor = self.routing(votes) if self.bias is None else self.routing(votes, self.bias)
        return out


class OpenNet(nn.Module):
    """A stem, primary capsules and class capsules; returns capsules, or what ``ends`` makes of them."""

    def __init__(
        self, stem: nn.Module, primary: nn.Module, digits: nn.Module, ends: Callable[[Tensor], object] = lambda v: v
    ) -> None:
        super().__init__()
        self.stem, self.primary, self.digits, self.ends = stem, primary, digits, ends

    def forward(self, x: Tensor) -> object:
        return self.ends(self.digits(self.primary(self.stem(x))))


def open_net(
    channels: str = "types",
    listed: str = "types",
    layout: str = "oidk",
    *,
    stem: nn.Module | None = None,
    conv: nn.Module | None = None,
    routing: nn.Module | None = None,
    dims: tuple[int, int] = (4, 6),
    classes: int = 5,
    squash: Squash = safe_squash,
    bias: bool = False,
    extra: tuple[int, ...] = (),
    ends: Callable[[Tensor], object] = lambda v: v,
) -> OpenNet:
    """For images (1, 9, 8): primary maps of 12 channels, 3 rows, 2 columns."""
    stem = stem or nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
    conv = conv or nn.Conv2d(8, 12, 3, 2)
    sizes = {"i": 12 * 6 // dims[0], "k": dims[0], "o": classes, "d": dims[1]}
    primary = OpenPrimary(conv, dims[0], channels, listed, squash)
    return OpenNet(stem, primary, OpenVotes(layout, sizes, routing or Agreement(3), bias, extra), ends)
