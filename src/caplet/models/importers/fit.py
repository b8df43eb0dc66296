"""What a module leaves open about its capsules, found by comparing outputs: orders, axes of weights, iterations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import listed, shape_text
from caplet.models.importers.watch import difference
from caplet.nn.functional import lengths, squash
from caplet.nn.routing import agreement, weighted_sum

CHANNELS, LISTED = ("types", "components", "flat"), ("types", "positions")
MOST = 6
"""Routing iterations that are tried."""
NOISE = 1e-5
"""Relative differences that float32 sums in another order may give."""


@dataclass(frozen=True)
class Primary:
    """Primary capsules of a module, for :func:`caplet.adopt`.

    Attributes:
        conv: path of their Conv2d, or of a list of Conv2d whose channels follow one another.
        dim: components of a capsule; None to find it.
        channels: of which values a capsule is made: ``"types"``: of neighbouring channels; ``"components"``: of every
            (channels / dim)-th channel, as a Conv2d for each component gives; ``"flat"``: of neighbouring values of the
            map as it lies in memory, as ``view(batch, -1, dim)`` gives. None to find it.
        listed: the order of capsules: ``"types"`` (type by type, row by row) or ``"positions"``. None to find it.
        norm: path of a batch norm between convolution and squash.
    """

    conv: str
    dim: int | None = None
    channels: str | None = None
    listed: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class Routed:
    """Class capsules of a module, routed by agreement, for :func:`caplet.adopt`.

    Attributes:
        weight: path of the votes' weights, a Parameter or a ParameterList.
        iterations: how often class capsules are computed for an image; None to find it.
        layout: the weights' axes but those of size 1: ``i`` input capsule, ``k`` its component, ``o`` output capsule,
            ``d`` its component: ``"oikd"``, or ``"i k od"`` where an axis holds two. None to find it.
        bias: path of a Parameter (output capsule, component) that is added before the squash.
    """

    weight: str
    iterations: int | None = None
    layout: str | None = None
    bias: str | None = None


class Grouping(NamedTuple):
    """How the values of a map become a list of capsules; the words are those of :class:`Primary`."""

    channels: str
    listed: str
    dim: int

    def __call__(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, capsules, dim)."""
        batch, _, rows, columns = maps.shape
        if self.channels == "flat":
            return maps.reshape(batch, -1, self.dim)
        if self.channels == "types":
            split = maps.view(batch, -1, self.dim, rows, columns)
        else:
            split = maps.view(batch, self.dim, -1, rows, columns).transpose(1, 2)
        return split.permute((0, 1, 3, 4, 2) if self.listed == "types" else (0, 3, 4, 1, 2)).flatten(1, 3)


class Layout(NamedTuple):
    """The axes of the votes' weights, in words such as ``i k od``, and the size of each letter."""

    axes: str
    sizes: Mapping[str, int]

    def __call__(self, weight: Tensor) -> Tensor:
        """The weights as (i, k, o, d)."""
        letters = self.axes.replace(" ", "")
        split = weight.reshape([self.sizes[letter] for letter in letters])
        return split.permute([letters.index(letter) for letter in "ikod"])


class Fit(NamedTuple):
    """One way to read a module, and how far its outputs are from the module's."""

    error: float
    grouping: Grouping
    layout: Layout
    iterations: int


@dataclass
class Case:
    """What is known of a module.

    Attributes:
        maps: float (B, C, H, W), the convolution of the primary capsules for random images.
        weight, bias: of the class capsules, float.
        read: the primary capsules, where a part of the module reads or gives them; else None.
        targets: outputs and class capsules of the module.
        others: the parameters beside the votes' weights.
    """

    where: str
    primary: Primary
    routed: Routed
    maps: Tensor
    weight: Tensor
    bias: Tensor | None
    read: Tensor | None
    targets: list[Tensor]
    others: Mapping[str, Tensor]

    def readings(self) -> list[tuple[Grouping, Layout]]:
        """All that the shapes, and what is stated, leave open. Raises ModelError where that is nothing."""
        primary, channels = self.primary, len(self.maps[0])
        found = [
            (Grouping(kind, order, layout.sizes["k"]), layout)
            for layout in self._layouts()
            for kind, order in product(CHANNELS, LISTED)
            if primary.channels in (None, kind) and primary.listed in (None, order)
            if channels % layout.sizes["k"] == 0 and (kind, order) != ("flat", "positions")
        ]
        if found:
            return found
        shape, made = shape_text(self.weight.shape), shape_text(self.maps.shape[1:])
        outputs = listed([shape_text(target.shape) for target in self.targets])
        given = {**vars(primary), **vars(self.routed)}
        stated = [name for name in ("dim", "channels", "listed", "layout") if given[name] is not None]
        rule = f"the rule is axes i, k, o, d with i * k = {prod(self.maps.shape[1:])}, k dividing channels, o classes"
        todo = f"check {', '.join(stated)}" if stated else "state dim, or name other weights"
        found_here = f"{self.routed.weight} has shape {shape}, {primary.conv} gives {made}, the outputs are {outputs}"
        raise ModelError(f"{self.where}: {found_here}; {rule}: {todo}")

    def _layouts(self) -> Iterator[Layout]:
        axes, stated = [size for size in self.weight.shape if size > 1], self.routed.layout
        dim, elements = self.primary.dim, prod(self.maps.shape[1:])
        classes = sorted({size for target in self.targets for size in target.shape[:3]})  # among other sizes
        for letters, cuts in product(permutations("ikod"), combinations((1, 2, 3), max(len(axes) - 1, 0))):
            words = ["".join(letters[a:b]) for a, b in zip((0, *cuts), (*cuts, 4), strict=True)]
            if stated is not None and stated not in (" ".join(words), "".join(words)):
                continue
            for count in classes:
                sizes = {"o": count} | ({} if dim is None else {"k": dim, "i": elements // dim})
                for word, size in sorted(zip(words, axes, strict=True), key=lambda entry: len(entry[0])):
                    missing = [letter for letter in word if letter not in sizes]
                    if len(missing) == 1:
                        sizes[missing[0]] = size // max(prod(sizes[x] for x in word if x in sizes), 1)
                    if "i" in sizes:
                        sizes.setdefault("k", elements // max(sizes["i"], 1))
                whole = len(sizes) == 4 and sizes["i"] * sizes["k"] == elements
                if whole and self.bias is not None and self.bias.numel() != count * sizes["d"]:
                    continue
                if whole and all(prod(sizes[x] for x in word) == n for word, n in zip(words, axes, strict=True)):
                    yield Layout(" ".join(words), sizes)

    def routes(
        self,
        grouping: Grouping,
        layout: Layout,
        most: int = MOST,
        over: int = 1,
        bias: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Class capsules (B, G, D) after 1, 2, ... iterations.

        Args:
            over: the axis of the logits (B, G, I) over which the softmax runs.
            bias: (G, D) to add. logits: (G, I) to start from.
        """
        capsules = squash(grouping(self.maps), -1)
        votes = torch.einsum("bik,ikod->boid", capsules, layout(self.weight)).contiguous()
        total = votes.new_zeros(votes.shape[:3]) if logits is None else logits.expand(votes.shape[:3])
        for _ in range(most):
            sums = weighted_sum(torch.softmax(total, over), votes)
            routed = squash(sums if bias is None else sums + bias.reshape(sums.shape[1:]), -1)
            yield routed
            total = total + agreement(routed, votes)


def errors(capsules: Tensor, targets: list[Tensor]) -> Iterator[float]:
    """For each target that is made of class capsules alone, how far it is from those of ``capsules`` (B, G, D)."""
    sizes = lengths(capsules)
    for target in map(torch.squeeze, targets):
        if sorted(target.shape) == sorted(capsules.shape):
            orders = [axes for axes in permutations(range(3)) if target.permute(axes).shape == capsules.shape]
            yield min(difference(capsules, target.permute(axes)) for axes in orders)
        elif target.shape == sizes.shape and bool(((target == 0) | (target == 1)).all()):  # the longest one's mask
            yield float(((sizes.amax(1) - (sizes * target).sum(1)) / sizes.amax(1)).max())
        elif target.shape == sizes.shape:
            forms = [sizes, sizes**2]
            log = bool((target.exp().sum(1) - 1).abs().max() < 1e-3)
            if log or bool((target.min() > 0) & ((target.sum(1) - 1).abs().max() < 1e-3)):  # softmax of lengths
                target, *forms = (t - t.mean(1, keepdim=True) for t in (target if log else target.log(), *forms))
            yield min(difference(form, target) for form in forms)


def search(case: Case, tolerance: float) -> Fit:
    """The reading whose outputs are the module's. Raises ModelError: none is, or outputs do not tell."""
    where, stated, weight = case.where, case.routed.iterations, case.routed.weight
    fits: list[Fit] = []
    for grouping, layout in case.readings() if case.targets else ():
        for count, capsules in enumerate(
            case.routes(grouping, layout, max(MOST, stated or 0), bias=case.bias), start=1
        ):
            fits += [Fit(max(found), grouping, layout, count) for found in [[*errors(capsules, case.targets)]] if found]
    if not fits:
        shapes = listed([shape_text(target.shape) for target in case.targets]) or "nothing that can be compared"
        rule = "class capsules (batch, classes, dim) or lengths (batch, classes) are needed"
        raise ModelError(f"{where}: it gives {shapes}; {rule}: give a module that returns them")
    best = min(fits, key=lambda fit: fit.error)
    taken = min((fit for fit in fits if stated in (None, fit.iterations)), key=lambda fit: fit.error)
    if best.error <= tolerance and taken.error > max(10 * best.error, 2 * NOISE):
        found = f"with iterations={stated} outputs differ by {taken.error:.1e}, first in the routing of {weight}"
        raise ModelError(f"{where}: {found}; with iterations={best.iterations} by {best.error:.1e}: state that")
    if taken.error > tolerance:
        found = f"outputs differ by {taken.error:.1e} at best, {tolerance:g} is allowed"
        raise ModelError(f"{where}: {found}; {_first_difference(case, tolerance)}")
    alike = [fit for fit in fits if fit[1:3] == taken[1:3] and fit.error <= max(10 * taken.error, NOISE)]
    if stated is None and len(alike) > 1:
        counts = listed([str(fit.iterations) for fit in alike])
        todo = f"state them, as in Routed({weight!r}, iterations=3)"
        raise ModelError(f"{where}: {counts} iterations give equal outputs within {NOISE:g}; {todo}")
    return taken


def _first_difference(case: Case, tolerance: float) -> str:
    """The first layer that differs, and how."""
    read, readings = case.read, case.readings()
    if read is not None:
        closest = (torch.inf, case.maps, case.maps)
        for grouping in {grouping for grouping, _ in readings}:
            raw = grouping(case.maps)
            alike = [t for t in (read.squeeze(), read.squeeze().transpose(1, -1)) if t.shape == raw.shape]
            for theirs in alike or [read.reshape(raw.shape)]:
                closest = min(closest, (difference(squash(raw, -1), theirs), raw, theirs), key=lambda entry: entry[0])
        error, raw, theirs = closest
        if error > tolerance:
            b, i = divmod(int(lengths(raw).argmax()), raw.shape[1])
            long, short = float(lengths(raw[b, i])), float(lengths(theirs[b, i]))
            same = bool(F.cosine_similarity(raw, theirs, -1).amin() > 0.999)
            found = f"its squash is another, {long:.3g} long becomes {short:.3g}, not {long**2 / (1 + long**2):.3g}"
            other = f"no known order of channels gives them, they differ by {error:.1e}"
            return f"first in the primary capsules {case.primary.conv}: {found if same else other}"
    for grouping, layout in readings:
        pairs, given = ([layout.sizes[x] for x in word] for word in ("oi", "od"))
        over = "its softmax runs over the input capsules, not over the output capsules (equation 3): change it"
        ways = [(over, case.routes(grouping, layout, over=2))]
        for path, tensor in case.others.items():
            if tensor.numel() == prod(pairs):
                start = tensor.reshape(pairs) if [*tensor.squeeze().shape] == pairs else tensor.reshape(pairs[::-1]).T
                what = f"it starts from trained logits, {path}: set them to zero"
                ways.append((what, case.routes(grouping, layout, logits=start)))
            if tensor.numel() == prod(given):
                what = f"it adds a bias: state Routed(..., bias={path!r})"
                ways.append((what, case.routes(grouping, layout, bias=tensor)))
        for what, routes in ways:
            if min(max(errors(capsules, case.targets)) for capsules in routes) <= tolerance:
                return f"first in the routing of {case.routed.weight}: {what}"
    layer = "the routing" if read is not None else "the primary capsules, or in the routing"
    return f"first in {layer} of {case.routed.weight}: it is no routing by agreement, or its squash is another"
