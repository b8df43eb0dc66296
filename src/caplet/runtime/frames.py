"""Frames of the protocol between a computer and a board (docs/device.md): type, number, payload, checked by CRC-32."""

import struct
import zlib
from dataclasses import dataclass

PROTOCOL = 1
HELLO, IMAGE, RUN = 0x01, 0x02, 0x03
GREETING, TAKEN, CODES, DONE, REFUSED = 0x81, 0x82, 0x83, 0x84, 0xFF
"""Types of frames: what a computer asks, and what a board answers."""
TRACES, BIG_ENDIAN_TENSORS, HAS_CLOCK = 1, 2, 4
"""Bits of a greeting."""
_HEAD, _CRC, _LONGEST = 3, 4, 256
_GREETING = struct.Struct("<BBB5HI32s")


@dataclass(frozen=True)
class Frame:
    """One message. number: that of the request; 0 in what a board says unasked."""

    type: int
    number: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Its bytes on the line, between two bytes 0.

        >>> Frame(HELLO, 7).encode().hex(" ")
        '00 03 01 07 05 e2 25 c2 b1 00'
        """
        data = bytes((self.type, self.number, len(self.payload))) + self.payload
        data += zlib.crc32(data).to_bytes(_CRC, "little")
        return b"\0" + b"".join(bytes((len(part) + 1,)) + part for part in data.split(b"\0")) + b"\0"


class FrameReader:
    """Finds frames among the bytes of a line; what is damaged is passed over.

    >>> reader = FrameReader()
    >>> reader.feed(b"noise" + Frame(RUN, 1, b"a").encode()), reader.strange
    ([Frame(type=3, number=1, payload=b'a')], b'noise')
    """

    def __init__(self) -> None:
        self.strange = b""
        """The first bytes that belong to no frame, at most 40."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        *parts, rest = (self._rest + data).split(b"\0")
        self._rest = rest[: _LONGEST + 1]  # a frame is shorter: one byte more tells that this is none
        frames = []
        for part in filter(None, parts):
            frame = _decode(part)
            if frame is not None:
                frames.append(frame)
            else:
                self.strange = (self.strange + part)[:40]
        return frames

    @property
    def sample(self) -> bytes:
        """What came and is no frame, its first bytes."""
        return (self.strange + self._rest)[:40]


def _decode(part: bytes) -> Frame | None:
    if len(part) > _LONGEST:
        return None
    pieces, at = [], 0
    while at < len(part):
        end = at + part[at]
        if end > len(part):
            return None
        pieces.append(part[at + 1 : end])
        at = end
    data = b"\0".join(pieces)
    if len(data) < _HEAD + _CRC or data[2] != len(data) - _HEAD - _CRC:
        return None
    if zlib.crc32(data[:-_CRC]).to_bytes(_CRC, "little") != data[-_CRC:]:
        return None
    return Frame(data[0], data[1], data[_HEAD:-_CRC])


@dataclass(frozen=True)
class Greeting:
    """What a board says of itself.

    shape: (rows, columns, channels). capsules: (classes, dimensions). payload: the most bytes that a frame to it may
    carry. digest: SHA-256 of its Program.
    """

    protocol: int
    traits: int
    payload: int
    shape: tuple[int, int, int]
    capsules: tuple[int, int]
    arena_bytes: int
    digest: bytes

    @classmethod
    def of(cls, payload: bytes) -> "Greeting | None":
        """None where it is not as long as one of this version."""
        if len(payload) != _GREETING.size:
            return None
        protocol, traits, most, rows, columns, channels, classes, dim, arena, digest = _GREETING.unpack(payload)
        return cls(protocol, traits, most, (rows, columns, channels), (classes, dim), arena, digest)
