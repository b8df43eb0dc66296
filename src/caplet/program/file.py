"""The ``.caplet`` file: a whole Program, with constants packed to their bits.

The file is a safetensors file (8 bytes little-endian header length, a JSON header, data). Each constant is a tensor of
type U8, one axis, holding ``caplet.fixed.pack_bits`` of its codes, named by its key. The header's ``__metadata__`` has
the one key ``caplet``: a JSON text with ``format`` (the version, 1), ``program`` (see ``caplet.program.document``) and
``sha256``, the digest of the canonical JSON of ``program`` followed by the packed bytes of all constants, op by op.
The same Program gives the same bytes.

Reading trusts nothing: lengths, ranges, the digest, and finally the whole Program by ``verify``. It can raise
ArtefactError and nothing else. What it allocates is proportional to the file: at most 32 bits per code, and a code
takes at least one bit of the file.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from caplet.errors import ArtefactError, PlanError
from caplet.files import digest, read_bytes, write_bytes
from caplet.fixed.packing import pack_bits, unpack_bits
from caplet.program.document import read_program, write_program
from caplet.program.program import Program
from caplet.program.tensor import IntArray
from caplet.program.verify import verify

FORMAT_VERSION = 1
MAX_HEADER = 1 << 26
"""Bytes of the longest header that is read."""

Packed = NDArray[np.uint8]


def dumps(program: Program) -> bytes:
    """The bytes of the ``.caplet`` file of a Program. Raises PlanError when it does not verify."""
    verify(program)
    document, packed = _parts(program)
    head = {"format": FORMAT_VERSION, "program": document, "sha256": _digest(document, packed)}
    return bytes(save(packed, metadata={"caplet": _canonical(head)}))


def program_digest(program: Program) -> str:
    """The ``sha256`` of a Program's file, in hexadecimal: equal for equal Programs."""
    return _digest(*_parts(program))


def _parts(program: Program) -> tuple[Any, dict[str, Packed]]:
    """The document, and the packed constants by key."""
    packed = {c.key: pack_bits(c.codes, c.format.bits, c.format.signed) for c in program.constants()}
    return write_program(program), packed


def loads(data: bytes, where: str = "program") -> Program:
    """Read what :func:`dumps` wrote, and verify it. where: names the file in messages. Raises ArtefactError."""
    try:
        return _loads(memoryview(data))
    except (ArtefactError, PlanError) as error:
        raise ArtefactError(f"{where}: {error}") from None


def save_program(program: Program, path: Path) -> None:
    """Write a ``.caplet`` file, whole or not at all. Raises PlanError, or ArtefactError when it cannot be written."""
    write_bytes(path, dumps(program), "the program", "choose a writable folder")


def load_program(path: Path) -> Program:
    """Read and verify a ``.caplet`` file. Raises ArtefactError."""
    return loads(read_bytes(path, "the program"), str(path))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(document: object, packed: Mapping[str, Packed]) -> str:
    """packed: in the order of ``Program.constants``."""
    return digest(_canonical(document), *(codes.tobytes() for codes in packed.values()))


def _parse(text: bytes | str, what: str) -> Any:
    def refuse(token: str) -> None:
        raise ValueError(f"the number {token} is not allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    try:
        return json.loads(text, parse_float=refuse, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{what} is not the JSON that was written ({error}); the file is damaged") from None


def _loads(data: memoryview) -> Program:
    if len(data) < 8:
        raise ArtefactError(f"{len(data)} bytes; a .caplet file starts with an 8-byte length")
    size = int.from_bytes(data[:8], "little")
    if size > min(len(data) - 8, MAX_HEADER):
        raise ArtefactError(f"a header of {size} bytes, but {len(data) - 8} follow; the file is cut or no .caplet")
    header = _parse(bytes(data[8 : 8 + size]), "offset 8: the header")
    body = data[8 + size :]
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise ArtefactError("offset 8: the header has no __metadata__; this is no .caplet file")
    text = header.pop("__metadata__").get("caplet")
    if not isinstance(text, str):
        raise ArtefactError("the metadata has no text 'caplet'; this is no .caplet file")
    head = _parse(text, "the metadata 'caplet'")
    if not isinstance(head, dict) or head.get("format") != FORMAT_VERSION:
        found = head.get("format") if isinstance(head, dict) else None
        raise ArtefactError(f"format version {found!r:.50}, not {FORMAT_VERSION}; use the caplet that wrote it")
    if set(head) != {"format", "program", "sha256"}:
        raise ArtefactError(f"the metadata has the fields {sorted(head)!r:.200}; the rule is format, program, sha256")
    stored = _stored(header, body)
    used: dict[str, Packed] = {}

    def codes_of(key: str, shape: tuple[int, ...], bits: int, signed: bool) -> IntArray:
        if key not in stored or key in used:
            raise ArtefactError(f"constant {key!r:.120}: {'used twice' if key in used else 'no data of that name'}")
        used[key] = stored[key]
        codes = unpack_bits(stored[key], prod(shape), bits, signed).reshape(shape)
        codes.setflags(write=False)
        return codes

    program = read_program(head["program"], codes_of)
    if len(used) != len(stored):
        raise ArtefactError(f"data that no op uses: {sorted(set(stored) - set(used))!r:.200}")
    if _digest(head["program"], used) != head["sha256"]:
        raise ArtefactError("the checksum does not match; the file is damaged: copy or export it again")
    verify(program)
    return program


def _stored(header: dict[str, Any], body: memoryview) -> dict[str, Packed]:
    """The packed constants by key: they must be U8 vectors that tile the body without gap or overlap."""
    spans: list[tuple[int, int, str]] = []
    for key, entry in header.items():
        match entry:
            case {"dtype": "U8", "shape": [size], "data_offsets": [start, stop]} if len(entry) == 3:
                fits = {type(size), type(start), type(stop)} == {int} and 0 <= start <= stop == start + size
            case _:
                fits = False
        if not fits:
            rule = "dtype U8, a shape of one axis, data_offsets that agree with it"
            raise ArtefactError(f"data of {key!r:.120}: found {entry!r:.100}; the rule is {rule}")
        spans.append((*entry["data_offsets"], key))
    end = 0
    stored: dict[str, Packed] = {}
    for start, stop, key in sorted(spans):
        if stop > len(body):
            raise ArtefactError(f"data of {key!r:.120}: bytes {start}..{stop} of {len(body)}; the file is cut")
        if start != end:
            raise ArtefactError(f"data of {key!r:.120}: bytes {start}..{stop}; the rule is to follow on byte {end}")
        stored[key] = np.frombuffer(body[start:stop], dtype=np.uint8)
        end = stop
    if end != len(body):
        raise ArtefactError(f"{len(body) - end} bytes follow the data; the file is damaged")
    return stored
