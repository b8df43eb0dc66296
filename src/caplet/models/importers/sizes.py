"""Image sizes from capsule counts: which square images lead a chain of convolutions to a given output size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

from caplet.errors import ModelError
from caplet.models.assemble import ImageSize

#: The largest image side considered.
LARGEST = 1024


@dataclass(frozen=True)
class Conv:
    """What a convolution does to a size."""

    kernel: int
    stride: int = 1
    padding: int = 0

    def size(self, size: int) -> int:
        """Output size; 0 where the kernel does not fit."""
        return max((size + 2 * self.padding - self.kernel) // self.stride + 1, 0)


def chain_size(size: int, convs: Sequence[Conv]) -> int:
    """Output size of a chain of convolutions; 0 where one does not fit."""
    for conv in convs:
        size = conv.size(size)
        if size == 0:
            return 0
    return size


def preferred(channels: int) -> tuple[int, ...]:
    """Usual image sides, likeliest first: 28, 32, 64; for three or more channels 32 comes first."""
    return (32, 28, 64) if channels >= 3 else (28, 32, 64)


def pick_image(
    capsules: int, count: Callable[[int, int], int], channels: int, image_size: ImageSize | None, where: str
) -> tuple[int, int]:
    """The image's (rows, columns) for which the network has ``capsules`` capsules.

    Args:
        capsules: rows of the class capsules' weights.
        count: number of capsules a network for images of (rows, columns) has.
        image_size: what the caller asked for; None picks the first usual size that fits, else the smallest.

    Raises:
        ModelError: the size asked for does not fit, or none does.
    """
    if image_size is not None:
        rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size
        if rows < 1 or columns < 1:
            raise ModelError(f"{where}: image size {rows}x{columns} is not a size; give at least 1x1")
        found = count(rows, columns)
        if found != capsules:
            fitting = [side for side in range(1, LARGEST + 1) if count(side, side) == capsules]
            ends = dict.fromkeys(f"{side}x{side}" for side in (*fitting[:1], *fitting[-1:]))
            hint = f"; {' to '.join(ends)} fits" if fitting else ""
            raise ModelError(
                f"{where}: images of {rows}x{columns} give {found} capsules, but the class capsules' weights are for"
                f" {capsules}{hint}"
            )
        return rows, columns
    for side in (*preferred(channels), *range(1, LARGEST + 1)):
        if count(side, side) == capsules:
            return side, side
    raise ModelError(
        f"{where}: no square image up to {LARGEST}x{LARGEST} gives the {capsules} capsules that the class capsules'"
        " weights are for; if the images are not square, give their size (image_size)"
    )


def square_side(positions: int) -> int | None:
    """The side of a square map of ``positions``, or None if it is not a square."""
    side = isqrt(positions)
    return side if side * side == positions else None
