"""Arena bytes three ways: every tensor apart, outputs over inputs that have been read, and maps in bands of rows, too.

Networks in 8 bits: the shipped ones, those of a folder of models, calibrated on random images, and with random weights
EfficientNet-Lite0's blocks up to blocks_4_2 under capsules at 64x64 (needs timm) and DeepCaps at 64x64. Some, the
trunk among them, are exported for little RAM and compiled for this machine with sanitizers, and every code of the class
capsules compared with the interpreter's; small ones also run on an emulated Cortex-M4, their instructions counted.
"Least" is the RAM that a refusal names. Products are those of convolutions: bands compute none twice.

    python benchmarks/arena_bytes.py --models ../shared/models      # writes benchmarks/records/<date>-arena-bytes.json
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import caplet
from caplet.errors import PlanError
from caplet.lower import lower
from caplet.models.checkpoint import load_model
from caplet.models.registry import build, named_model
from caplet.program import Program, load_program, plan_memory, run, verify
from caplet.program.arena import MemoryMap
from caplet.program.bands import products
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, emit
from caplet.program.verify import Proof
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runtime.compiler import find_compiler
from caplet.runtime.emulator import CORTEX_M4, run_on_device

TRAINED = Path(caplet.__file__).parent / "models" / "trained"
TRUNK = "timm/tf_efficientnet_lite0@blocks_4_2"
WAYS = ("apart", "over_inputs", "bands")
COMPILED = ("trained:mnist", "q7_cifar_same.h5", "deep_cifar10.pt")
EMULATED = {"trained:mnist": (3420, 5000), "q7_cifar_same.h5": (7700, 9000, 16000, 24000)}
"""Networks that run on an emulated board, with these bytes of RAM beside ``small``."""


def networks(folder: Path | None) -> Iterator[tuple[str, Program]]:
    """Name and Program of every network."""
    for name in ("digits", "mnist", "fashion-mnist"):
        yield f"trained:{name}", load_program(TRAINED / f"{name}.caplet")
    names = ("q7_mnist.h5", "q7_cifar_same.h5", "shallow_fmnist.pt", "deep_cifar10.pt")
    for path in [folder / name for name in names] if folder else []:
        yield path.name, lowered(load_model(path))
    for name in (TRUNK, "deep-64"):
        torch.manual_seed(0)
        named = named_model(name)
        yield f"{name}, 64x64", lowered(build(named.family, named.config).eval())


def lowered(model: Any) -> Program:
    """The model in 8 bits, by the ranges of random images."""
    images = torch.randint(0, 256, (8, *model.config.image), dtype=torch.uint8, generator=torch.manual_seed(0))
    return lower(model, uniform_plan(model, calibrate(model, images), 8))


@contextmanager
def planned(way: str) -> Iterator[None]:
    """Plans of one way: every tensor whole and apart, or outputs over inputs that have been read, or bands, too."""
    with ExitStack() as stack:
        if way != "bands":
            stack.enter_context(patch("caplet.program.arena.segments", lambda *_: ()))
        if way == "apart":
            stack.enter_context(patch("caplet.program.arena.lead", lambda *_: None))
        yield


def described(program: Program, plan: MemoryMap) -> dict[str, Any]:
    """A plan in the record."""
    found: dict[str, Any] = {
        "bytes": plan.bytes,
        "peak_op": plan.peak_op,
        "peak": [f"{part} {size}" for part, size in plan.peak[:3]],
    }
    if plan.behind:
        found["over_inputs"] = dict(plan.behind)
    if plan.bands:
        found["bands"] = [{**vars(bands), "held": dict(bands.held)} for bands in plan.bands]
    return found


def least_plan(program: Program, proof: Proof) -> MemoryMap:
    """The plan in as many bytes as a refusal says are needed."""
    try:
        plan_memory(program, 1, proof=proof)
    except PlanError as error:
        return plan_memory(program, int(str(error).split("needs ")[1].split(",")[0]), proof=proof)
    raise AssertionError("a network in a byte of RAM")


def codes_of(program: Program, images: np.ndarray) -> np.ndarray:
    """Class capsules of the exported C code with the smallest arena, by the address sanitizer's leave."""
    with tempfile.TemporaryDirectory() as folder:
        export = emit(program, Path(folder) / "c", EmitSettings(ram="small"), images)
        (export.folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
        compiler = find_compiler()
        sources = [str(path.relative_to(export.folder)) for path in export.folder.glob(f"{RUNTIME_FOLDER}/*.c")]
        names = [f"{export.prefix}.c", f"{export.prefix}_selftest.c", "main_host.c", *sources]
        flags = ["-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        compiler.build([*flags, *names, "-o", "program"], "model", export.folder)
        subprocess.run(["./program", "images.bin", "capsules.bin"], cwd=export.folder, check=True)
        return np.fromfile(export.folder / "capsules.bin", dtype=np.int16)


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, program in networks(options.models):
        proof = verify(program)
        row: dict[str, Any] = {"network": name, "products": sum(products(op, program.tensors) for op in program.ops)}
        for way in WAYS:
            with planned(way):
                began = time.process_time()
                for ram in ("fast", "small"):
                    row[f"{way}_{ram}"] = described(program, plan_memory(program, ram, proof=proof))
                row[f"{way}_least"] = described(program, least_plan(program, proof))
                row[f"{way}_seconds_of_planning"] = round(time.process_time() - began, 2)
        print(name, {key: found["bytes"] for key, found in row.items() if isinstance(found, dict)}, flush=True)
        rows.append(row)
        images = np.random.default_rng(0).integers(0, 256, (2, *program.image_shape), dtype=np.uint8)
        if name.startswith(TRUNK) or name in COMPILED:
            expected = run(program, images).capsules.reshape(-1)
            row["codes"], row["differing_codes"] = len(expected), int((codes_of(program, images) != expected).sum())
            print(name, "codes", row["codes"], "differing", row["differing_codes"], flush=True)
        if name in EMULATED:
            for way in WAYS:
                with planned(way):
                    limits: tuple[str | int, ...] = ("small", *EMULATED[name]) if way == "bands" else ("small",)
                    for limit in limits:
                        found = run_on_device(CORTEX_M4, program, images, EmitSettings(ram=limit))
                        row[f"{way}_{limit}_cortex_m4"] = {
                            "instructions_per_image": int(found.instructions.mean()),
                            "arena_bytes": found.arena_bytes,
                            "stack_bytes": found.stack_bytes,
                            "flash_bytes": found.flash_bytes,
                            "differing_codes": found.differing,
                            "compiler": found.toolchain,
                        }
                        print(name, way, limit, row[f"{way}_{limit}_cortex_m4"], flush=True)
    if not options.no_record:
        record = {
            "caplet": caplet.__version__,
            "date": str(datetime.date.today()),
            "cpus": os.cpu_count(),
            "rows": rows,
        }
        path = Path(__file__).parent / "records" / f"{record['date']}-arena-bytes.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
