"""Lines to a board: a serial port, by the Python package pyserial, or a TCP connection."""

import errno
import re
import socket
from contextlib import suppress
from typing import Any, Protocol

from caplet.errors import BoardError, ConfigError, ToolMissing

BAUD = 115_200
"""Bits per second where ``serial:PORT@BAUD`` gives none."""
_TICK, _CONNECT, _WRITE = 0.02, 5.0, 10.0
"""Seconds: of one read, of a connection attempt, of one write."""
_SERIAL = re.compile(r"serial:(?P<port>.+?)(@(?P<baud>\d+))?")
_TCP = re.compile(r"tcp:(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>\d{1,5})")


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
    if not _SERIAL.fullmatch(where) and not _TCP.fullmatch(where):
        raise ConfigError(f"--on {where}: the rule is serial:PORT, serial:PORT@BAUD or tcp:HOST:PORT")
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
