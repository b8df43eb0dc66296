"""What a file or module does not name: sizes of the network, from its shapes; of the image, from capsule counts; the
order of capsules and of the axes of their weights, from outputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, permutations, product
from math import prod
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import check_shape, listed, shape_text
from caplet.models.importers.assume import Assumptions
from caplet.nn.functional import lengths, squash
from caplet.nn.layer import Padding
from caplet.nn.routing import agreement, weighted_sum

#: The largest image side considered.
LARGEST = 1024
MOST, LEAST, NOISE = 6, 0.01, 1e-5
"""Routing iterations that are tried; the least size that differences are relative to; those of float32 sums."""


class Conv(NamedTuple):
    """What a convolution does to a size."""

    kernel: int
    stride: int = 1
    padding: Padding = 0


def chain_size(size: int, convs: Iterable[Conv]) -> int:
    """Output size of a chain of convolutions; 0 where one does not fit."""
    for kernel, stride, padding in convs:
        missing = 1 if padding == "same" else kernel - 2 * padding
        size = max((size - missing) // stride + 1, 0) if size else 0
    return size


def match_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, str], where: str) -> dict[str, int]:
    """The sizes in a network, read off the shapes of its tensors.

    Args:
        shapes: by tensor what each of its axes holds: a number, a name, or a product (``"types*dim channels 3 3"``). A
            name gets its value where it first appears; its other places must agree.

    Raises:
        ModelError: another number of axes, an empty one, a size that is no multiple, or sizes that do not agree.

    >>> import torch
    >>> match_shapes({"a": torch.zeros(6, 2), "b": torch.zeros(3)}, {"b": "types", "a": "types*dim 2"}, "x.pt")
    {'types': 3, 'dim': 2}
    """
    sizes: dict[str, int] = {}
    for name, text in shapes.items():
        shape, axes = tuple(tensors[name].shape), [axis.split("*") for axis in text.split()]
        if len(shape) != len(axes) or 0 in shape:
            rule = f"expected {len(axes)} axes, none empty"
            raise ModelError(f"{where}: tensor {name} has shape {shape_text(shape)}, {rule}")
        expected = []
        for size, factors in zip(shape, axes, strict=True):
            unknown = [factor for factor in factors if not factor.isdigit() and factor not in sizes]
            known = prod(int(factor) if factor.isdigit() else sizes.get(factor, 1) for factor in factors)
            if unknown and size % known:
                rule = f"the rule is {text}, but {size} is not a multiple of {known}"
                raise ModelError(f"{where}: tensor {name} has shape {shape_text(shape)}; {rule}")
            sizes |= dict.fromkeys(unknown, size // known)
            expected.append(size if unknown else known)
        check_shape(name, tensors[name], tuple(expected), where)
    return sizes


def preferred(channels: int) -> tuple[int, ...]:
    """Usual image sides, likeliest first: 28, 32, 64; for three or more channels 32 comes first."""
    return (32, 28, 64) if channels >= 3 else (28, 32, 64)


Chains = Iterable[Sequence[Conv]]
"""The convolutions from the image to each map of capsules."""


def capsule_count(types: int, chains: Chains, rows: int, columns: int) -> int:
    """How many capsules of ``types`` types the maps at the ends of the chains have, for images of (rows, columns)."""
    return types * sum(chain_size(rows, chain) * chain_size(columns, chain) for chain in chains)


def pick_image(capsules: int, types: int, chains: Chains, channels: int, open_: Assumptions) -> tuple[int, int]:
    """The image's (rows, columns) for which the network has ``capsules`` capsules.

    Args:
        capsules: rows of the class capsules' weights.
        types, chains: how many capsules there are at a position of a map, and what leads to the maps.
        open_: its ``size`` must fit; without one the first usual size that fits is assumed, else the smallest.

    Raises:
        ModelError: the size asked for does not fit, or none does.
    """

    def fits(rows: int, columns: int) -> bool:
        return capsule_count(types, chains, rows, columns) == capsules

    where = open_.where
    if open_.size is not None:
        rows, columns = open_.size
        if rows < 1 or columns < 1:
            raise ModelError(f"{where}: image size {rows}x{columns} is not a size; give at least 1x1")
        if not fits(rows, columns):
            fitting = [side for side in range(1, LARGEST + 1) if fits(side, side)]
            ends = dict.fromkeys(f"{side}x{side}" for side in (*fitting[:1], *fitting[-1:]))
            hint = f"; {' to '.join(ends)} fits" if fitting else ""
            found = f"{capsule_count(types, chains, rows, columns)} capsules, but the weights are for {capsules}"
            raise ModelError(f"{where}: images of {rows}x{columns} give {found}{hint}")
        return rows, columns
    for side in (*preferred(channels), *range(1, LARGEST + 1)):
        if fits(side, side):
            open_.assumed["image_size"] = f"{side}x{side}"
            return side, side
    raise ModelError(
        f"{where}: no square image up to {LARGEST}x{LARGEST} gives the {capsules} capsules that the weights are for; if"
        " the images are not square, give their size (image_size)"
    )


class Reading(NamedTuple):
    """One way to read a module's capsules.

    capsules: neighbouring channels (``types``), every (channels / dim)-th channel (``components``), or neighbours in
    memory (``flat``). order: by ``types`` or ``positions``. layout: the axes of the weights: input capsule ``i``, its
    component ``k``, output capsule ``o``, its component ``d``.
    """

    capsules: str
    order: str
    layout: str
    sizes: Mapping[str, int]

    def primary(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, capsules, dim), not squashed."""
        (batch, _, rows, columns), dim, types = maps.shape, self.sizes["k"], self.capsules == "types"
        if self.capsules == "flat":
            return maps.reshape(batch, -1, dim)
        split = maps.view(batch, *((-1, dim) if types else (dim, -1)), rows, columns)
        split = split if types else split.transpose(1, 2)
        return split.permute((0, 1, 3, 4, 2) if self.order == "types" else (0, 3, 4, 1, 2)).flatten(1, 3)

    def weights(self, weight: Tensor) -> Tensor:
        """The weights as (i, k, o, d)."""
        return weight.reshape([self.sizes[x] for x in self.layout]).permute([self.layout.index(x) for x in "ikod"])


def readings(maps: Sequence[int], weight: Sequence[int], counts: Iterable[int], given: int | None) -> Iterator[Reading]:
    """All that the shapes, possible numbers of classes and the size ``given`` of a bias leave open."""
    elements, total, ends = prod(maps), prod(weight), {*accumulate(weight, mul)}
    ways = (*product(("types", "components"), ("types", "positions")), ("flat", "types"))
    for o, k in product(sorted(counts), range(1, maps[0] + 1)):
        sizes = {"i": elements // k, "k": k, "o": o, "d": total // (elements * o)}
        if maps[0] % k == 0 and given in (None, o * sizes["d"]):
            for letters in permutations("ikod"):
                if ends <= {1, *accumulate((sizes[x] for x in letters), mul)}:
                    yield from (Reading(*way, "".join(letters), sizes) for way in ways)


class Case(NamedTuple):
    """What is known of a module's capsules: for random images the primary ones' convolution ``maps`` (B, C, H, W), what
    some part ``read`` or gave as primary ones, and all that class capsules should give, ``targets``."""

    primary: str
    digits: str
    maps: Tensor
    read: Tensor | None
    targets: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    readings: list[Reading]


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two batches, relative to each image's largest expected value; infinite for a NaN."""
    scale = expected.flatten(1).abs().amax(1).clamp(min=LEAST)
    worst = ((found - expected).flatten(1).abs().amax(1) / scale).max()
    return float(torch.nan_to_num(worst, nan=torch.inf))


def _routes(case: Case, reading: Reading, most: int = MOST, over: int = 1) -> Iterator[Tensor]:
    """Class capsules (B, G, D) after 1, 2, ... iterations; the softmax runs over this axis of the logits (B, G, I)."""
    votes = torch.einsum("bik,ikod->boid", squash(reading.primary(case.maps), -1), reading.weights(case.weight))
    votes, logits = votes.contiguous(), votes.new_zeros(votes.shape[:3])
    for _ in range(most):
        sums = weighted_sum(torch.softmax(logits, over), votes)
        capsules = squash(sums if case.bias is None else sums + case.bias.reshape(sums.shape[1:]), -1)
        yield capsules
        logits = logits + agreement(capsules, votes)


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
            forms, log = [sizes, sizes**2], bool((target.exp().sum(1) - 1).abs().max() < 1e-3)
            if log or bool((target.min() > 0) & ((target.sum(1) - 1).abs().max() < 1e-3)):  # softmax of lengths
                target, *forms = (t - t.mean(1, keepdim=True) for t in (target if log else target.log(), *forms))
            yield min(difference(form, target) for form in forms)


def search(case: Case, stated: int | None, tolerance: float) -> tuple[Reading, int]:
    """The reading and iterations that give the module's outputs. Raises ModelError: none do, or they do not tell."""
    fits: list[tuple[float, int, Reading]] = []
    if stated is not None and not 1 <= stated <= 100:
        raise ModelError(f"iterations={stated}; the rule is 1 to 100, or None to find them")
    for reading in case.readings:
        for count, capsules in enumerate(_routes(case, reading, max(MOST, stated or 0)), start=1):
            fits += [(max(found), count, reading) for found in [[*errors(capsules, case.targets)]] if found]
    if not fits:
        shapes = listed([shape_text(target.shape) for target in case.targets]) or "nothing that can be compared"
        raise ModelError(f"it gives {shapes}; give a module that returns class capsules or their lengths")
    best, fitting, _ = min(fits, key=lambda fit: fit[0])
    error, iterations, reading = min((fit for fit in fits if stated in (None, fit[1])), key=lambda fit: fit[0])
    found = f"outputs differ by {error:.1e}, {tolerance:g} is allowed; first in"
    if best <= tolerance and error > max(10 * best, 2 * NOISE):
        raise ModelError(
            f"{found} the routing of {case.digits}: state iterations={fitting}, which differs by {best:.1e}"
        )
    if error > tolerance:
        raise ModelError(f"{found} {_first_difference(case, tolerance)}")
    alike = [str(fit[1]) for fit in fits if fit[2] is reading and fit[0] <= max(10 * error, NOISE)]
    if stated is None and len(alike) > 1:
        found = f"{listed(alike)} iterations give equal outputs within {NOISE:g}"
        raise ModelError(f"{found}; state iterations=3, or others")
    return reading, iterations


def _first_difference(case: Case, tolerance: float) -> str:
    """The first layer that differs, and how."""
    if (read := case.read) is not None:
        tries = []
        for raw in (reading.primary(case.maps) for reading in case.readings):
            shaped = [t for t in (read.squeeze(), read.squeeze().transpose(1, -1)) if t.shape == raw.shape]
            tries += [(difference(squash(raw, -1), t), raw, t) for t in shaped or [read.reshape(raw.shape)]]
        error, raw, theirs = min(tries, key=lambda entry: entry[0])
        if error > tolerance:
            long, short = (float(lengths(t).flatten()[int(lengths(raw).argmax())]) for t in (raw, theirs))
            found = f"its squash is another, {long:.3g} long becomes {short:.3g}, not {long**2 / (1 + long**2):.3g}"
            if not bool(F.cosine_similarity(raw, theirs, -1).amin() > 0.999):
                found = f"no known order of channels gives them, they differ by {error:.1e}"
            return f"the primary capsules {case.primary}: {found}"
    over = (capsules for reading in case.readings for capsules in _routes(case, reading, over=2))
    if any(max(errors(capsules, case.targets), default=1.0) <= tolerance for capsules in over):
        return f"the routing of {case.digits}: its softmax runs over input capsules, not output capsules (equation 3)"
    layer = "the routing" if read is not None else "the primary capsules, or in the routing"
    known = "it is no routing by agreement, begins with trained logits, adds a bias, or its squash is another"
    return f"{layer} of {case.digits}: {known}"
