"""Integers on whole test sets: interpreter against compiled C, integers against fake-quant and float, and speed.

For each trained model every tensor gets 8 bits (or ``--bits``); the exponents come from 1,024 images cut from the
training split, tuned on 64 of them. Then, on the test split: how many class-capsule codes differ between the
interpreter and the compiled C; how many predictions differ between fake-quant and the integers; accuracy of float and
integers, paired; and images per second of the compiled C, of the float model (PyTorch, channels-last) and of the same
network in plain broadcast form, measured in turns in one run, on one thread and on all processors.

    python benchmarks/integer_runs.py --shared ../shared                     # all models; an hour on one core
    python benchmarks/integer_runs.py --shared ../shared --models q7 --no-record
    python benchmarks/integer_runs.py --shared ../shared --models shallow --speed-only --turns 9
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_speed import PlainDeep, PlainShallow

from caplet.data import load_data
from caplet.data.imageset import to_float
from caplet.jobs.evaluate import float_predictions
from caplet.jobs.quantize import CALIBRATION_IMAGES, spread
from caplet.lower import lower
from caplet.metrics import accuracy, paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.nn.memory import keep_freed_memory
from caplet.program import Program, interpreter
from caplet.quant.calibrate import calibrate
from caplet.quant.evaluator import predict
from caplet.quant.fake import fake_quantized
from caplet.quant.tune import DEFAULT_IMAGES, Tuner
from caplet.quant.widths import Widths, make_plan
from caplet.runtime import NativeModel
from caplet.runtime.native import processors

RECORDS = Path(__file__).parent / "records"
SPEED_IMAGES = 512


@dataclass(frozen=True)
class Case:
    """One trained model: its file, its data, how many test images are compared, and its network in plain form."""

    file: str
    data: str
    root: str
    images: int
    plain: Callable[[], torch.nn.Module] | None


CASES = {
    "shallow": Case("models/shallow_fmnist.pt", "fashion-mnist", "data", 10_000, PlainShallow),
    "deep": Case("models/deep_cifar10.pt", "cifar10", "data/cifar10-jpeg.tar.xz", 1_000, PlainDeep),
    "q7": Case("models/q7_mnist.h5", "mnist", "data", 10_000, None),
}


def measure(case: Case, shared: Path, bits: int, turns: int, speed_only: bool) -> dict[str, Any]:
    """Everything about one model, or only its speed."""
    model = load_model(shared / case.file)
    splits = load_data(case.data, shared / case.root)
    calibration = calibrate(model, spread(splits.calibration, CALIBRATION_IMAGES))
    tuner = Tuner(model, calibration, spread(splits.calibration, DEFAULT_IMAGES))
    plan = make_plan(model, tuner, Widths.uniform(len(model.groups()), bits))
    program = lower(model, plan, labels=splits.test.classes)
    test = splits.test
    step = len(test) // case.images
    chosen = test.subset(range(0, step * case.images, step))
    images, labels = chosen.images.numpy(), chosen.labels.numpy()

    if speed_only:
        return {"file": case.file, "bits": bits, "speed": speeds(model, case, program, images, turns)}
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
        "float": accuracy(int((floats == labels).sum()), len(labels)).to_json(),
        "integers": accuracy(int(hits.sum()), len(labels)).to_json(),
        "paired": paired(floats == labels, hits).to_json(),
        "native_seconds_all_images": round(native_seconds, 2),
        "interpreter_seconds_100_images": round(interpreter_seconds, 2),
        "flash_bytes": program.flash_bytes,
        "speed": speeds(model, case, program, images, turns),
    }


def speeds(model: CapsNet, case: Case, program: Program, images: np.ndarray, turns: int) -> list[dict[str, Any]]:
    """Images per second of all sides on one thread and on all: :data:`SPEED_IMAGES` images, in turns, float in 64s.

    Both the median and the best turn are given: where other programs run on the machine, the best one is fairer.
    """
    images = images[:SPEED_IMAGES]
    floats = to_float(torch.from_numpy(images))
    contiguous = floats.contiguous()
    plain = None if case.plain is None else case.plain().eval()

    def through(module: torch.nn.Module, batch: torch.Tensor) -> None:
        with torch.inference_mode():
            for part in batch.split(64):
                module(part)

    def measured(threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        native = NativeModel(program, threads=threads)
        sides: dict[str, Callable[[], object]] = {
            "compiled C": lambda: native.run(images),
            "PyTorch float, channels-last": lambda: through(model, floats),
        }
        if plain is not None:
            sides["PyTorch float, plain broadcast form"] = lambda: through(plain, contiguous)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side()
        for _ in range(turns):
            for name, side in sides.items():
                began = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - began)
        result: dict[str, Any] = {"threads": threads, "turns": turns}
        for what, of in (("median", statistics.median), ("best", min)):
            rates = {name: len(images) / of(times) for name, times in seconds.items()}
            result[f"images_per_second_{what}"] = {name: round(rate, 1) for name, rate in rates.items()}
            result[f"compiled_c_over_{what}"] = {
                name: round(rates["compiled C"] / rate, 2) for name, rate in rates.items() if name != "compiled C"
            }
        return result

    return [measured(threads) for threads in sorted({1, processors()})]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5, help="of every side in the speed measurement")
    parser.add_argument("--speed-only", action="store_true", help="measure speed, compare nothing")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    today = datetime.now(UTC).date().isoformat()
    for name in options.models:
        print(name, flush=True)
        result = measure(CASES[name], options.shared, options.bits, options.turns, options.speed_only)
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
            about = "speed" if options.speed_only else "integers"
            path = RECORDS / f"{today}-{about}-{name}-{options.bits}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
