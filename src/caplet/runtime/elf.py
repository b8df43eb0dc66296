"""Sizes of the sections of a 32-bit little-endian ELF file: what a firmware takes of flash and RAM."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from caplet.errors import ArtefactError

_HEADER = struct.Struct("<16sHHIIIIIHHHHHH")
_SECTION = struct.Struct("<10I")
_WRITE, _ALLOCATE = 1, 2
_NOBITS = 8


@dataclass(frozen=True)
class Sizes:
    """Bytes of a firmware.

    flash: code, constants and the initial values of variables. static_ram: variables, the arena among them.
    """

    flash: int
    static_ram: int


def read_sizes(path: Path) -> Sizes:
    """Sum the allocated sections of an ELF file. Raises ArtefactError when it is not one of 32 bits."""
    data = path.read_bytes()
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\x01\x01":
        raise ArtefactError(f"{path}: not a 32-bit little-endian ELF file")
    fields = _HEADER.unpack_from(data)
    offset, size, count = fields[6], fields[11], fields[12]
    if size != _SECTION.size or offset + size * count > len(data):
        raise ArtefactError(f"{path}: the ELF section table lies outside the file")
    flash = ram = 0
    for index in range(count):
        _, kind, flags, _, _, length, *_ = _SECTION.unpack_from(data, offset + index * size)
        if flags & _ALLOCATE:
            flash += length if kind != _NOBITS else 0
            ram += length if kind == _NOBITS or flags & _WRITE else 0
    return Sizes(flash, ram)
