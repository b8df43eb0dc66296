"""Integers on whole test sets: interpreter against compiled C, integers against fake-quant and float.

For each trained model every tensor gets 8 bits (or ``--bits``); the exponents come from 1,024 images cut from the
training split, tuned on 64 of them. Then, on the test split: how many class-capsule codes differ between the
interpreter and the compiled C; how many predictions differ between fake-quant and the integers; accuracy of float and
integers, paired. Speed is ``caplet bench speed``.

    python benchmarks/integer_runs.py --shared ../shared                     # all models; an hour on one core
    python benchmarks/integer_runs.py --shared ../shared --models q7 --no-record
"""

import argparse
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caplet.cli.main import keep_freed_memory
from caplet.data import load_data
from caplet.jobs.quantize.job import CALIBRATION_IMAGES
from caplet.jobs.run import float_predictions
from caplet.lower import lower
from caplet.metrics import accuracy, paired
from caplet.models.checkpoint import load_model
from caplet.program import interpreter
from caplet.quant.measure.evaluator import predict
from caplet.quant.measure.tune import DEFAULT_IMAGES, Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.runtime import NativeModel

RECORDS = Path(__file__).parent / "records"


@dataclass(frozen=True)
class Case:
    """One trained model: its file, its data, how many test images are compared."""

    file: str
    data: str
    root: str
    images: int


CASES = {
    "shallow": Case("models/shallow_fmnist.pt", "fashion-mnist", "data", 10_000),
    "deep": Case("models/deep_cifar10.pt", "cifar10", "data/cifar10-jpeg.tar.xz", 1_000),
    "q7": Case("models/q7_mnist.h5", "mnist", "data", 10_000),
}


def measure(case: Case, shared: Path, bits: int) -> dict[str, Any]:
    """Everything about one model."""
    model = load_model(shared / case.file)
    splits = load_data(case.data, shared / case.root)
    calibration = calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images)
    tuner = Tuner(model, calibration, splits.calibration.evenly_spaced(DEFAULT_IMAGES).images)
    plan = uniform_plan(model, tuner, bits)
    program = lower(model, plan, labels=splits.test.classes)
    test = splits.test
    step = len(test) // case.images
    chosen = test.subset(range(0, step * case.images, step))
    images, labels = chosen.images.numpy(), chosen.labels.numpy()

    native = NativeModel(program)
    began = time.perf_counter()
    compiled = native.run(images)
    native_seconds = time.perf_counter() - began
    print(f"  compiled C: {len(images)} images in {native_seconds:.1f} s", flush=True)
    began = time.perf_counter()
    reference = interpreter.run(program, images[:100])
    interpreter_seconds = time.perf_counter() - began
    differing = int((reference.capsules != compiled.capsules[:100]).sum())
    for start in range(100, len(images), 500):
        reference = interpreter.run(program, images[start : start + 500])
        differing += int((reference.capsules != compiled.capsules[start : start + 500]).sum())
    print(f"  interpreter: {differing} codes differ", flush=True)

    with torch.inference_mode(), fake_quantized(model, plan):
        fake = np.concatenate([predict(model(batch)).numpy() for batch, _ in chosen.batches(50)])
    floats = float_predictions(model, chosen)
    hits = compiled.predictions == labels
    return {
        "file": case.file,
        "data": splits.info["name"],
        "data_note": splits.info["note"],
        "bits": bits,
        "images": len(images),
        "codes_compared": compiled.capsules.size,
        "differing_codes": differing,
        "fake_quant_predictions_equal": int((fake == compiled.predictions).sum()),
        "float": asdict(accuracy(int((floats == labels).sum()), len(labels))),
        "integers": asdict(accuracy(int(hits.sum()), len(labels))),
        "paired": asdict(paired(floats == labels, hits)),
        "native_seconds_all_images": round(native_seconds, 2),
        "interpreter_seconds_100_images": round(interpreter_seconds, 2),
        "flash_bytes": program.flash_bytes,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    today = datetime.now(UTC).date().isoformat()
    for name in options.models:
        print(name, flush=True)
        result = measure(CASES[name], options.shared, options.bits)
        print(json.dumps(result, indent=1), flush=True)
        if not options.no_record:
            record = {
                "date": today,
                "command": shlex.join(["python", "benchmarks/integer_runs.py", *sys.argv[1:]]),
                "machine": platform.machine(),
                "torch": torch.__version__,
                **result,
            }
            RECORDS.mkdir(exist_ok=True)
            path = RECORDS / f"{today}-integers-{name}-{options.bits}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
