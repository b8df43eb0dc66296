"""The examples of packages that answer `caplet verify`, with stubs of the serial ports of their places."""

import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from caplet.program import interpreter
from caplet.program.file import program_digest
from caplet.runtime import line as frames
from caplet.runtime.line import Frame, FrameReader
from package_builds import ARDUINO, PORTS, RUN_SKETCH, WARN, need, objects, package, sample, sh

pytestmark = pytest.mark.slow(1.5)

ANSWERERS = {
    "cmake": ("examples/verify/main.c", ""),
    "arduino": ("examples/Verify/Verify.ino", '#include "Arduino.h"\n'),
    "platformio": ("examples/verify/src/main.cpp", "#define ARDUINO 1\n"),
    "zephyr": ("samples/verify/src/main.c", ""),
    "esp-idf": ("examples/verify/main/main.c", "void app_main(void);\nint main(void) { app_main(); return 0; }\n"),
}


@pytest.mark.parametrize("place", ANSWERERS)
def test_the_example_that_answers(place: str, tmp_path: Path) -> None:
    need("gcc", "g++")
    program = sample()
    export = package(place, tmp_path / "package", program)
    made = objects(export, tmp_path / "objects", "gcc", "-O1", "-fno-strict-aliasing")
    for name, text in {**PORTS, "Arduino.h": ARDUINO + RUN_SKETCH}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    example, before = ANSWERERS[place]
    is_cpp = place in ("arduino", "platformio")
    source = tmp_path / ("main.cpp" if is_cpp else "main.c")
    source.write_text(before + (export.folder / example).read_text())
    flags = ["-std=c++11"] if is_cpp else ["-std=c99"]
    includes = ["-I", export.folder / "src", "-I", tmp_path]
    sh("g++" if is_cpp else "gcc", *flags, *WARN, *includes, source, *made, "-o", tmp_path / "answerer")
    size = int(np.prod(program.image_shape))
    asked = [Frame(frames.HELLO, 1)]
    asked += [
        Frame(frames.IMAGE, 2, at.to_bytes(4, "little") + bytes(min(200, size - at))) for at in range(0, size, 200)
    ]
    asked += [Frame(frames.RUN, 3, struct.pack("<BII", 0, size, zlib.crc32(bytes(size))))]
    data = b"".join(frame.encode() for frame in asked)
    done = subprocess.run([tmp_path / "answerer"], input=data, capture_output=True, timeout=60, check=True)
    answers = FrameReader().feed(done.stdout)
    assert [frame.type for frame in answers[:2]] == [frames.GREETING] * 2  # unasked, at the start, and asked
    assert answers[1].payload.endswith(bytes.fromhex(program_digest(program)))
    codes = b"".join(frame.payload[5:] for frame in answers if frame.type == frames.CODES)
    images = np.zeros((1, *program.image_shape), np.uint8)
    assert np.array_equal(np.frombuffer(codes, "<i2"), interpreter.run(program, images).capsules.reshape(-1))
    assert answers[-1].type == frames.DONE
