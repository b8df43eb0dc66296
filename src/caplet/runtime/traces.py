"""Reading the file in which exported C code, built with CAPLET_TRACE_HOOK, writes every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError
from caplet.program.program import Program


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
        spec = program.tensors[name]
        if len(content) != spec.bytes:
            continue
        dtype = np.dtype(spec.c_type.removesuffix("_t")).newbyteorder("<")
        parts.setdefault(name, []).append(np.frombuffer(content, dtype=dtype).reshape(spec.shape).astype(np.int64))
    return {name: np.stack(images) for name, images in parts.items()}


def _field(data: bytes, at: int, path: Path) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "little")
    end = at + 4 + length
    if end > len(data):
        raise ArtefactError(f"{path}: cut short at byte {at}")
    return data[at + 4 : end], end
