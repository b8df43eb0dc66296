"""C data before it is text or memory: structures of integers, and arrays that they refer to by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

C_TYPES = {
    np.dtype(np.uint8): "uint8_t",
    np.dtype(np.int8): "int8_t",
    np.dtype(np.int16): "int16_t",
    np.dtype(np.uint16): "uint16_t",
}
"""The C type of the elements of an :class:`Array`."""


@dataclass(frozen=True)
class Ref:
    """A pointer to the first element of the array of this name, or NULL where the name is empty."""

    name: str = ""


@dataclass(frozen=True)
class Struct:
    """One value of a structure type of ``caplet.h``; fields in the order of the type."""

    type: str
    fields: Mapping[str, int | Ref | Struct]

    def to_c(self, indent: str = "") -> str:
        """The C99 initialiser, with designators."""
        inner = indent + "    "
        lines = [f"{inner}.{name} = {_value(value, inner)}," for name, value in self.fields.items()]
        return "{\n" + "\n".join(lines) + f"\n{indent}}}"


@dataclass(frozen=True, eq=False)
class Array:
    """Constants in flash: of a type of ``C_TYPES``, one axis."""

    name: str
    values: NDArray[Any]

    @property
    def c_type(self) -> str:
        return C_TYPES[self.values.dtype]

    def to_c(self) -> str:
        """The elements as rows of numbers; no array of C may be empty, so neither is this one."""
        table = {value: str(value) for value in np.unique(self.values).tolist()}
        words = [table[value] for value in self.values.tolist()]
        rows = [", ".join(words[start : start + 24]) for start in range(0, len(words), 24)]
        return ",\n    ".join(rows)


@dataclass(frozen=True)
class StructArray:
    """An array of structures of one type."""

    name: str
    items: tuple[Struct, ...]


def _value(value: int | Ref | Struct, indent: str) -> str:
    if isinstance(value, Struct):
        return value.to_c(indent)
    if isinstance(value, Ref):
        return value.name or "NULL"
    # INT32_MIN has no literal of its own in C, and -2^31 never occurs here: codes have at most 16 bits.
    return f"{value}u" if value > 0x7FFFFFFF else str(value)
