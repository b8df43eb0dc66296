"""Boards at the end of a line: every code comes back, over noise, cuts and resets; what cannot be used is refused."""

import importlib.util
import random
import shutil
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caplet.errors import BoardError, ConfigError, DataError, ToolMissing
from caplet.program import interpreter
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, Export, emit
from caplet.program.program import Program
from caplet.runtime import line as frames
from caplet.runtime import remote
from caplet.runtime.compiler import compilers
from caplet.runtime.emulator import BOARDS, Board, build_firmware
from caplet.runtime.line import Frame, FrameReader, Greeting, check_port, is_port, open_port
from caplet.runtime.remote import run_on_board
from caplet.runtime.traces import codes_of
from noisy_line import BadLine, noise
from sample_programs import SampleSettings, sample_deep, sample_shallow

pytestmark = pytest.mark.slow(0.3)

needs_compiler = pytest.mark.skipif(not compilers(), reason="no C compiler")
needs_serial = pytest.mark.skipif(importlib.util.find_spec("serial") is None, reason="pyserial is not installed")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0.05)


def sample(seed: int = 3) -> Program:
    return sample_shallow(seed, SampleSettings(weight_bits=5))


def images_for(program: Program, count: int) -> np.ndarray:
    images = np.random.default_rng(7).integers(0, 256, size=(count, *program.image_shape), dtype=np.uint8)
    images[0] = 0  # frames full of zeros
    return images


def answerer(export: Export, *flags: str) -> Path:
    """The answerer for this machine, checked while it runs."""
    runtime = sorted((export.folder / RUNTIME_FOLDER).glob("*.c"))
    text = "".join(f'#include "{path}"\n' for path in runtime)
    (export.folder / "runtime_all.c").write_text(text)
    sources = [f"{export.prefix}.c", f"{export.prefix}_serve.c", "main_serve.c", "runtime_all.c"]
    compiler = compilers()[0]
    checks = [] if "zig" in compiler.version else SANITIZE
    name = "-".join(("answerer", *flags))
    compiler.build([*STRICT, "-O1", *checks, *flags, *sources, "-o", name], "test", export.folder)
    return export.folder / name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answerer(emit(sample(), tmp_path_factory.mktemp("serve") / "export"))


@pytest.fixture(scope="module")
def tracing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export = emit(sample(), tmp_path_factory.mktemp("serve") / "export", EmitSettings(in_place=False))
    return answerer(export, "-DCAPLET_TRACE_HOOK", "-DCAPLET_SERVE_PAYLOAD=64")


@needs_compiler
@pytest.mark.parametrize("terminal", [False, pytest.param(True, marks=needs_serial)], ids=["tcp", "serial"])
def test_every_code_and_the_time_come_back(terminal: bool, built: Path) -> None:
    program = sample()
    images = images_for(program, 6)
    seen = []
    with BadLine([built], terminal=terminal) as line:
        run = run_on_board(line.where, program, images, progress=lambda done, total: seen.append((done, total)))
    assert np.array_equal(run.capsules, interpreter.run(program, images).capsules)
    assert (run.codes, run.differing, run.first) == (run.capsules.size, 0, None)
    assert (run.repeats, run.resets, run.tensors) == (0, 0, 0)
    assert (run.microseconds > 0).all()
    assert seen == [(index, 6) for index in range(1, 7)]


@needs_compiler
@pytest.mark.parametrize("terminal", [False, pytest.param(True, marks=needs_serial)], ids=["tcp", "serial"])
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_changes_no_code(terminal: bool, seed: int, built: Path) -> None:
    program = sample()
    images = images_for(program, 12)
    with BadLine([built], noise(seed, 1 / 2000), terminal=terminal) as line:
        run = run_on_board(line.where, program, images)
    assert run.differing == 0
    assert run.repeats > 3


@needs_compiler
def test_resets_in_any_place(built: Path) -> None:
    """Of a board that starts anew while an image arrives, and while its codes are awaited."""
    program = sample()
    images = images_for(program, 8)
    with BadLine([built], resets=(3, 50, 500, 733, 1200, 1500)) as line:
        run = run_on_board(line.where, program, images)
    assert run.differing == 0
    assert run.resets >= 3


@needs_compiler
def test_a_line_that_is_cut_in_the_middle_of_a_frame(built: Path) -> None:
    program = sample()
    with BadLine([built], cuts=(4, 64, 400, 900)) as line:
        run = run_on_board(line.where, program, images_for(program, 6))
    assert run.differing == 0
    assert run.resets >= 2


@needs_compiler
def test_a_line_that_is_always_cut(built: Path) -> None:
    program = sample()
    with BadLine([built], cuts=tuple(range(60, 60_000, 100))) as line, pytest.raises(BoardError, match="begun 5 times"):
        run_on_board(line.where, program, images_for(program, 2))


@needs_compiler
@pytest.mark.parametrize("loud", [0.0, 1 / 2000])
def test_tensors_are_traced(loud: float, tracing: Path) -> None:
    program = sample()
    images = images_for(program, 2)
    with BadLine([tracing], noise(5, loud) if loud else bytes) as line:
        run = run_on_board(line.where, program, images)
    assert (run.differing, run.first) == (0, None)
    assert (
        run.tensors == len(program.tensors) - 2
    )  # but the image and the coupling, of which there is one row at a time
    assert run.missing == ("digit.coupling",)
    assert run.codes > run.capsules.size


@needs_compiler
@pytest.mark.parametrize("traced", [True, False])
def test_the_first_tensor_that_differs_is_named(
    traced: bool, tracing: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board with another bias than the file's."""
    program = sample()
    conv = next(op for op in program.ops if op.name == "conv1")
    codes = conv.bias.codes.copy()  # type: ignore[attr-defined]
    codes[3] = 15 if codes[3] < 0 else -16
    bias = replace(conv.bias, codes=codes)  # type: ignore[attr-defined]
    changed = tuple(replace(op, bias=bias) if op is conv else op for op in program.ops)  # type: ignore[call-arg]
    digest = remote.program_digest(program)
    monkeypatch.setattr(remote, "program_digest", lambda _: digest)
    with BadLine([tracing if traced else built]) as line:
        run = run_on_board(line.where, replace(program, ops=changed), images_for(program, 4))
    assert run.differing > 0
    assert run.first is not None
    assert run.first.tensor == ("conv1.activation" if traced else program.output)
    assert f"tensor {run.first.tensor}[" in str(run.first)


@needs_compiler
def test_firmware_of_another_model_is_refused(built: Path) -> None:
    program = sample(4)
    with BadLine([built]) as line, pytest.raises(BoardError, match="runs another model: SHA-256 ") as caught:
        run_on_board(line.where, program, images_for(program, 1))
    assert caught.value.exit_code == 3
    with BadLine([built]) as line, pytest.raises(DataError, match="images"):
        run_on_board(line.where, sample(), np.zeros((1, 1, 5, 5), np.uint8))


@contextmanager
def stranger(says: bytes) -> Iterator[str]:
    """Somebody who accepts connections, and says always the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line:
                line.sendall(says)
                while line.recv(4096):
                    line.sendall(says)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"tcp:127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def greeting(**changes: int) -> bytes:
    tensors, digest = sample().tensors, bytes.fromhex(remote.program_digest(sample()))
    shapes = (*tensors[sample().input].shape, *tensors[sample().output].shape)
    return struct.pack("<BBB5HI32s", *Greeting(1, 0, 240, *shapes, 99, digest)._replace(**changes))


def said(*answers: Frame) -> bytes:
    """Each answer with the numbers of the first requests."""
    return b"".join(replace(frame, number=number).encode() for number in range(1, 4) for frame in answers)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (b"", r"no answer within 0 s \(not a byte\); is it the firmware"),
        (b"ok", "no answer, such as b'ok"),
        (b"Hello, world!\r\n" * 20, r"sent [\d,]+ bytes that are no answer, such as b'Hello, world!"),
        (bytes(range(1, 256)) * 40, "bytes that are no answer"),
        (b"\0" * 500, "bytes that are no answer"),
        (said(Frame(frames.GREETING, 0, b"\2later")), "speaks version 2 of the protocol, caplet 1"),
        (said(Frame(frames.GREETING, 0, greeting(rows=9))), r"images and gives capsules of \(9, "),
        (said(Frame(frames.GREETING, 0, greeting()), Frame(frames.REFUSED, 0, b"\2")), "images of another size"),
        (said(Frame(frames.GREETING, 0, greeting()), Frame(frames.REFUSED, 0, b"\x09")), "with reason 9"),
        (said(Frame(frames.GREETING, 0, greeting())), "no codes within|no answer"),
    ],
    ids=["silent", "short", "babbling", "noise", "zeros", "version", "shape", "size", "reason", "mute"],
)
def test_who_cannot_be_used(says: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_START", 0.4)
    program = sample()
    with stranger(says) as where, pytest.raises(BoardError, match=message):
        run_on_board(where, program, images_for(program, 1), wait=0.5)


def test_lines_that_do_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with pytest.raises(BoardError, match=r"cannot be opened: .*refused; is the bridge, or the emulator, running"):
        open_port(f"tcp:127.0.0.1:{closed}")
    for wrong in (
        "serial:",
        "tcp:here",
        "tcp:1:2:3",
        "tcp::5",
        "serial",
        "tcp:h:0",
        "tcp:127.0.0.1:99999",
        "tcp:h:\u0663",
    ):
        with pytest.raises(ConfigError, match="the rule is serial:PORT"):
            check_port(wrong)
    assert not is_port("native")


@needs_serial
def test_serial_ports_that_are_absent_or_busy(built: Path) -> None:
    with pytest.raises(BoardError, match=r"cannot be opened: .*; ports here: "):
        open_port("serial:/dev/no-such-port@9600")
    with BadLine([built], terminal=True) as line:
        first = open_port(line.where)
        with pytest.raises(BoardError, match="another program has it; close that"):
            open_port(line.where)
        first.close()
        open_port(line.where).close()


def test_serial_ports_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(ToolMissing, match=r"pip install 'caplet\[serial\]'"):
        open_port("serial:/dev/ttyACM0")


def talk(command: Path, data: bytes) -> list[Frame]:
    """What the answerer says to bytes, to its end: exit code 0, so that no check of memory failed."""
    done = subprocess.run([command], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return FrameReader().feed(done.stdout)


@needs_compiler
def test_the_answerer_survives_anything(built: Path) -> None:
    rng = random.Random(3)
    parts = [rng.randbytes(rng.randrange(600)) for _ in range(200)]
    for _ in range(3000):
        kind = rng.choice((frames.HELLO, frames.IMAGE, frames.RUN, 0, 0x83, 77))
        frame = bytearray(Frame(kind, rng.randrange(256), rng.randbytes(rng.randrange(241))).encode())
        for _ in range(rng.randrange(3)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        parts.append(bytes(frame[rng.randrange(3) :]))
    rng.shuffle(parts)
    parts += [b"\0", Frame(frames.HELLO, 200).encode()]
    last = talk(built, b"".join(parts))[-1]
    assert (last.type, last.number) == (frames.GREETING, 200)


@needs_compiler
def test_what_the_answerer_refuses(built: Path) -> None:
    program = sample()
    size = int(np.prod(program.image_shape))
    pixels = bytes(size)
    place = (size - 4).to_bytes(4, "little")
    hello, sent = Frame(frames.HELLO, 1), Frame(frames.IMAGE, 2, bytes(4) + pixels[:100])

    def run(number: int, count: int, crc: int) -> Frame:
        return Frame(frames.RUN, number, struct.pack("<BII", 0, count, crc))

    whole = [Frame(frames.IMAGE, 9, at.to_bytes(4, "little") + pixels[at : at + 200]) for at in range(0, size, 200)]
    cases = [
        ([run(1, size, 0)], frames.REFUSED, 1),
        ([hello, run(2, size + 1, zlib.crc32(pixels))], frames.REFUSED, 2),
        ([hello, Frame(frames.RUN, 2, b"\0")], frames.REFUSED, 2),
        ([hello, Frame(frames.IMAGE, 2, b"\0\0\0")], frames.REFUSED, 2),
        ([hello, Frame(frames.IMAGE, 2, place + b"12345")], frames.REFUSED, 2),
        ([hello, Frame(frames.IMAGE, 2, b"\xff\xff\xff\xff12")], frames.REFUSED, 2),
        ([hello, sent, run(3, size, zlib.crc32(b"1" * size))], frames.REFUSED, 3),
        ([hello, Frame(0x77, 2)], frames.REFUSED, 5),
        ([hello, Frame(frames.IMAGE, 2, place + b"1234")], frames.TAKEN, None),
        ([hello, *whole, run(10, size, zlib.crc32(pixels))], frames.DONE, None),
    ]
    for asked, kind, reason in cases:
        last = talk(built, b"".join(frame.encode() for frame in asked))[-1]
        assert (last.type, last.number) == (kind, asked[-1].number), asked
        assert reason is None or last.payload == bytes([reason]), asked
    # A request that is repeated gets the same answer, with the time of the one run.
    asked = [hello, *whole, *[run(10, size, zlib.crc32(pixels))] * 3]
    answers = talk(built, b"".join(frame.encode() for frame in asked))
    done = [frame for frame in answers if frame.type == frames.DONE]
    assert len(done) == 3
    assert len(set(done)) == 1


def test_frames() -> None:
    rng = random.Random(1)
    for size in (0, 1, 3, 100, 239, 240):
        for payload in (bytes(size), b"\xff" * size, rng.randbytes(size)):
            frame = Frame(rng.randrange(256), rng.randrange(256), payload)
            data = frame.encode()
            assert data.count(b"\0") == 2
            decoder = FrameReader()
            assert [found for byte in data for found in decoder.feed(bytes([byte]))] == [frame]
            for at in range(1, len(data) - 1):
                assert FrameReader().feed(data[:at] + data[at + 1 :]) == []
    decoder = FrameReader()
    assert decoder.feed(b"x" * 100_000) == []
    assert len(decoder.strange) == 40
    assert decoder.feed(frame.encode()) == [frame]


def test_tensors_of_big_endian_boards() -> None:
    spec = next(spec for spec in sample_deep(5, SampleSettings(7, 12)).tensors.values() if spec.element_bytes == 2)
    codes = np.arange(spec.elements, dtype=np.int64).reshape(spec.shape) % 100
    found = codes_of(spec, codes.astype(">i2").tobytes(), ">")
    assert found is not None
    assert np.array_equal(found, codes)
    assert codes_of(spec, b"12") is None


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_firmware_in_an_emulator_over_its_serial_port(board: Board, tmp_path: Path) -> None:
    if shutil.which(board.emulator) is None or shutil.which(board.gcc) is None:
        pytest.skip(f"{board.emulator} or {board.gcc} is not installed")
    program = sample_deep(1, SampleSettings(7, 12))
    export = emit(program, tmp_path / "export", EmitSettings(ram="small"))
    firmware = build_firmware(board, export, board.find_compiler(), ("CAPLET_NO_SELFTEST",), "main_serve")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    serial = f"tcp:127.0.0.1:{port},server=on,wait=off"
    command = [board.emulator, *board.machine, "-nographic", "-monitor", "none", "-serial", serial]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(firmware)]
    images = images_for(program, 2)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as emulator:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                threading.Event().wait(0.05)
            run = run_on_board(f"tcp:127.0.0.1:{port}", program, images)
        finally:
            emulator.kill()
    assert (run.differing, run.codes) == (0, run.capsules.size)
    assert run.arena_bytes == export.plan.bytes
    assert (run.microseconds > 0).all()


def test_a_line_that_sends_back_what_it_gets_is_no_board() -> None:
    program = sample()

    def echo(server: socket.socket) -> None:
        line, _ = server.accept()
        with line:
            while data := line.recv(4096):
                line.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with pytest.raises(BoardError, match="sends back what is sent to it; is this the right port"):
            run_on_board(f"tcp:127.0.0.1:{server.getsockname()[1]}", program, images_for(program, 1), wait=5)


class Slow:
    """A board in Python that answers with the right codes; its line is cut at the first run, and it then stays deaf."""

    def __init__(self, program: Program, images: np.ndarray, deaf: float) -> None:
        self._codes = interpreter.run(program, images).capsules.astype("<i2")
        self._deaf, self._cut = deaf, False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.where = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            line, _ = self._server.accept()
            with line:
                if self._cut:
                    threading.Event().wait(self._deaf)
                self._answer(line)

    def _answer(self, line: socket.socket) -> None:
        reader, done = FrameReader(), dict[int, int]()
        while data := line.recv(4096):
            for frame in reader.feed(data):
                if frame.type == frames.HELLO:
                    line.sendall(Frame(frames.GREETING, frame.number, greeting()).encode())
                elif frame.type == frames.IMAGE:
                    line.sendall(Frame(frames.TAKEN, frame.number).encode())
                elif not self._cut:
                    self._cut = True
                    return
                else:
                    codes = self._codes[done.setdefault(frame.number, len(done))].tobytes()
                    for at in range(0, len(codes), 200):
                        piece = b"\0" + at.to_bytes(4, "little") + codes[at : at + 200]
                        line.sendall(Frame(frames.CODES, frame.number, piece).encode())
                    line.sendall(Frame(frames.DONE, frame.number, struct.pack("<II", 5, len(codes))).encode())


def test_a_board_at_work_when_its_line_was_cut_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_START", 0.5)
    program = sample()
    images, said = images_for(program, 2), []
    board = Slow(program, images, deaf=2)
    run = run_on_board(board.where, program, images, wait=20, note=said.append)
    assert (run.differing, run.resets) == (0, 1)
    assert len(said) == 1
    assert "the line was cut" in said[0]
    assert "waiting for the board, 20 s at most" in said[0]
    assert run.repeats < 25, "40 at one pace: it is asked less and less"
    deaf = Slow(program, images, deaf=60)
    with pytest.raises(
        BoardError, match=r"no answer within [12] s after the line was cut; where an image takes longer, g"
    ):
        run_on_board(deaf.where, program, images, wait=1)


@needs_compiler
def test_tensors_that_a_board_does_not_send_are_named(tmp_path: Path) -> None:
    """Votes that are made again lie nowhere."""
    program = sample()
    export = emit(program, tmp_path / "export", EmitSettings(ram="small", in_place=False))
    with BadLine([answerer(export, "-DCAPLET_TRACE_HOOK", "-DCAPLET_SERVE_PAYLOAD=64")]) as line:
        run = run_on_board(line.where, program, images_for(program, 1))
    assert run.differing == 0
    assert "digit.votes" in run.missing
    assert run.tensors + len(run.missing) == len(program.tensors) - 1  # the image
