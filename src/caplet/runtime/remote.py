"""A Program on a real board: images go over a line, every code comes back and is compared (docs/device.md)."""

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from caplet.errors import BoardError
from caplet.program import interpreter
from caplet.program.file import program_digest
from caplet.program.program import Program
from caplet.progress import Note, Progress, silent
from caplet.runtime import line
from caplet.runtime.line import Frame, FrameReader, Greeting, Port, open_port
from caplet.runtime.traces import BYTE_ORDERS, Difference, codes_of, first_difference

WAIT = 60.0
"""Seconds that a board may take for one image."""
_START, _BYTES_PER_SECOND = 10.0, 500.0
"""Seconds for an answer that needs no run, a board's start included; what the slowest line carries."""
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds until a request is repeated; at most, where the board may be at work, which it is asked less and less."""
_ATTEMPTS = 5
"""How often an image is begun, as boards are reset and lines cut, and how often its tensors are asked for."""
_REFUSALS = {
    2: "takes images of another size",
    4: "could not run the model; is its arena aligned?",
    5: "does not know this request; export and flash again, with the same version of caplet",
}
_NO_HELLO, _OTHER_IMAGE = 1, 3


class _BeginAgain(Exception):
    """What the board held of an image is gone or damaged."""


@dataclass(frozen=True)
class BoardRun:
    """What a board computed.

    capsules: int32 (N, classes, D). codes: how many were compared, those of traced tensors included; differing: of
    these; first: where, or None. microseconds: int64 (N,), as the board measured them; 0 where it did not.
    tensors: traced and compared; missing: tensors that a tracing firmware did not send, or not whole.
    repeats: requests that were sent again; resets: how often an image was begun again.
    """

    capsules: NDArray[np.int32]
    codes: int
    differing: int
    first: Difference | None
    microseconds: NDArray[np.int64]
    arena_bytes: int
    tensors: int
    missing: tuple[str, ...]
    repeats: int
    resets: int


def run_on_board(
    where: str,
    program: Program,
    images: NDArray[np.uint8],
    wait: float = WAIT,
    progress: Progress | None = None,
    note: Note = silent,
) -> BoardRun:
    """Send images to a board and compare every code with the interpreter's.

    A firmware that was built with CAPLET_TRACE_HOOK also sends every tensor of the first image, and of the first one
    after it whose codes differ.

    Args:
        where: as for :func:`caplet.runtime.line.open_port`.
        images: uint8 (N, channels, rows, columns), N >= 1.
        wait: seconds that the board may take for one image.
        progress: called after each image.
        note: called with what is waited for, where the line was cut.

    Raises:
        ConfigError, ToolMissing: see :func:`caplet.runtime.line.open_port`.
        DataError: images of another size than the Program's.
        BoardError: the line cannot be opened; the board is silent or babbles, runs another Program, or fails.
    """
    expected = interpreter.run(program, images).capsules
    found, microseconds = np.zeros_like(expected), np.zeros(len(images), np.int64)
    traced: dict[int, dict[str, NDArray[np.int64]]] = {}
    board = _Board(where, program, wait, note)
    try:
        board.greet(_START)
        for index, pixels in enumerate(np.ascontiguousarray(images.transpose(0, 2, 3, 1))):
            answer = board.classify(index, pixels.tobytes(), index == 0)
            found[index], microseconds[index] = answer.capsules, answer.microseconds
            if index == 0:
                traced[index] = answer.tensors
            elif len(traced) == 1 and (found[index] != expected[index]).any():
                traced[index] = board.classify(index, pixels.tobytes(), True).tensors
            if progress is not None:
                progress(index + 1, len(images))
    finally:
        board.close()
    codes, differing = expected.size, int((found != expected).sum())
    first = None
    for index, tensors in traced.items():
        plain = interpreter.trace(program, images[index : index + 1]) if tensors else {}
        codes += sum(values.size for values in tensors.values())
        differing += sum(int((values != plain[name]).sum()) for name, values in tensors.items())
        place = first_difference(program, plain, tensors)
        first = first or (place and replace(place, index=(index, *place.index[1:])))
    first = first or first_difference(program, {program.output: expected}, {program.output: found})
    count = sum(map(len, traced.values()))
    lost = program.tensors.keys() - {program.input} - set(traced[0]) if board.traces else set()
    missing = tuple(name for name in program.tensors if name in lost)
    arena = board.greeting.arena_bytes
    return BoardRun(found, codes, differing, first, microseconds, arena, count, missing, board.repeats, board.resets)


@dataclass(frozen=True)
class _Answer:
    """Of one image: int16 (classes, D); int64 (1, *shape) of each tensor that came whole."""

    capsules: NDArray[np.int16]
    microseconds: int
    tensors: dict[str, NDArray[np.int64]]


_ANSWERS = {
    line.HELLO: (line.GREETING, line.REFUSED),
    line.IMAGE: (line.TAKEN, line.REFUSED),
    line.RUN: (line.CODES, line.DONE, line.REFUSED),
}
"""What answers a request; another frame with its number is none."""


class _Board:
    """The other end of a line."""

    def __init__(self, where: str, program: Program, wait: float, note: Note) -> None:
        self._where, self._program, self._wait, self._note = where, program, wait, note
        self._port: Port | None = open_port(where)
        self._reader = FrameReader()
        self._number = self._received = self.repeats = self.resets = 0
        self._at_work = False
        self.greeting: Greeting

    @property
    def traces(self) -> bool:
        """Whether it sends tensors, after :meth:`greet`."""
        return bool(self.greeting.traits & line.TRACES)

    def close(self) -> None:
        """Close the line; :meth:`greet` opens it again."""
        if self._port is not None:
            self._port.close()
        self._port = None

    def greet(self, seconds: float) -> None:
        """Say hello, and check who answers, within ``seconds``: a line may be cut, a board start or be at work."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._port = self._port or open_port(self._where)
                payload = next(self._ask(line.HELLO, b"", max(end - time.monotonic(), _PAUSE))).payload
                break
            except _BeginAgain as error:
                if time.monotonic() > end:
                    self._fail(f"the line is cut again and again: {error}")
            except BoardError:
                if self._port is not None or time.monotonic() > end:  # it is open, and silent; or it does not open
                    raise
            time.sleep(_PAUSE / 2)
        self._at_work = False
        self.greeting = self._accepted(payload)

    def _accepted(self, payload: bytes) -> Greeting:
        greeting = Greeting.of(payload)
        again = "export and flash again, with the same version of caplet"
        if greeting is None or greeting.protocol != line.PROTOCOL or not 5 <= greeting.payload <= 240:
            version = payload[0] if payload else "none"
            self._fail(f"the board speaks version {version} of the protocol, caplet {line.PROTOCOL}; {again}")
        digest, name = program_digest(self._program), self._program.name
        if greeting.digest.hex() != digest:
            self._fail(
                f"the board runs another model: SHA-256 {greeting.digest.hex()[:12]}..., where that of {name} is"
                f" {digest[:12]}...; flash an export of {name}"
            )
        tensors = self._program.tensors
        mine = (*tensors[self._program.input].shape, *tensors[self._program.output].shape)
        if greeting[3:8] != mine:
            self._fail(f"the board takes images and gives capsules of {greeting[3:8]}, {name} of {mine}; {again}")
        return greeting

    def classify(self, index: int, image: bytes, traced: bool) -> _Answer:
        """Send an image and get its codes; from its beginning again where the board was reset meanwhile."""
        traced &= self.traces
        why = ""
        for attempt in range(_ATTEMPTS):
            try:
                if attempt > 0:
                    seconds = _START + self._wait * self._at_work
                    self._note(f"{self._where}: {why}; waiting for the board, {seconds:.0f} s at most")
                    self.greet(seconds)
                step = self.greeting.payload - 4
                for at in range(0, len(image), step):
                    next(self._ask(line.IMAGE, at.to_bytes(4, "little") + image[at : at + step], _START))
                return self._run(image, traced)
            except _BeginAgain as error:
                self.resets, why = self.resets + 1, str(error)
        self._fail(f"image {index} was begun {_ATTEMPTS} times and never finished: {why}")

    def _run(self, image: bytes, traced: bool) -> _Answer:
        request = struct.pack("<BII", traced, len(image), zlib.crc32(image))
        size = 2 * self._program.tensors[self._program.output].elements
        tensors = sum(spec.bytes for spec in self._program.tensors.values()) if traced else 0
        pieces: dict[str, dict[int, bytes]] = {"": {}}
        for _ in range(_ATTEMPTS):  # a second run sends what was lost of the tensors
            for frame in self._ask(line.RUN, request, self._wait + (size + tensors) / _BYTES_PER_SECOND):
                if frame.type == line.CODES:
                    name, at, data = self._piece(frame.payload)
                    pieces.setdefault(name, {})[at] = data
                elif frame.type == line.DONE and len(frame.payload) == 8 and len(_whole(pieces[""])) == size:
                    break  # without all codes it is asked, and answered, once more
            microseconds, sent = struct.unpack("<II", frame.payload)
            if not traced or sum(len(part) for found in pieces.values() for part in found.values()) >= sent:
                break
        capsules = np.frombuffer(_whole(pieces.pop("")), "<i2").reshape(
            self._program.tensors[self._program.output].shape
        )
        specs, order = self._program.tensors, BYTE_ORDERS[bool(self.greeting.traits & line.BIG_ENDIAN_TENSORS)]
        if unknown := sorted(pieces.keys() - specs.keys()):
            self._fail(f"traces the tensor {unknown[0]!r}, which {self._program.name} does not have")
        found = {name: codes_of(specs[name], _whole(parts), order) for name, parts in pieces.items()}
        return _Answer(
            capsules, microseconds, {name: codes[None] for name, codes in found.items() if codes is not None}
        )

    def _piece(self, payload: bytes) -> tuple[str, int, bytes]:
        """The tensor's name, where in it the bytes belong, the bytes."""
        start = 5 + payload[0] if payload else 5
        if len(payload) < start:
            self._fail(f"sends {len(payload)} bytes as a piece of a tensor; the rule is a name, a place, codes")
        name = payload[1 : start - 4].decode("utf-8", "replace")
        return name, int.from_bytes(payload[start - 4 : start], "little"), payload[start:]

    def _ask(self, request: int, payload: bytes, seconds: float) -> Iterator[Frame]:
        """Frames that answer a request, which is sent again and again until the reader has enough.

        Raises BoardError where nothing more comes within the time, _BeginAgain where the board or the line was reset.
        """
        self._number = self._number % 255 + 1
        data, began, pause = Frame(request, self._number, payload).encode(), time.monotonic(), _PAUSE
        end = began + seconds
        assert self._port is not None
        try:
            while True:
                self._port.write(data)
                again = time.monotonic() + pause
                while (now := time.monotonic()) < min(again, end):
                    came = self._port.read()
                    self._received += len(came)
                    for frame in self._reader.feed(came):
                        if frame.type == line.GREETING and frame.number == 0 and request != line.HELLO:
                            raise _BeginAgain("the board was reset")
                        if frame.number == self._number and frame.type == request:
                            self._fail("the line sends back what is sent to it; is this the right port?")
                        if frame.number == self._number and frame.type in _ANSWERS[request]:
                            self._refused(frame)
                            again = max(again, now + _PAUSE)
                            yield frame
                if now >= end:
                    self._fail(self._silence(seconds, request))
                self.repeats += 1
                if request == line.RUN or now - began > _START:  # the board may be at work
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except OSError as error:
            self.close()
            self._at_work |= request == line.RUN  # and deaf until it is done
            raise _BeginAgain(f"the line was cut: {error.strerror or error}") from error

    def _refused(self, frame: Frame) -> None:
        if frame.type == line.REFUSED:
            reason = frame.payload[0] if frame.payload else 0
            if reason in (_NO_HELLO, _OTHER_IMAGE):
                raise _BeginAgain("the board was reset" if reason == _NO_HELLO else "the image did not arrive")
            self._fail(f"the board {_REFUSALS.get(reason, f'refuses, with reason {reason}')}")

    def _silence(self, seconds: float, request: int) -> str:
        if request == line.RUN:
            return f"no codes within {seconds:.0f} s; where the board is that slow, give --wait"
        text = f"no answer within {seconds:.0f} s"
        if self._at_work:
            return f"{text} after the line was cut; where an image takes longer, give --wait"
        if request == line.HELLO:
            strange = (self._reader.strange + self._reader.rest)[:40]
            what = f"it sent {self._received:,} bytes that are no answer, such as {strange!r}"
            text += f" ({what if self._received else 'not a byte'})"
            text += "; is it the firmware that answers (docs/device.md), at this speed, and the line's only reader?"
            text += " A board that is still at work answers when it is done."
        return text

    def _fail(self, text: str) -> NoReturn:
        raise BoardError(f"{self._where}: {text}")


def _whole(parts: dict[int, bytes]) -> bytes:
    """The bytes from 0 on without a gap."""
    data = b""
    while part := parts.get(len(data)):
        data += part
    return data
