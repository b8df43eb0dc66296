"""A board on a bad line: the exported answerer as a process, behind a socket or a pseudo-terminal that spoils bytes."""

import os
import pty
import random
import select
import socket
import subprocess
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Spoil = Callable[[bytes], bytes]


def clean(data: bytes) -> bytes:
    return data


def noise(seed: int, each: float) -> Spoil:
    """Drops, doubles, changes bytes and puts strange ones between them, ``each`` with this probability per byte."""
    rng = random.Random(seed)

    def spoil(data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            luck = rng.random() / each
            if luck < 1:
                continue
            out.append(rng.randrange(256) if luck < 2 else byte)
            if luck < 3:
                out.append(byte)
            elif luck < 4:
                out.append(rng.randrange(256))
        return bytes(out)

    return spoil


class BadLine:
    """Runs ``command`` and carries bytes between it and who connects.

    spoil: of each direction. resets, cuts: after so many bytes towards the board, each counted from the start, it is
    started anew, or the connection is closed in the middle of a frame.
    """

    def __init__(
        self,
        command: list[str | Path],
        spoil: Spoil = clean,
        resets: tuple[int, ...] = (),
        cuts: tuple[int, ...] = (),
        terminal: bool = False,
    ) -> None:
        self._command, self._spoil = [*map(str, command)], spoil
        self._resets, self._cuts = list(resets), list(cuts)
        self.carried = 0
        self._ended = threading.Event()
        self._start()
        if terminal:
            self._end, slave = pty.openpty()
            tty.setraw(slave)
            self._kept = slave  # so that the terminal stays when nobody has it open
            self.where = f"serial:{os.ttyname(slave)}"
        else:
            self._server = socket.create_server(("127.0.0.1", 0))
            self._server.settimeout(0.05)
            self.where = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve_terminal if terminal else self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "BadLine":
        return self

    def __exit__(self, *rest: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._stop()
        if hasattr(self, "_server"):
            self._server.close()
        else:
            os.close(self._end)
            os.close(self._kept)

    def _start(self) -> None:
        self.board = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def _stop(self) -> None:
        self.board.kill()
        self.board.wait()
        for stream in (self.board.stdin, self.board.stdout):
            assert stream is not None
            stream.close()

    def _serve_terminal(self) -> None:
        self._carry(self._end)

    def _serve(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                line, _ = self._server.accept()
                with line:
                    self._carry(line.fileno())

    def _carry(self, line: int) -> None:
        while not self._ended.is_set():
            assert self.board.stdin is not None
            assert self.board.stdout is not None
            ready, _, _ = select.select([line, self.board.stdout], [], [], 0.05)
            with suppress(OSError):
                if self.board.stdout in ready:
                    os.write(line, self._spoil(os.read(self.board.stdout.fileno(), 4096)))
                if line in ready:
                    data = os.read(line, 64)
                    if not data:
                        return
                    self.carried += len(data)
                    self.board.stdin.write(self._spoil(data))
                if self._resets and self.carried >= self._resets[0]:
                    self._resets.pop(0)
                    self._stop()
                    self._start()
                if self._cuts and self.carried >= self._cuts[0]:
                    self._cuts.pop(0)
                    return
