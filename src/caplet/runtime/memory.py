"""Descriptors as memory: the structures of the C headers in ctypes, and arrays that stay alive."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program.c.describe import Descriptions
from caplet.program.c.sources import structures
from caplet.program.c.structure import Ref, Struct

CACHE_LINE = 64
_TYPES: dict[str, Any] = {
    "*": ctypes.c_void_p,
    **{f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
STRUCTURES: dict[str, type[ctypes.Structure]] = {}
"""The structures of ``caplet.h`` and ``host.h`` by their names in C."""
for _name, _fields in structures().items():
    _members = [(field, _TYPES[kind] * count if count else _TYPES[kind]) for field, kind, count in _fields]
    _TYPES[_name] = STRUCTURES[_name] = type(_name, (ctypes.Structure,), {"_fields_": _members})


def size_checks() -> str:
    """C that does not compile where a compiler gives a structure another size than ctypes."""
    lines = (
        f"typedef char {name}_has_another_size[sizeof({name}) == {ctypes.sizeof(structure)} ? 1 : -1];\n"
        for name, structure in STRUCTURES.items()
    )
    return "".join(lines)


def aligned(size: int) -> NDArray[np.uint8]:
    """``size`` zero bytes that start at a cache line."""
    raw = np.zeros(size + CACHE_LINE, dtype=np.uint8)
    first = -raw.ctypes.data % CACHE_LINE
    return raw[first : first + size]


class Memory:
    """Descriptors as memory. Keeps alive whatever the structures point to."""

    def __init__(self, descriptions: Descriptions) -> None:
        self._descriptions = descriptions
        self._alive: list[Any] = []
        self._places: dict[str, int] = {}

    def structure(self, struct: Struct) -> Any:
        """A ctypes structure with the fields of ``struct``."""
        result = self.hold(STRUCTURES[struct.type]())
        self._fill(result, struct)
        return result

    def hold(self, thing: Any) -> Any:
        """Keep ``thing`` alive as long as this object."""
        self._alive.append(thing)
        return thing

    def address(self, values: NDArray[Any]) -> int:
        """The address of an array's elements, kept alive."""
        self.hold(values)
        return int(values.ctypes.data)

    def _fill(self, target: Any, struct: Struct) -> None:
        for name, value in struct.fields.items():
            if isinstance(value, Struct):
                self._fill(getattr(target, name), value)
            else:
                setattr(target, name, self._place(value.name) if isinstance(value, Ref) else value)

    def _place(self, name: str) -> int | None:
        if not name:
            return None
        if name not in self._places:
            if name in self._descriptions.arrays:
                self._places[name] = self.address(self._descriptions.arrays[name])
            else:
                items = self._descriptions.structs[name]
                block = self.hold((STRUCTURES[items[0].type] * len(items))())
                for target, item in zip(block, items, strict=True):
                    self._fill(target, item)
                self._places[name] = ctypes.addressof(block)
        return self._places[name]
