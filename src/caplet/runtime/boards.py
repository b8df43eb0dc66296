"""Microcontroller boards that an emulator stands for: machine, memory map, compilers."""

import importlib.util
import shutil
import sys
from dataclasses import dataclass

from caplet import processes
from caplet.errors import ToolMissing
from caplet.runtime.compiler import Compiler

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
        install: how to get compiler and emulator.
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
    install: str

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
        raise ToolMissing(
            f"{self.name}: no compiler: looked for {self.gcc} and the Python package ziglang; {self.install}"
        )

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
    install=(
        "install them, on Debian with 'apt install qemu-system-arm gcc-arm-none-eabi'; 'pip install ziglang' serves as "
        "the compiler too"
    ),
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
    install=(
        "install them, on Debian with 'apt install qemu-system-misc gcc-riscv64-unknown-elf'; 'pip install ziglang' "
        "serves as the compiler too"
    ),
)
BOARDS = {board.name: board for board in (CORTEX_M4, RISCV32)}
"""Boards by name."""
