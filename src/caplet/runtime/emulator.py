"""Programs on an emulated microcontroller: boards, firmware built for them and run in QEMU, every code compared."""

import importlib.util
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet import processes
from caplet.errors import ArtefactError, ToolMissing
from caplet.program import interpreter
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, Export, emit
from caplet.program.program import Program
from caplet.runtime.compiler import Compiler
from caplet.runtime.traces import Difference, first_difference, read_traces

_COMMON = ("-std=c99", "-ffreestanding", "-fno-strict-aliasing", "-ffunction-sections", "-fdata-sections")
_LINK = ("-nostartfiles", "-Wl,--gc-sections")
_ELF_HEADER, _ELF_SECTION = struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<10I")
_ALLOCATED, _NO_BITS = 2, 8


CrossCompiler = tuple[Compiler, tuple[str, ...]]
"""A compiler and its flags for a board."""


@dataclass(frozen=True)
class Board:
    """An emulated board.

    Attributes:
        name: of the target, as users give it.
        folder: of an export, with the board's start-up code (``board.c``) and linker script (``board.ld``).
        emulator, machine: QEMU's program and the options that choose the machine.
        gcc, gcc_flags, zig_flags: the GNU compiler, and what both compilers need to be told.
        clock_shift: every instruction takes ``2**clock_shift`` ns of the emulated clock.
        tick: nanoseconds of that clock between two ticks of the board's counter.
        packages: of Debian, with the emulator and with the compiler.
    """

    name: str
    folder: str
    emulator: str
    machine: tuple[str, ...]
    gcc: str
    gcc_flags: tuple[str, ...]
    zig_flags: tuple[str, ...]
    clock_shift: int
    tick: int
    packages: tuple[str, str]

    @property
    def install(self) -> str:
        """How to get compiler and emulator."""
        command = f"apt install {' '.join(self.packages)}"
        return f"install them, on Debian with '{command}'; 'pip install ziglang' serves as the compiler too"

    def require_emulator(self) -> str:
        """The path of the emulator. Raises ToolMissing when it is absent."""
        path = shutil.which(self.emulator)
        if path is None:
            raise ToolMissing(f"{self.name}: {self.emulator} was not found; {self.install}")
        return path

    def find_compiler(self) -> CrossCompiler:
        """The GNU compiler for the board, else ziglang. Raises ToolMissing without either."""
        if shutil.which(self.gcc):
            version = processes.run([self.gcc, "--version"], seconds=processes.LOOK).stdout
            return Compiler((self.gcc,), version), ("-O2", "-nostdlib", *self.gcc_flags)
        if importlib.util.find_spec("ziglang") is not None:
            return self.zig()
        raise ToolMissing(f"{self.name}: neither {self.gcc} nor the Python package ziglang was found; {self.install}")

    def zig(self) -> CrossCompiler:
        """The compiler of the Python package ziglang. Raises ToolMissing when it is absent."""
        command = (sys.executable, "-m", "ziglang")
        done = processes.run([*command, "version"], seconds=processes.LOOK)
        if done.returncode:
            raise ToolMissing(f"{self.name}: the Python package ziglang cannot be run; {self.install}")
        flags = ("-Os", "-fno-sanitize=all", *self.zig_flags)
        return Compiler((*command, "cc"), f"zig {done.stdout.strip()}"), flags


CORTEX_M4 = Board(
    name="cortex-m4",
    folder="cortex_m",
    emulator="qemu-system-arm",
    machine=("-M", "mps2-an386", "-cpu", "cortex-m4"),
    gcc="arm-none-eabi-gcc",
    gcc_flags=("-mcpu=cortex-m4", "-mthumb"),
    zig_flags=("-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"),
    clock_shift=6,
    tick=40,
    packages=("qemu-system-arm", "gcc-arm-none-eabi"),
)
RISCV32 = Board(
    name="riscv32",
    folder="riscv32",
    emulator="qemu-system-riscv32",
    machine=("-M", "virt", "-bios", "none"),
    gcc="riscv64-unknown-elf-gcc",
    gcc_flags=("-march=rv32imc", "-mabi=ilp32", "-mcmodel=medany"),
    zig_flags=("-target", "riscv32-freestanding-none", "-mcpu=generic_rv32+m+c", "-mcmodel=medany"),
    clock_shift=0,  # the counter of instructions ticks once for each, whether QEMU takes it from the clock or not
    tick=1,
    packages=("qemu-system-misc", "gcc-riscv64-unknown-elf"),
)
BOARDS = {board.name: board for board in (CORTEX_M4, RISCV32)}
"""Boards by name."""


@dataclass(frozen=True)
class DeviceRun:
    """What an emulated microcontroller computed and needed.

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
        return self.arena_bytes + self.stack_bytes


def run_on_device(
    board: Board,
    program: Program,
    images: NDArray[np.uint8],
    settings: EmitSettings | None = None,
    compiler: CrossCompiler | None = None,
    timeout: float = 3600.0,
) -> DeviceRun:
    """Build the firmware of a Program, run images on it in QEMU and compare every output code with the interpreter.

    images: uint8 (N, channels, rows, columns). timeout: seconds for the whole run.
    Raises ToolMissing without compiler or emulator, ArtefactError when the firmware does not build (its constants may
    exceed the board's memory), stops early, or takes longer than ``timeout``.
    """
    board.require_emulator()
    compiler = compiler or board.find_compiler()
    expected = interpreter.run(program, images)
    with tempfile.TemporaryDirectory(prefix=f"caplet-{board.name}-") as name:
        folder = Path(name)
        export = emit(program, folder / "export", settings)
        firmware = build_firmware(board, export, compiler)
        _emulate(board, firmware, folder, images, timeout)
        output = program.tensors[program.output]
        capsules = _read(board, folder / "capsules.bin", np.int16, (len(images), *output.shape)).astype(np.int32)
        ticks = _read(board, folder / "ticks.bin", np.uint32, (len(images),)).astype(np.int64)
        stack = int(_read(board, folder / "stack.bin", np.uint32, (1,))[0])
        flash = elf_flash_bytes(firmware)
        unequal = capsules != expected.capsules
        first = None
        if unequal.any():
            worst = int(np.argmax(unequal.reshape(len(images), -1).any(axis=1)))
            one = images[worst : worst + 1]
            traced = build_firmware(board, export, compiler, ("CAPLET_NO_SELFTEST", "CAPLET_TRACE_HOOK"))
            _emulate(board, traced, folder, one, timeout)
            found = read_traces(program, folder / "trace.bin")
            first = first_difference(program, interpreter.trace(program, one), found)
            first = first and replace(first, index=(worst, *first.index[1:]))
        return DeviceRun(
            capsules=capsules,
            differing=int(unequal.sum()),
            first=first,
            flash_bytes=flash,
            arena_bytes=export.plan.bytes,
            stack_bytes=stack,
            instructions=(ticks * board.tick) >> board.clock_shift,
            toolchain=compiler[0].version.splitlines()[0],
        )


def build_firmware(
    board: Board,
    export: Export,
    compiler: CrossCompiler,
    defines: tuple[str, ...] = ("CAPLET_NO_SELFTEST",),
    main: str = "main_device",
) -> Path:
    """Compile an export for an emulated board; returns the ELF file. main: "main_serve" answers over the serial port.

    Raises ArtefactError when that fails.
    """
    sources = [f"{export.prefix}.c", f"{board.folder}/board.c"]
    sources += [f"device/{name}.c" for name in (main, "startup", "semihosting")]
    sources += [f"{export.prefix}_serve.c"] if main == "main_serve" else []
    # The runtime as one translation unit: one start of the compiler instead of one per op.
    runtime = sorted(path.name for path in (export.folder / RUNTIME_FOLDER).glob("*.c"))
    (export.folder / "runtime_all.c").write_text("".join(f'#include "{RUNTIME_FOLDER}/{name}"\n' for name in runtime))
    sources.append("runtime_all.c")
    flags = [*compiler[1], *_COMMON, *_LINK, "-T", f"{board.folder}/board.ld", *(f"-D{name}" for name in defines)]
    libraries = ["-lgcc"] if "gcc" in compiler[0].command[0] else []
    arguments = [*flags, "-o", "firmware.elf", *sources, *libraries]
    compiler[0].build(arguments, f"firmware of {export.prefix}", export.folder)
    return export.folder / "firmware.elf"


def _emulate(board: Board, firmware: Path, folder: Path, images: NDArray[np.uint8], timeout: float) -> None:
    (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
    command = [board.require_emulator(), *board.machine, "-nographic", "-icount", f"shift={board.clock_shift}"]
    command += ["-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    command += ["-kernel", str(firmware)]
    done = processes.run(command, folder, seconds=timeout)
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[:1000]
        raise ArtefactError(f"{board.name}: the emulated firmware stopped with exit code {done.returncode}: {said}")


def _read(board: Board, path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    values = np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<"))
    if values.size != np.prod(shape):
        raise ArtefactError(f"{board.name}: {path.name} holds {values.size} values, expected {int(np.prod(shape))}")
    return values.reshape(shape)


def elf_flash_bytes(path: Path) -> int:
    """Flash that a 32-bit little-endian ELF file takes: code, constants and the initial values of variables.

    Raises ArtefactError for any other file.
    """
    data = path.read_bytes()
    if len(data) < _ELF_HEADER.size or data[:6] != b"\x7fELF\x01\x01":
        raise ArtefactError(f"{path}: not a 32-bit little-endian ELF file")
    fields = _ELF_HEADER.unpack_from(data)
    offset, size, count = fields[6], fields[11], fields[12]
    if size != _ELF_SECTION.size or offset + size * count > len(data):
        raise ArtefactError(f"{path}: the ELF section table lies outside the file")
    sections = [_ELF_SECTION.unpack_from(data, offset + index * size) for index in range(count)]
    return sum(length for _, kind, flags, _, _, length, *_ in sections if flags & _ALLOCATED and kind != _NO_BITS)
