"""Programs on an emulated Cortex-M4: build the firmware, run it in QEMU, compare every code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError, ToolMissing
from caplet.program import interpreter
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, Export, emit
from caplet.program.program import Program
from caplet.runtime.compiler import Compiler
from caplet.runtime.difference import Difference, first_difference
from caplet.runtime.elf import read_sizes
from caplet.runtime.traces import read_traces

_EMULATOR = "qemu-system-arm"
_SHIFT = 6  # every instruction takes 2**6 ns of the emulated clock
_TICK = 40  # ns of the board's timer
_COMMON = ("-std=c99", "-ffreestanding", "-fno-strict-aliasing", "-ffunction-sections", "-fdata-sections")
_GCC = ("-O2", "-mcpu=cortex-m4", "-mthumb", "-nostdlib")
_ZIG = ("-Os", "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-fno-sanitize=all")
_LINK = ("-nostartfiles", "-T", "cortex_m/mps2_an386.ld", "-Wl,--gc-sections")
_INSTALL = (
    "install them, on Debian with 'apt install qemu-system-arm gcc-arm-none-eabi'; 'pip install ziglang' serves as the "
    "compiler too"
)


@dataclass(frozen=True)
class DeviceRun:
    """What an emulated Cortex-M4 computed and needed.

    capsules: int32 (N, classes, D). differing: codes that differ from the interpreter's; first: where, or None.
    flash_bytes: code and constants of the ELF file, test harness included. arena_bytes, stack_bytes: RAM; stack is the
    high-water mark, the harness's frame included. instructions: of each image, int64 (N,), as the emulator counts them:
    not clock cycles of a real device. toolchain: the compiler's first line.
    """

    capsules: NDArray[np.int32]
    differing: int
    first: Difference | None
    flash_bytes: int
    arena_bytes: int
    stack_bytes: int
    instructions: NDArray[np.int64]
    toolchain: str

    @property
    def ram_bytes(self) -> int:
        """Arena and stack."""
        return self.arena_bytes + self.stack_bytes


def find_cross_compiler() -> tuple[Compiler, tuple[str, ...]]:
    """A compiler for Cortex-M4 and its flags: arm-none-eabi-gcc, else ziglang. Raises ToolMissing without either."""
    if shutil.which("arm-none-eabi-gcc"):
        version = subprocess.run(["arm-none-eabi-gcc", "--version"], capture_output=True, text=True, check=True).stdout
        return Compiler(("arm-none-eabi-gcc",), version), _GCC
    if importlib.util.find_spec("ziglang") is not None:
        return zig_cross_compiler()
    raise ToolMissing(
        f"cortex-m4: no compiler: looked for arm-none-eabi-gcc and the Python package ziglang; {_INSTALL}"
    )


def zig_cross_compiler() -> tuple[Compiler, tuple[str, ...]]:
    """The compiler of the Python package ziglang, and its flags for Cortex-M4. Raises ToolMissing when it is absent."""
    command = (sys.executable, "-m", "ziglang")
    done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolMissing(f"cortex-m4: the Python package ziglang cannot be run; {_INSTALL}")
    return Compiler((*command, "cc"), f"zig {done.stdout.strip()}"), _ZIG


def require_emulator() -> str:
    """The path of qemu-system-arm. Raises ToolMissing when it is absent."""
    path = shutil.which(_EMULATOR)
    if path is None:
        raise ToolMissing(f"cortex-m4: {_EMULATOR} was not found; {_INSTALL}")
    return path


def run_on_cortex_m4(
    program: Program,
    images: NDArray[np.uint8],
    settings: EmitSettings | None = None,
    compiler: tuple[Compiler, tuple[str, ...]] | None = None,
    timeout: float = 3600.0,
) -> DeviceRun:
    """Build the firmware of a Program, run images on it in QEMU and compare every output code with the interpreter.

    images: uint8 (N, channels, rows, columns). timeout: seconds for the whole run.
    Raises ToolMissing without compiler or emulator, ArtefactError when the firmware does not build (its constants may
    exceed the board's memory), stops early, or takes longer than ``timeout``.
    """
    emulator = require_emulator()
    compiler = compiler or find_cross_compiler()
    expected = interpreter.run(program, images)
    with tempfile.TemporaryDirectory(prefix="caplet-cortex-m4-") as name:
        folder = Path(name)
        export = emit(program, folder / "export", settings)
        firmware = build_firmware(export, compiler)
        _emulate(emulator, firmware, folder, images, timeout)
        output = program.tensors[program.output]
        capsules = _read(folder / "capsules.bin", np.int16, (len(images), *output.shape)).astype(np.int32)
        ticks = _read(folder / "ticks.bin", np.uint32, (len(images),))
        stack = int(_read(folder / "stack.bin", np.uint32, (1,))[0])
        unequal = capsules != expected.capsules
        first = None
        if unequal.any():
            worst = int(np.argmax(unequal.reshape(len(images), -1).any(axis=1)))
            first = _locate(program, images, worst, emulator, compiler, settings, timeout)
        return DeviceRun(
            capsules=capsules,
            differing=int(unequal.sum()),
            first=first,
            flash_bytes=read_sizes(firmware).flash,
            arena_bytes=export.plan.bytes,
            stack_bytes=stack,
            instructions=(ticks.astype(np.int64) * _TICK) >> _SHIFT,
            toolchain=compiler[0].version.splitlines()[0],
        )


def build_firmware(
    export: Export, compiler: tuple[Compiler, tuple[str, ...]], defines: tuple[str, ...] = ("CAPLET_NO_SELFTEST",)
) -> Path:
    """Compile an export for the emulated board; returns the ELF file. Raises ArtefactError when that fails."""
    sources = [f"{export.prefix}.c", "cortex_m/main_cortex_m.c", "cortex_m/startup.c", "cortex_m/semihosting.c"]
    # The runtime as one translation unit: one start of the compiler instead of one per op.
    runtime = sorted(path.name for path in (export.folder / RUNTIME_FOLDER).glob("*.c"))
    (export.folder / "runtime_all.c").write_text("".join(f'#include "{RUNTIME_FOLDER}/{name}"\n' for name in runtime))
    sources.append("runtime_all.c")
    flags = [*compiler[1], *_COMMON, *_LINK, *(f"-D{name}" for name in defines)]
    libraries = ["-lgcc"] if "gcc" in compiler[0].command[0] else []
    arguments = [*flags, "-o", "firmware.elf", *sources, *libraries]
    compiler[0].build(arguments, f"firmware of {export.prefix}", export.folder)
    return export.folder / "firmware.elf"


def _emulate(emulator: str, firmware: Path, folder: Path, images: NDArray[np.uint8], timeout: float) -> None:
    (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
    command = [emulator, "-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-icount", f"shift={_SHIFT}"]
    command += ["-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    command += ["-kernel", str(firmware)]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ArtefactError(
            f"cortex-m4: the emulator took longer than {timeout:.0f} s; give it fewer images"
        ) from error
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[:1000]
        raise ArtefactError(f"cortex-m4: the emulated firmware stopped with exit code {done.returncode}: {said}")


def _read(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    values = np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<"))
    if values.size != np.prod(shape):
        raise ArtefactError(f"cortex-m4: {path.name} holds {values.size} values, expected {int(np.prod(shape))}")
    return values.reshape(shape)


def _locate(
    program: Program,
    images: NDArray[np.uint8],
    image: int,
    emulator: str,
    compiler: tuple[Compiler, tuple[str, ...]],
    settings: EmitSettings | None,
    timeout: float,
) -> Difference | None:
    """Run one image again in a firmware that writes out every tensor, and find the first that differs."""
    with tempfile.TemporaryDirectory(prefix="caplet-cortex-m4-") as name:
        folder = Path(name)
        export = emit(program, folder / "export", settings)
        firmware = build_firmware(export, compiler, ("CAPLET_NO_SELFTEST", "CAPLET_TRACE_HOOK"))
        _emulate(emulator, firmware, folder, images[image : image + 1], timeout)
        found = read_traces(program, folder / "trace.bin")
    difference = first_difference(program, interpreter.trace(program, images[image : image + 1]), found)
    if difference is None:
        return None
    return Difference(difference.tensor, (image, *difference.index[1:]), difference.expected, difference.found)
