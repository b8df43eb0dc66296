"""Exported ONNX files against the models they were made from, in onnxruntime, on test images.

Every tensor of a trained model gets ``--bits``, with exponents from 1,024 images cut from the training split. The
Program's ONNX file and the float model's are run on test images: how many predictions are equal, how many class-capsule
values differ, and by how much at most. Needs the packages onnx, onnxruntime and onnxscript.

    python benchmarks/onnx_equality.py --shared ../shared --models q7,shallow --images 1000
"""

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caplet.data import load_data
from caplet.jobs.export import check_onnx, export_onnx
from caplet.jobs.quantize.job import CALIBRATION_IMAGES
from caplet.lower import lower
from caplet.models.checkpoint import load_model
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.train.finetune import weights_digest

RECORDS = Path(__file__).parent / "records"
CASES = {
    "q7": ("models/q7_mnist.h5", "mnist", "data"),
    "shallow": ("models/shallow_fmnist.pt", "fashion-mnist", "data"),
    "deep": ("models/deep_cifar10.pt", "cifar10", "data/cifar10-jpeg.tar.xz"),
}


def measure(case: str, shared: Path, checkpoint: Path | None, bits: int, count: int, floats: bool) -> dict[str, Any]:
    """One model: its Program's file and, where ``floats``, its float file, each against the model."""
    file, data, root = CASES[case]
    splits = load_data(data, shared / root, progress=False)
    model = load_model(checkpoint or shared / file, splits.test.image_shape[-1])
    plan = uniform_plan(model, calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images), bits)
    images = splits.test.evenly_spaced(count).images.numpy()
    name = file if checkpoint is None else checkpoint.name
    found: dict[str, Any] = {"file": name, "weights": weights_digest(model), "data": data, "bits": bits}
    with tempfile.TemporaryDirectory() as folder:
        for name, one in (("program", lower(model, plan)), *((("float", model),) if floats else ())):
            path = export_onnx(one, Path(folder) / f"{name}.onnx")
            began = time.perf_counter()
            found[name] = asdict(check_onnx(path, one, images)) | {
                "file_bytes": path.stat().st_size,
                "seconds": round(time.perf_counter() - began, 1),
            }
    return found


def short(word: str) -> str:
    """A word of the command; of an absolute path its last part, as records name no folder of one machine."""
    return Path(word).name if word.startswith("/") else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", default="q7,shallow")
    parser.add_argument("--checkpoint", type=Path, help="another trained model of the one case asked for")
    parser.add_argument("--program", action="store_true", help="only the Program's file")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    cases = arguments.models.split(",")
    if arguments.checkpoint is not None and len(cases) > 1:
        parser.error("--checkpoint goes with one case of --models")
    results = [
        measure(case, arguments.shared, arguments.checkpoint, arguments.bits, arguments.images, not arguments.program)
        for case in cases
    ]
    record = {
        "benchmark": "onnx_equality",
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "benchmarks/onnx_equality.py", *map(short, sys.argv[1:])]),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "onnxscript")},
        "results": results,
    }
    print(json.dumps(record, indent=1))
    if not arguments.no_record:
        part = "-program" if arguments.program else ""
        name = f"{record['date']}-onnx-equality-{arguments.models.replace(',', '-')}{part}.json"
        (RECORDS / name).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
