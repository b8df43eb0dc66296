"""Compiled C of a model's integers against PyTorch's float32 in turns, and what the processor could do at most.

Wall-clock rates suffer from whatever else runs; rates of processor time (of all threads) suffer less. Both sides are
measured in the same turns. The roofline is products per second of VNNI from registers (``dot_roofline.c``), divided by
the network's products: what it would be if nothing but them cost time.

    python benchmarks/host_speed.py ../shared/models/shallow_fmnist.pt --threads 2 --turns 9 --name vnni
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from caplet.api import load_float
from caplet.bench.speed.works import inference, noise
from caplet.data.imageset import to_float
from caplet.lower import lower
from caplet.models.cost import cost_of
from caplet.program import interpreter
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runs.folder import environment
from caplet.runtime import NativeModel

HERE = Path(__file__).parent
IMAGES, BITS, LEAST = 120, 8, 0.5


def roofline() -> dict[str, float]:
    """Products per nanosecond of one core, and its clock."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "roofline"
        subprocess.run(["cc", "-O2", "-march=native", str(HERE / "dot_roofline.c"), "-o", str(binary)], check=True)
        found: dict[str, float] = json.loads(subprocess.run([binary], check=True, capture_output=True).stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--name", help="of the record; printed alone if left out")
    parser.add_argument("--beside", default="nothing", help="what else runs on the machine, for the record")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    model = load_float(chosen.model)
    codes = noise(model, IMAGES)
    program = lower(model, uniform_plan(model, calibrate(model, codes[:16]), BITS))
    native, pixels = NativeModel(program, threads=chosen.threads), codes.numpy()
    few, answers = interpreter.run(program, pixels[:8]), native.run(pixels)
    differing = int((few.capsules != answers.capsules[:8]).sum() + (few.lengths != answers.lengths[:8]).sum())
    sides = {"integers": lambda: native.run(pixels), "float": inference(model, to_float(codes))}
    rates: dict[str, dict[str, list[float]]] = {side: {"wall": [], "processor": []} for side in sides}
    load = os.getloadavg()[0]
    for turn in range(chosen.turns + 1):  # the first one warms up
        for side, work in sides.items():
            wall, processor, images = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - wall < LEAST:
                work()
                images += IMAGES
            if turn:
                rates[side]["wall"].append(images / (time.perf_counter() - wall))
                rates[side]["processor"].append(images / (time.process_time() - processor))
    most = roofline()
    products = sum(layer.macs.total for layer in cost_of(model).layers)
    bound = most["products_per_ns"] * 1e9 / products
    best = {side: {kind: max(values) for kind, values in kinds.items()} for side, kinds in rates.items()}
    middle = {
        side: {kind: statistics.median(values) for kind, values in kinds.items()} for side, kinds in rates.items()
    }
    record = {
        "what": "images per second of wall-clock time, and of processor time (of all threads together)",
        "date": str(datetime.date.today()),
        "command": f"python benchmarks/host_speed.py {Path(chosen.model).name} --threads {chosen.threads}",
        "beside": chosen.beside,
        "load_before": round(load, 2),
        "threads": chosen.threads,
        "bits": BITS,
        "differing_codes_of_8_images": differing,
        "best": best,
        "median": middle,
        "times_float": {
            "best": {kind: best["integers"][kind] / best["float"][kind] for kind in ("wall", "processor")},
            "median": {kind: middle["integers"][kind] / middle["float"][kind] for kind in ("wall", "processor")},
        },
        "roofline": {
            **most,
            "products_per_image": products,
            "images_per_second_and_core": bound,
            "bound_over_found": bound / best["integers"]["processor"] if bound else None,
        },
        "rates": rates,
        "environment": asdict(environment()),
    }
    print(json.dumps(record, indent=1))
    if chosen.name:
        path = HERE / "records" / f"{record['date']}-host-speed-{chosen.name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
