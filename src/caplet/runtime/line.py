"""A line to a board: a serial port, by the Python package pyserial, or a TCP connection; and the frames on it.

A frame has a type, a number and a payload, checked by CRC-32 (docs/device.md).
"""

import errno
import re
import socket
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from caplet.errors import BoardError, ConfigError, ToolMissing

BAUD = 115_200
"""Bits per second where ``serial:PORT@BAUD`` gives none."""
_TICK, _CONNECT, _WRITE = 0.02, 5.0, 10.0
"""Seconds: of one read, of a connection attempt, of one write."""
_SERIAL = re.compile(r"serial:(?P<port>.+?)(@(?P<baud>[1-9][0-9]{0,8}))?")
_TCP = re.compile(r"tcp:(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})")


class Port(Protocol):
    """A line. Every method raises OSError where the line is gone."""

    def read(self) -> bytes:
        """What has come; empty after a short while without anything."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


def is_port(where: str) -> bool:
    """Whether this names a line, and no engine."""
    return where.startswith(("serial:", "tcp:"))


def check_port(where: str) -> str:
    """``where`` if it is well-formed. Raises ConfigError."""
    tcp = _TCP.fullmatch(where)
    if not (_SERIAL.fullmatch(where) if tcp is None else 1 <= int(tcp["port"]) <= 65_535):
        raise ConfigError(
            f"--on {where}: the rule is serial:PORT, such as serial:/dev/ttyACM0 or serial:COM3, serial:PORT@BAUD, or"
            " tcp:HOST:PORT with a PORT from 1 to 65535"
        )
    return where


def open_port(where: str) -> Port:
    """Open ``serial:PORT``, ``serial:PORT@BAUD`` or ``tcp:HOST:PORT``.

    Raises:
        ConfigError: another form.
        ToolMissing: a serial port without pyserial.
        BoardError: it cannot be opened: absent, busy, refused.
    """
    check_port(where)
    try:
        if found := _TCP.fullmatch(where):
            return _Tcp(found["host"].strip("[]"), int(found["port"]))
        found = _SERIAL.fullmatch(where)
        assert found is not None
        return _Serial(found["port"], int(found["baud"] or BAUD))
    except (OSError, OverflowError, ValueError) as error:  # pyserial's errors are of these
        raise BoardError(f"{where}: cannot be opened: {_why(error)}") from error


def _why(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error)
    number = getattr(error, "errno", None)
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in text:
        return "another program has it; close that (a serial monitor?)"
    if number in (errno.EACCES, errno.EPERM):
        return f"{text}; on Linux, add yourself to the group dialout"
    if number == errno.ECONNREFUSED:
        return f"{text}; is the bridge, or the emulator, running?"
    if number == errno.ENOENT:
        from serial.tools.list_ports import comports

        return f"{text}; ports here: {', '.join(found.device for found in comports()) or 'none'}"
    return text


class _Tcp:
    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), _CONNECT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> bytes:
        self._socket.settimeout(_TICK)
        try:
            data = self._socket.recv(4096)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionResetError("the other side closed the connection")
        return data

    def write(self, data: bytes) -> None:
        self._socket.settimeout(_WRITE)
        self._socket.sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()


class _Serial:
    def __init__(self, port: str, baud: int) -> None:
        try:
            import serial
        except ImportError as error:
            raise ToolMissing(
                "serial ports need the Python package pyserial; install it with pip install 'caplet[serial]', or use"
                " tcp:HOST:PORT"
            ) from error
        self._port: Any = serial.Serial(port, baud, timeout=_TICK, write_timeout=_WRITE, exclusive=True)

    def read(self) -> bytes:
        return bytes(self._port.read(max(1, self._port.in_waiting)))

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def close(self) -> None:
        with suppress(OSError):
            self._port.close()


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
        """The first bytes that belonged to no frame, at most 40."""
        self.rest = b""
        """What may become one."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        *parts, self.rest = (self.rest + data).split(b"\0")
        if len(self.rest) > _LONGEST:  # a frame is shorter
            parts, self.rest = [*parts, self.rest], b"\xff"  # which spoils what else comes of it
        frames = []
        for part in filter(None, parts):
            frame = _decode(part)
            if frame is not None:
                frames.append(frame)
            else:
                self.strange = (self.strange + part)[:40]
        return frames


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


class Greeting(NamedTuple):
    """What a board says of itself. payload: the most bytes that a frame to it may carry; digest: of its Program."""

    protocol: int
    traits: int
    payload: int
    rows: int
    columns: int
    channels: int
    classes: int
    dim: int
    arena_bytes: int
    digest: bytes

    @classmethod
    def of(cls, payload: bytes) -> "Greeting | None":
        """None where it is not as long as one of this version."""
        return cls(*_GREETING.unpack(payload)) if len(payload) == _GREETING.size else None
