"""Sizes that a file of tensors does not name: of the network, from its shapes; of the image, from capsule counts."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from caplet.errors import ModelError
from caplet.models.assemble import check_shape, shape_text
from caplet.models.importers.assume import Assumptions
from caplet.nn.layer import Padding

#: The largest image side considered.
LARGEST = 1024


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
