"""Models on an emulated Cortex-M4: every code compared, RAM, instructions; and predicted against measured flash.

Device part: the model with 8 bits everywhere (exponents as in ``integer_runs.py``), run on ``--images`` test images by
the interpreter, by the compiled C and by the firmware in QEMU, with ``--ram`` bytes of arena at most. No accuracy is
measured. Flash part: for each model and width, what ``caplet inspect`` predicts and what the sections of the firmware's
ELF file sum to, test harness included. The rule is a difference of at most 5 % + 8 KiB.

    python benchmarks/device_runs.py --shared ../shared                 # minutes on an idle core
    python benchmarks/device_runs.py --shared ../shared --images 5 --flash q7:8 --no-record
"""

import argparse
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from integer_runs import CASES, RECORDS

from caplet.data import load_data
from caplet.jobs.quantize.job import CALIBRATION_IMAGES
from caplet.lower import lower
from caplet.models.checkpoint import load_model
from caplet.program import Program, interpreter
from caplet.program.c.emit import EmitSettings, emit
from caplet.quant.measure.tune import DEFAULT_IMAGES, Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runtime import NativeModel
from caplet.runtime.emulator import CORTEX_M4, build_firmware, elf_flash_bytes, run_on_device


def make_program(name: str, bits: int, shared: Path, tuned: bool) -> Program:
    """A model of ``integer_runs.py`` with ``bits`` bits everywhere; tuned: exponents by their effect, as there."""
    case = CASES[name]
    model = load_model(shared / case.file)
    splits = load_data(case.data, shared / case.root)
    source: Any = calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES if tuned else 64).images)
    if tuned:
        source = Tuner(model, source, splits.calibration.evenly_spaced(DEFAULT_IMAGES).images)
    plan = uniform_plan(model, source, bits)
    return lower(model, plan, labels=splits.test.classes)


def device(name: str, shared: Path, count: int, ram: int) -> dict[str, Any]:
    """One model on the interpreter, on this machine and on the emulated device."""
    case = CASES[name]
    program = make_program(name, 8, shared, tuned=True)
    images = load_data(case.data, shared / case.root).test.images[:count].numpy()
    reference = interpreter.run(program, images).capsules
    native = NativeModel(program).run(images).capsules
    run = run_on_device(CORTEX_M4, program, images, EmitSettings(ram=ram))
    return {
        "file": case.file,
        "bits": 8,
        "images": len(images),
        "codes_per_engine": reference.size,
        "native_differing_codes": int((native != reference).sum()),
        "cortex_m4_differing_codes": run.differing,
        "arena_bytes": run.arena_bytes,
        "stack_bytes": run.stack_bytes,
        "ram_bytes": run.ram_bytes,
        "flash_bytes_measured": run.flash_bytes,
        "flash_bytes_predicted": program.firmware_bytes,
        "emulated_instructions_per_image": {
            "least": int(run.instructions.min()),
            "mean": int(run.instructions.mean()),
            "most": int(run.instructions.max()),
        },
        "toolchain": run.toolchain,
    }


def flash(name: str, bits: int, shared: Path) -> dict[str, Any]:
    """Predicted and measured flash of one model."""
    program = make_program(name, bits, shared, tuned=False)
    with tempfile.TemporaryDirectory() as folder:
        compiler = CORTEX_M4.find_compiler()
        measured = elf_flash_bytes(build_firmware(CORTEX_M4, emit(program, Path(folder) / "export"), compiler))
    difference = measured - program.firmware_bytes
    return {
        "file": CASES[name].file,
        "bits": bits,
        "constants_bytes": program.flash_bytes,
        "predicted_bytes": program.firmware_bytes,
        "measured_bytes": measured,
        "difference_bytes": difference,
        "within_rule": abs(difference) <= 0.05 * program.firmware_bytes + 8 * 1024,
        "toolchain": compiler[0].version.splitlines()[0],
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--models", nargs="*", choices=CASES, default=["q7"], help="of the device part")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--ram", type=int, default=36_000, help="of the device part: bytes of arena at most")
    parser.add_argument(
        "--flash", nargs="*", default=["q7:8", "q7:6", "q7:4", "q7:2", "shallow:8", "shallow:3"], help="MODEL:BITS"
    )
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "benchmarks/device_runs.py", *sys.argv[1:]]),
        "device": [],
        "flash": [],
    }
    for name in options.models:
        record["device"].append(device(name, options.shared, options.images, options.ram))
        print(json.dumps(record["device"][-1], indent=1), flush=True)
    for case in options.flash:
        name, _, bits = case.partition(":")
        record["flash"].append(flash(name, int(bits), options.shared))
        print(json.dumps(record["flash"][-1], indent=1), flush=True)
    if not options.no_record:
        (RECORDS / f"{record['date']}-device-cortex-m4.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
