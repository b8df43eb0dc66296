"""Arena bytes with and without outputs that lie over inputs which have been read, and the op at the peak.

Networks in 8 bits: the shipped ones, those of a folder of models, calibrated on random images, and with random weights
EfficientNet-Lite0's blocks up to blocks_4_2 under capsules at 64x64 (needs timm) and DeepCaps at 64x64. The trunk and
the shipped network of MNIST are exported and compiled for this machine with both plans, and every code of the class
capsules compared with the interpreter's; the latter also runs on an emulated Cortex-M4, its instructions counted.

    python benchmarks/arena_bytes.py --models ../shared/models      # writes benchmarks/records/<date>-arena-bytes.json
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import caplet
from caplet.lower import lower
from caplet.models.checkpoint import load_model
from caplet.models.registry import build, named_model
from caplet.program import Program, load_program, plan_memory, run, verify
from caplet.program.c.emit import RUNTIME_FOLDER, EmitSettings, emit
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runtime.compiler import find_compiler
from caplet.runtime.emulator import CORTEX_M4, run_on_device

TRAINED = Path(caplet.__file__).parent / "models" / "trained"
TRUNK = "timm/tf_efficientnet_lite0@blocks_4_2"


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


def without() -> Any:
    """Plans without outputs over inputs."""
    return patch("caplet.program.arena.lead", lambda *_: None)


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
        row: dict[str, Any] = {"network": name}
        for key, plans in (("before", without()), ("after", nullcontext())):
            with plans:
                for ram in ("fast", "small"):
                    plan = plan_memory(program, ram, proof=proof)
                    peak = [f"{part} {size}" for part, size in plan.peak[:3]]
                    row[f"{key}_{ram}"] = {"bytes": plan.bytes, "peak_op": plan.peak_op, "peak": peak}
                    row[f"{key}_{ram}"] |= {"over_inputs": dict(plan.behind)} if key == "after" else {}
        print(name, *(f"{key} {row[key]['bytes']} {row[key]['peak_op']}" for key in list(row)[1:]), flush=True)
        rows.append(row)
        if name.startswith(TRUNK) or name == "trained:mnist":
            images = np.random.default_rng(0).integers(0, 256, (2, *program.image_shape), dtype=np.uint8)
            expected = run(program, images).capsules.reshape(-1)
            row["codes"], row["differing_codes"] = len(expected), int((codes_of(program, images) != expected).sum())
            print(name, "codes", row["codes"], "differing", row["differing_codes"], flush=True)
        if name == "trained:mnist":
            for key, plans in (("before", without()), ("after", nullcontext())):
                with plans:
                    found = run_on_device(CORTEX_M4, program, images, EmitSettings(ram="small"))
                row[f"{key}_cortex_m4"] = {
                    "instructions_per_image": int(found.instructions.mean()),
                    "arena_bytes": found.arena_bytes,
                    "stack_bytes": found.stack_bytes,
                    "differing_codes": found.differing,
                    "compiler": found.toolchain,
                }
                print(name, key, row[f"{key}_cortex_m4"], flush=True)
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
