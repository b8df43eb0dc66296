"""Random single ops: the C code against the interpreter, every code of every output.

A case is one input through one op; ops are drawn at random over shapes, formats (1 to 16 bits), roundings, weights and
extremes, and each takes `--batch` inputs. About half of the ops run on the device's path (bit-packed constants), the
others on the host's. Every op runs on the library compiled with -O3 for this machine, and on three with instructions of
others in plain C: those of the DSP extension, of Helium, and the products of AVX-512 VNNI; every fifth one also on -O0.

With --part K N, only the K-th of N parts runs, with ops of its own; its record can be joined with the others' by hand.

With --boards, the ops run in firmware on emulated boards instead, as devices compute them; with --minutes, each board
stops after so many, and the record says how many cases it had.

    python benchmarks/op_equality.py                     # 1,000,000 cases, writes benchmarks/records/<name>.json
    python benchmarks/op_equality.py --cases 20000 --no-record
"""

import argparse
import datetime
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from caplet.program.op import OPS
from caplet.runtime.compiler import build_library, find_compiler, load_library
from caplet.runtime.emulator import RISCV32

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from device_kernels import board_of, prepare

from device_ops import differing_on_device
from foreign_steps import differing as differing_cases
from foreign_steps import emulated_arm
from random_ops import RandomOps

RECORDS = Path(__file__).parent / "records"
ARM = {"aarch64": False, "aarch64-dotprod": True}
"""Emulated 64-bit Arm processors, with and without the dot product of bytes."""
LITTLE_RAM = 8_192
"""Bytes of an op's tensors at most on a board with 16 KiB, which holds inputs and a stack besides."""
EMULATED = ("-DCAPLET_EMULATE_DSP", f"-I{Path(__file__).parents[1] / 'tests' / 'support'}", "-O2")
HELIUM = (*EMULATED, "-DCAPLET_EMULATE_HELIUM")


def compare(cases: int, batch: int, seed: tuple[int, ...]) -> dict[str, object]:
    """Run the cases; returns counts per kind of op, and what differs first, if anything does."""
    all_flags = ((), ("-O0",), EMULATED, HELIUM, ("-DCAPLET_EMULATE_DOT", "-Wno-psabi"))
    fast, plain, dsp, helium, dot = (load_library(build_library(flags=flags)) for flags in all_flags)
    draw = RandomOps(seed)
    counts = {kind: {"ops": 0, "cases": 0, "codes": 0, "differing_codes": 0} for kind in OPS}
    first = None
    for number in range(-(-cases // batch)):
        kind = list(OPS)[number % len(OPS)]
        single = draw.draw(kind)
        inputs = draw.inputs(single, batch)
        expected = single.interpret(inputs)
        libraries = [fast, dsp, helium, dot, plain] if number % 5 == 0 else [fast, dsp, helium, dot]
        for library in libraries:
            found = single.run(library, inputs)
            for name, codes in expected.items():
                unequal = codes != found[name]
                counts[kind]["differing_codes"] += int(unequal.sum())
                if unequal.any() and first is None:
                    first = f"op {number}: {single.op}, output {name}, first at {np.argwhere(unequal)[0].tolist()}"
        counts[kind]["ops"] += 1
        counts[kind]["cases"] += batch
        counts[kind]["codes"] += sum(codes.size for codes in expected.values())
    return {"kinds": counts, "first_difference": first}


def on_boards(
    names: list[str], cases: int, batch: int, seed: int, minutes: float
) -> Iterator[tuple[str, dict[str, int]]]:
    """Random ops on emulated boards, about a hundred in each firmware, two dozen in little flash, and no large ones in
    little RAM; else the same ones. Processors of ``ARM`` compute them as the host runtime does."""
    library = load_library(build_library())
    for name in names:
        draw, total, differing, end = RandomOps(seed), 0, 0, time.time() + 60 * minutes
        with tempfile.TemporaryDirectory() as arm_folder:
            arm = emulated_arm(ARM[name], Path(arm_folder)) if name in ARM else None
            while total < cases and time.time() < end:
                often = 2 if name in ("cortex-m0", "cortex-m55") else 100 // len(OPS)
                ops = [draw.draw(kind, None if arm else True) for kind in (*OPS,) * often]
                if name == "cortex-m0":
                    ops = [single for single in ops if single.describe(library)[0].arena_bytes <= LITTLE_RAM]
                both = [(single, draw.inputs(single, batch)) for single in ops]
                with tempfile.TemporaryDirectory() as folder:
                    if arm is not None:
                        found = len(ops) * batch, len(differing_cases(arm, both))
                    else:
                        found = differing_on_device(board_of(name), both, Path(folder), (), prepare)
                total, differing = total + found[0], differing + found[1]
                print(name, total, differing, flush=True)
        yield name, {"cases": total, "differing_cases": differing}


def compiler_of(name: str) -> str:
    """Of a board, or of a processor of ``ARM``."""
    compiler, _ = RISCV32.zig() if name in ARM else board_of(name).find_compiler()
    return compiler.version.splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=int, nargs=2, metavar=("K", "N"), help="only the K-th of N parts")
    parser.add_argument("--boards", nargs="*", default=[], help="emulated ones of device_kernels.py, or of 64-bit Arm")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most, for each board")
    parser.add_argument("--no-record", action="store_true")
    settings = parser.parse_args()
    start = time.time()
    if settings.boards:
        boards = {}
        for name, counts in on_boards(settings.boards, settings.cases, settings.batch, settings.seed, settings.minutes):
            boards[name] = counts
            now = datetime.datetime.now(datetime.UTC)
            record = {
                "command": "python " + shlex.join(["benchmarks/op_equality.py", *sys.argv[1:]]),
                "date": now.isoformat(timespec="seconds"),
                "compiler": {name: compiler_of(name) for name in boards},
                "seconds": round(time.time() - start, 1),
                "boards": boards,
            }
            if not settings.no_record:
                (RECORDS / f"{now:%Y-%m-%d}-op-equality-boards.json").write_text(json.dumps(record, indent=1) + "\n")
        return int(any(entry["differing_cases"] for entry in boards.values()))
    part, parts = settings.part or (1, 1)
    result = compare(settings.cases // parts, settings.batch, (settings.seed, part) if parts > 1 else (settings.seed,))
    kinds = result["kinds"]
    assert isinstance(kinds, dict)
    total = {key: sum(entry[key] for entry in kinds.values()) for key in ("ops", "cases", "codes", "differing_codes")}
    now = datetime.datetime.now(datetime.UTC)
    record = {
        "command": "python " + shlex.join(["benchmarks/op_equality.py", *sys.argv[1:]]),
        "date": now.isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "system": platform.system(),
        "compiler": find_compiler().version.splitlines()[0],
        "settings": vars(settings),
        "seconds": round(time.time() - start, 1),
        "total": total,
        **result,
    }
    print(json.dumps({key: record[key] for key in ("command", "seconds", "total", "first_difference")}, indent=2))
    if not settings.no_record:
        RECORDS.mkdir(exist_ok=True)
        path = RECORDS / f"{now:%Y-%m-%d}-op-equality{f'-part-{part}-of-{parts}' if parts > 1 else ''}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"wrote {path}")
    return 1 if total["differing_codes"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
