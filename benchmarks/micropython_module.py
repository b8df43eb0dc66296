"""The exported native module in MicroPython itself: every code of images, on this machine and on emulated boards.

    pip install pyelftools ar mpremote
    python benchmarks/micropython_module.py ~/micropython runs/small/model.caplet --record micropython

MICROPYTHON is its source, with `mpy-cross`, `ports/unix` and, for boards, `ports/qemu` built (`make BOARD=MPS2_AN385`).
Images are random pixels, made by the same small generator here and there.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caplet.program import Program, run
from caplet.program.c.emit import EmitSettings, emit
from caplet.program.file import load_program

RECORDS = Path(__file__).parent / "records"
BOARDS = {"MPS2_AN385": ("mps2-an385", "armv7m"), "MPS2_AN500": ("mps2-an500", "armv7emdp")}
"""Board of MicroPython's port for QEMU -> the machine, and its architecture."""
ASK = """
import hashlib
import model
state, digest = 1, hashlib.sha256()
pixels = bytearray(model.ROWS * model.COLUMNS * model.CHANNELS)
for _ in range({count}):
    for place in range(len(pixels)):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        pixels[place] = state >> 16 & 255
    found = model.capsules(pixels)
    digest.update(found)
print("codes", "".join("%02x" % byte for byte in digest.digest()), model.selftest())
"""


def images_of(program: Program, count: int) -> NDArray[np.uint8]:
    """The images that ``ASK`` makes, uint8 (N, C, H, W)."""
    channels, rows, columns = program.image_shape
    state, size = 1, channels * rows * columns
    found = np.empty((count, size), dtype=np.uint8)
    for image in found:
        for place in range(size):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            image[place] = state >> 16 & 255
    return found.reshape(count, rows, columns, channels).transpose(0, 3, 1, 2)


def build(micropython: Path, folder: Path, arch: str) -> int:
    """Make the module for an architecture; its bytes."""
    (folder / "model.mpy").unlink(missing_ok=True)
    command = ["make", f"MPY_DIR={micropython}", f"ARCH={arch}", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "model.mpy").stat().st_size


def on_board(firmware: Path, machine: str, folder: Path) -> str:
    """What MicroPython on an emulated board prints."""
    command = ["qemu-system-arm", "-machine", machine, "-nographic", "-monitor", "null", "-semihosting"]
    with subprocess.Popen([*command, "-serial", "pty", "-kernel", firmware], stdout=subprocess.PIPE, text=True) as qemu:
        try:
            assert qemu.stdout is not None
            port = re.search(r"/dev/pts/\d+", qemu.stdout.readline())
            assert port is not None
            time.sleep(2)
            remote = [sys.executable, "-m", "mpremote", "connect", port[0], "mount", str(folder), "exec", "import ask"]
            done = subprocess.run(remote, check=True, capture_output=True, text=True)
            return str(done.stdout)
        finally:
            qemu.kill()


def main() -> int:
    """Parse the options, build, run, compare, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micropython", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--boards", nargs="*", choices=BOARDS, default=[*BOARDS])
    parser.add_argument("--record", help="name of the record to write")
    options = parser.parse_args()
    source = options.micropython.expanduser().resolve()
    program = load_program(options.program)
    codes = run(program, images_of(program, options.images)).capsules
    expected = hashlib.sha256(np.ascontiguousarray(codes.astype("<i2")).tobytes()).hexdigest()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = emit(program, Path(place) / "export", EmitSettings(prefix="model", to="micropython")).folder
        (folder / "ask.py").write_text(ASK.format(count=options.images))
        for name in ("unix", *options.boards):
            machine, arch = BOARDS.get(name, ("", "x64"))
            size = build(source, folder, arch)
            if machine:
                firmware = source / "ports" / "qemu" / f"build-{name}" / "firmware.elf"
                answer = on_board(firmware, machine, folder)
            else:
                here = source / "ports" / "unix" / "build-standard" / "micropython"
                environment = {**os.environ, "MICROPYPATH": str(folder)}
                command = [here, folder / "ask.py"]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                answer = done.stdout
            digest, passed = answer[answer.index("codes") :].split()[1:3]
            equal = digest == expected and passed == "True"
            rows.append({"port": name, "architecture": arch, "mpy_bytes": size, "every_code_equal": equal})
            print(rows[-1], flush=True)
    if options.record:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        version = subprocess.run(
            ["git", "describe", "--always"], cwd=source, check=True, capture_output=True, text=True
        )
        record = {
            "what": __doc__.splitlines()[0],
            "command": shlex.join(["python", "benchmarks/micropython_module.py", "MICROPYTHON", options.program.name]),
            "date": date,
            "micropython": version.stdout.strip(),
            "images": options.images,
            "codes": int(codes.size),
            "flash_bytes": program.flash_bytes,
            "rows": rows,
        }
        path = RECORDS / f"{date[:10]}-{options.record}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(path)
    return int(not all(row["every_code_equal"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
