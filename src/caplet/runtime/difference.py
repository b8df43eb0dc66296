"""Where two runs of one Program first differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program.program import Program


@dataclass(frozen=True)
class Difference:
    """The first code that differs, in the order in which tensors are written.

    index: the image's number within the batch, then the index within the tensor.
    """

    tensor: str
    index: tuple[int, ...]
    expected: int
    found: int

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index[1:]))
        return (
            f"tensor {self.tensor}[{place}] of image {self.index[0]}: found {self.found}, where the interpreter has "
            f"{self.expected}"
        )


def first_difference(
    program: Program, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> Difference | None:
    """Compare traces: tensor -> codes (images, *shape). Tensors that either side lacks are passed over.

    Returns the first difference of the first image that has one, None where all codes are equal.
    """
    names = [name for name in program.tensors if name in expected and name in found]
    unequal = {name: found[name] != expected[name] for name in names}
    images = [int(np.argmax(mask.reshape(len(mask), -1).any(axis=1))) for mask in unequal.values() if mask.any()]
    if not images:
        return None
    image = min(images)
    name = next(name for name in names if unequal[name][image].any())
    inner = np.unravel_index(int(np.argmax(unequal[name][image])), unequal[name][image].shape)
    index = (image, *map(int, inner))
    return Difference(name, index, int(expected[name][index]), int(found[name][index]))
