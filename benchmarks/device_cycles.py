"""Cycles per image of exported C on processor cores, estimated; ``caplet/program/cycles.json`` is fitted to them.

Firmware runs in QEMU, whose plugin ``count_instructions.c`` counts every block of code; the disassembly gives the
classes of its instructions. Each class has the cycles that the core's manual gives without wait states: Cortex-M0+
Technical Reference Manual (DDI 0484), Cortex-M3 (100165), Cortex-M4 (100166), and for RV32IMC the documentation of
Ibex with its single-cycle multiplier. A conditional branch counts as taken three times out of four; a load right
after a load costs one cycle on Cortex-M3 and M4. Code for Cortex-M0+ and M3 runs on the emulated Cortex-M4, which has
all their instructions; the codes are compared there, too.

    python benchmarks/device_cycles.py q7_mnist-8.caplet=mnist.npy q7_mnist-compressed.caplet=mnist.npy
    python benchmarks/device_cycles.py shallow_fmnist-8.caplet=fmnist.npy --ram fast --add RECORD
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from caplet.program import Program, interpreter
from caplet.program.c.emit import EmitSettings, emit
from caplet.program.cycles import Counts, work
from caplet.program.file import load_program
from caplet.runtime.emulator import CORTEX_M4, RISCV32, Board, build_firmware

sys.path.insert(0, str(Path(__file__).parent))
from device_kernels import HARNESS, PLUGIN, RECORDS, count

CORES: dict[str, Board] = {
    "cortex-m0+": replace(CORTEX_M4, gcc_flags=("-mcpu=cortex-m0plus", "-mthumb")),
    "cortex-m3": replace(CORTEX_M4, gcc_flags=("-mcpu=cortex-m3", "-mthumb")),
    "cortex-m4": CORTEX_M4,
    "rv32imc": RISCV32,
}
CLASSES = (
    ("divide", r"[su]div|divu?|remu?"),
    ("multiply_long", r"[su]mull|[su]mlal"),
    ("multiply_add", r"mla|mls"),
    ("multiple", r"push|pop|ldm.*|stm.*|ldrd|strd"),
    ("load", r"ldr.*|l[bhw]u?|lw|c\.lw.*"),
    ("store", r"str.*|s[bhw]|c\.sw.*"),
    (
        "conditional",
        r"b(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|hs|lo)(\.[nw])?|cbn?z|b(eq|ne|lt|ge|ltu|geu|gt|le)z?|bgez|blez",
    ),
    ("jump", r"b(\.[nw])?|bl|bx|blx|tbb|tbh|j|jal|jalr|jr|ret|call|tail"),
)
"""Classes of instructions, the first that matches; anything else is plain."""
CYCLES = {
    "cortex-m0+": {"load": 2, "store": 2, "conditional": 1.75, "jump": 2.5, "multiple": 1},
    "cortex-m3": {"divide": 7, "multiply_long": 4, "multiply_add": 2, "load": 2, "conditional": 2.5, "jump": 3},
    "cortex-m4": {"divide": 7, "load": 2, "conditional": 2.5, "jump": 3},
    "rv32imc": {"divide": 37, "load": 2, "store": 2, "conditional": 2.5, "jump": 2},
}
"""Cycles of an instruction of a class, 1 if not given; of "multiple" one more for each register."""


def class_of(mnemonic: str) -> str:
    """The class of an instruction."""
    return next((name for name, pattern in CLASSES if re.fullmatch(pattern, mnemonic)), "plain")


def disassembled(board: Board, firmware: Path) -> dict[int, tuple[str, int]]:
    """Address -> class of the instruction there, and registers that it moves."""
    tool = board.gcc.removesuffix("gcc") + "objdump"
    text = subprocess.run(
        [tool, "-d", "--no-show-raw-insn", firmware], check=True, capture_output=True, text=True
    ).stdout
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line):
            words = re.search(r"\{(.*)\}", match[3])
            registers = sum(_registers(word) for word in words[1].split(",")) if words else 2
            found[int(match[1], 16)] = class_of(match[2]), registers
    return found


def _registers(word: str) -> int:
    ends = [int(name.strip()[1:]) for name in word.split("-") if name.strip()[0] == "r"]
    return ends[1] - ends[0] + 1 if len(ends) == 2 else 1


def cycles(core: str, board: Board, firmware: Path, counts: Path) -> tuple[float, Counter[str]]:
    """Of the model's and the runtime's functions; and how often each class ran."""
    nm = board.gcc.removesuffix("gcc") + "nm"
    lines = subprocess.run([nm, "-n", firmware], check=True, capture_output=True, text=True).stdout.splitlines()
    symbols = [(int(a, 16), name) for a, kind, name in map(str.split, lines) if kind in "tT" and name[0] != "$"]
    starts = np.array([start for start, _ in symbols])
    code, costs = disassembled(board, firmware), CYCLES[core]
    places = sorted(code)
    at = {place: index for index, place in enumerate(places)}
    total, classes = 0.0, Counter[str]()
    for line in counts.read_text().splitlines():
        place, size, times = line.split()
        name = symbols[int(np.searchsorted(starts, int(place, 16), side="right")) - 1][1]
        if int(place, 16) not in at or name in HARNESS or "semihosting" in name or "board" in name:
            continue  # the emulator's own start-up code, or the test harness
        before = ""
        for address in places[at[int(place, 16)] : at[int(place, 16)] + int(size)]:
            kind, registers = code[address]
            each = costs.get(kind, 1) + (registers if kind == "multiple" else 0)
            if kind == before == "load" and core in ("cortex-m3", "cortex-m4"):
                each = 1
            total, before = total + each * int(times), kind
            classes[kind] += int(times)
    return total, classes


def measure(
    name: str, program: Program, images: NDArray[np.uint8], ram: str, core: str, plugin: Path
) -> dict[str, Any]:
    """One program on one core."""
    board = CORES[core]
    with tempfile.TemporaryDirectory(prefix="caplet-cycles-") as path:
        folder = Path(path)
        export = emit(program, folder / "export", EmitSettings(ram=ram))
        firmware = build_firmware(board, export, board.find_compiler())
        (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
        count(board, firmware, folder, plugin)
        expected = interpreter.run(program, images).capsules
        capsules = np.fromfile(folder / "capsules.bin", dtype="<i2").reshape(expected.shape)
        total, classes = cycles(core, board, firmware, folder / "counts.txt")
    return {
        "program": name,
        "core": core,
        "ram": ram,
        "work": vars(work(program, export.plan)),
        "cycles_per_image": round(total / len(images)),
        "instructions_per_image": sum(classes.values()) // len(images),
        "classes": {kind: number // len(images) for kind, number in classes.most_common()},
        "differing_codes": int((capsules != expected).sum()),
    }


def fit(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Cycles for each unit of work, by least squares of relative errors; and the error of each row when left out."""
    units = np.array([astuple(Counts(**row["work"])) for row in rows], dtype=float)
    targets = np.array([row["cycles_per_image"] for row in rows], dtype=float)
    scaled = units / targets[:, None]
    errors = []
    for left in range(len(rows)):
        kept = [index for index in range(len(rows)) if index != left]
        found, _ = nnls(scaled[kept], np.ones(len(kept)))
        errors.append(float(scaled[left] @ found - 1))
    return [float(value) for value in nnls(scaled, np.ones(len(rows)))[0]], errors


def main() -> int:
    """Parse, measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+", help="PROGRAM.caplet=IMAGES.npy")
    parser.add_argument("--ram", nargs="*", default=["fast", "small"])
    parser.add_argument("--cores", nargs="*", choices=list(CORES), default=list(CORES))
    parser.add_argument("--add", type=Path, help="a record whose rows are added, and which is replaced")
    parser.add_argument("--count", type=int, default=1, help="images")
    parser.add_argument("--out", type=Path, default=RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-device-cycles.json")
    options = parser.parse_args()
    earlier = json.loads(options.add.read_text()) if options.add else {"commands": [], "rows": []}
    rows = earlier["rows"]
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "count.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", plugin, PLUGIN], check=True)
        for word in options.programs:
            path, images = map(Path, word.split("="))
            program, pixels = load_program(path), np.load(images)[: options.count]
            for ram in options.ram:
                for core in options.cores:
                    rows.append(measure(path.name, program, pixels, ram, core, plugin))
                    print({key: value for key, value in rows[-1].items() if key != "classes"}, flush=True)
    fits = {}
    for core in options.cores:
        table, errors = fit([row for row in rows if row["core"] == core])
        fits[core] = {"cycles_per_unit": table, "errors_when_left_out": errors}
        print(core, [round(value, 2) for value in table], "left out:", [f"{error:+.0%}" for error in errors])
    command = shlex.join(["python", "benchmarks/device_cycles.py", *sys.argv[1:]])
    record = {
        "commands": [*earlier["commands"], command],
        "compiler": CORTEX_M4.find_compiler()[0].version.splitlines()[0],
        "rows": rows,
    }
    options.out.write_text(json.dumps(record | {"fits": fits}, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["differing_codes"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
