"""Traces, every tensor of a run: read from the file that exported C writes, and where two runs first differ.

Exported C writes the file where it is built with CAPLET_TRACE_HOOK.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError
from caplet.program.program import Program
from caplet.program.tensor import TensorSpec


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
        where = f"tensor {self.tensor}[{place}] of image {self.index[0]}"
        return f"{where}: found {self.found}, where the interpreter has {self.expected}"


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


def read_traces(program: Program, path: Path) -> dict[str, NDArray[Any]]:
    """Tensor -> codes (images, *shape), int64, of a trace file. Tensors that are not stored whole are left out.

    The file is a sequence of records: length and text of the tensor's name, bytes and content; lengths are uint32,
    everything little-endian. Raises ArtefactError when the file is cut short or names a tensor that is not there.
    """
    data = path.read_bytes()
    parts: dict[str, list[NDArray[Any]]] = {}
    at = 0
    while at < len(data):
        name_bytes, at = _field(data, at, path)
        content, at = _field(data, at, path)
        name = name_bytes.decode("ascii", errors="replace")
        if name not in program.tensors:
            raise ArtefactError(f"{path}: traces the tensor {name!r}, which program {program.name} does not have")
        codes = codes_of(program.tensors[name], content)
        if codes is not None:
            parts.setdefault(name, []).append(codes)
    return {name: np.stack(images) for name, images in parts.items()}


ByteOrder = Literal["<", ">"]
BYTE_ORDERS: tuple[ByteOrder, ByteOrder] = ("<", ">")
"""Little-endian, big-endian, as numpy names them."""


def codes_of(spec: TensorSpec, content: bytes, order: ByteOrder = "<") -> NDArray[np.int64] | None:
    """The codes of a tensor from its bytes on a device of that byte order; None where they are not the whole tensor."""
    if len(content) != spec.bytes:
        return None
    dtype = np.dtype(spec.c_type.removesuffix("_t")).newbyteorder(order)
    return np.frombuffer(content, dtype=dtype).reshape(spec.shape).astype(np.int64)


def _field(data: bytes, at: int, path: Path) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "little")
    end = at + 4 + length
    if end > len(data):
        raise ArtefactError(f"{path}: cut short at byte {at}")
    return data[at + 4 : end], end
