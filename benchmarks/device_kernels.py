"""Instructions per image of exported C on emulated boards, by function; flash, RAM, and every code compared.

Instructions are counted by a plugin of QEMU (``count_instructions.c``, built here), for every block of code that the
guest runs, and summed over the functions of the model and its runtime; start-up and test harness do not count. They
are no clock cycles. ``--portable`` builds every board a second time with CAPLET_PORTABLE. ``--reference`` names the
``src`` folder of another version of the package, which is measured too, in the same call.

    python benchmarks/device_kernels.py PROGRAM.caplet --images IMAGES.npy --boards cortex-m4 cortex-m55 --ram fast
    python benchmarks/device_kernels.py PROGRAM.caplet --images IMAGES.npy --functions --no-record
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.program import Program, interpreter
from caplet.program.c.emit import EmitSettings, Export, emit
from caplet.program.file import load_program
from caplet.runtime.emulator import CORTEX_M4, RISCV32, Board, build_firmware, elf_flash_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from vector_boards import vector_board

RECORDS = Path(__file__).parent / "records"
PLUGIN = Path(__file__).parent / "count_instructions.c"
HARNESS = {"main", "start", "reset", "fault", "stack_used", "memcpy", "memset", "call", "run_files", "caplet_trace"}

_BOARD_C = """
#include "../device/board.h"
void reset(void);
__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))stack_top, reset, fault, fault, fault, fault, fault,
};
void reset(void)
{
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* floating-point and vector unit, where there is one */
    start();
}
void board_counter_start(void) {}
uint32_t board_counter(void) { return 0; }
"""
_BOARD_LD = """
ENTRY(reset)
MEMORY {{ FLASH (rx) : ORIGIN = {flash[0]:#x}, LENGTH = {flash[1]}
RAM (rwx) : ORIGIN = {ram[0]:#x}, LENGTH = {ram[1]} }}
SECTIONS
{{
    .vectors : {{ KEEP(*(.vectors)) }} > FLASH
    .text : {{ *(.text .text.*) }} > FLASH
    .rodata : {{ *(.rodata .rodata.*) . = ALIGN(8); }} > FLASH
    .ARM.exidx : {{ *(.ARM.exidx*) }} > FLASH
    .data : {{ data_start = .; *(.data .data.*) . = ALIGN(4); data_end = .; }} > RAM AT > FLASH
    data_load = LOADADDR(.data);
    .bss (NOLOAD) : {{ . = ALIGN(8); bss_start = .; *(.bss .bss.* COMMON) . = ALIGN(8); bss_end = .; }} > RAM
    stack_low = bss_end;
    stack_top = ORIGIN(RAM) + LENGTH(RAM);
    /DISCARD/ : {{ *(.comment) *(.ARM.attributes) *(.debug*) }}
}}
"""
Memory = tuple[int, str]
OTHERS: dict[str, tuple[str, str, Memory, Memory]] = {
    "cortex-m0": ("microbit", "cortex-m0", (0, "256K"), (0x20000000, "16K")),
    "cortex-m3": ("mps2-an385", "cortex-m3", (0, "4M"), (0x20000000, "4M")),
    "cortex-m7": ("mps2-an500", "cortex-m7", (0, "4M"), (0x20000000, "4M")),
    "cortex-m33": ("mps2-an505", "cortex-m33", (0x10000000, "4M"), (0x38000000, "4M")),
    "cortex-m55": ("mps3-an547", "cortex-m55", (0x10000000, "512K"), (0x30000000, "512K")),
}
"""Boards of this benchmark alone: machine, processor, flash and RAM."""
VECTORS = {board.name: board for board in map(vector_board, (128, 256))}
"""RISC-V with vectors of so many bits, by zig."""


def board_of(name: str) -> Board:
    """A board of the package, or one of this benchmark."""
    if name in OTHERS:
        machine, cpu, _, _ = OTHERS[name]
        flags = (f"-mcpu={cpu}", "-mthumb", *(("-mfloat-abi=hard",) if cpu == "cortex-m55" else ()))
        return replace(CORTEX_M4, name=name, folder="board", machine=("-M", machine), gcc_flags=flags)
    return {"cortex-m4": CORTEX_M4, "riscv32": RISCV32, **VECTORS}[name]


def prepare(board: Board, export: Export) -> None:
    """The files of a board that exports do not have."""
    if board.name in OTHERS:
        _, _, flash, ram = OTHERS[board.name]
        (export.folder / "board").mkdir(exist_ok=True)
        (export.folder / "board" / "board.c").write_text(_BOARD_C)
        (export.folder / "board" / "board.ld").write_text(_BOARD_LD.format(flash=flash, ram=ram))


def count(board: Board, firmware: Path, folder: Path, plugin: Path) -> Counter[str]:
    """Run the firmware; instructions by function."""
    counts = folder / "counts.txt"
    command = [board.emulator, *board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-plugin", f"{plugin},out={counts}"]
    done = subprocess.run([*command, "-kernel", firmware], cwd=folder, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise SystemExit(f"{board.name}: exit code {done.returncode}: {done.stderr + done.stdout}")
    nm = (RISCV32 if board.name in VECTORS else board).gcc.removesuffix("gcc") + "nm"
    lines = subprocess.run([nm, "-n", firmware], check=True, capture_output=True, text=True).stdout.splitlines()
    symbols = [(int(a, 16), name) for a, kind, name in map(str.split, lines) if kind in "tT" and name[0] != "$"]
    starts = np.array([start for start, _ in symbols])
    found: Counter[str] = Counter()
    for line in counts.read_text().splitlines():
        place, size, times = line.split()
        found[symbols[int(np.searchsorted(starts, int(place, 16), side="right")) - 1][1]] += int(size) * int(times)
    return found


def measure(
    program: Program,
    images: NDArray[np.uint8],
    board: Board,
    ram: str | int,
    defines: tuple[str, ...],
    plugin: Path,
    flags: str,
) -> dict[str, Any]:
    """One program on one board."""
    expected = interpreter.run(program, images).capsules
    with tempfile.TemporaryDirectory(prefix="caplet-kernels-") as name:
        folder = Path(name)
        export = emit(program, folder / "export", EmitSettings(ram=ram))
        prepare(board, export)
        compiler, known = board.find_compiler()
        firmware = build_firmware(
            board, export, (compiler, (*known, *shlex.split(flags))), ("CAPLET_NO_SELFTEST", *defines)
        )
        (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
        functions = count(board, firmware, folder, plugin)
        capsules = np.fromfile(folder / "capsules.bin", dtype="<i2").reshape(expected.shape)
        stack = int(np.fromfile(folder / "stack.bin", dtype="<u4")[0])
        flash = elf_flash_bytes(firmware)
    kept = {n: v for n, v in functions.items() if n not in HARNESS and "semihosting" not in n and "board" not in n}
    return {
        "board": board.name,
        "compiler": compiler.version.splitlines()[0],
        "portable": "CAPLET_PORTABLE" in defines,
        "ram": ram,
        "instructions_per_image": sum(kept.values()) // len(images),
        "differing_codes": int((capsules != expected).sum()),
        "codes": expected.size,
        "flash_bytes": flash,
        "flash_bytes_of_code": flash - program.flash_bytes,
        "arena_bytes": export.plan.bytes,
        "stack_bytes": stack,
        "functions": {n: v // len(images) for n, v in sorted(kept.items(), key=lambda item: -item[1])},
    }


def measure_all(options: argparse.Namespace, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Every program on every board, with every amount of RAM."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "count.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", plugin, PLUGIN], check=True)
        for path in options.programs:
            program = load_program(path)
            for board in map(board_of, options.boards):
                for ram in options.ram:
                    for defines in ((), ("CAPLET_PORTABLE",)) if options.portable else ((),):
                        place: str | int = int(ram) if ram.isdigit() else ram
                        row = {
                            "program": path.name,
                            **measure(program, images, board, place, defines, plugin, options.flags),
                        }
                        rows.append(row)
                        print({key: value for key, value in row.items() if key != "functions"}, flush=True)
                        for name, number in list(row["functions"].items())[: 16 if options.functions else 0]:
                            print(f"{number:12,} {name}")
    return rows


def reference_rows(source: Path) -> list[dict[str, Any]]:
    """The same measurements by another version of the package, in a process of its own."""
    arguments = [word for word in sys.argv[1:] if word != "--portable"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, *arguments, "--rows", str(path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(source)})
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    return [{**row, "version": "reference"} for row in rows]


def main() -> int:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True, help="uint8 (N, channels, rows, columns), .npy")
    parser.add_argument("--count", type=int, default=5, help="images")
    parser.add_argument(
        "--boards", nargs="*", choices=["cortex-m4", "riscv32", *OTHERS, *VECTORS], default=["cortex-m4"]
    )
    parser.add_argument("--ram", nargs="*", default=["fast", "small"])
    parser.add_argument("--portable", action="store_true")
    parser.add_argument("--functions", action="store_true", help="print them")
    parser.add_argument("--flags", default="", help="more of the compiler, in one word")
    parser.add_argument("--name", default="", help="of the record")
    parser.add_argument("--reference", type=Path, help="src folder of another version")
    parser.add_argument("--rows", type=Path, help="write the rows here, and no record")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    images = np.load(options.images)[: options.count]
    rows = measure_all(options, images)
    if options.rows:
        options.rows.write_text(json.dumps(rows))
        return 0
    if options.reference:
        rows += reference_rows(options.reference)
    record = {
        "command": shlex.join(["python", "benchmarks/device_kernels.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "compiler": CORTEX_M4.find_compiler()[0].version.splitlines()[0],
        "emulator": subprocess.run(["qemu-system-arm", "--version"], capture_output=True, text=True).stdout.split("\n")[
            0
        ],
        "images": len(images),
        "rows": rows,
    }
    if not options.no_record:
        path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-device-kernels{options.name and '-' + options.name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")
    return 1 if any(row["differing_codes"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
