"""The Q-CapsNets search on a trained model: what it finds, what it costs, and whether the loss holds on the test split.

The search and the calibration see images cut from the training split; the test split is opened once, at the end.

    python benchmarks/qcapsnets_search.py shared/models/shallow_fmnist.pt fashion-mnist --root shared/data --budget-mb 5
    python benchmarks/qcapsnets_search.py shared/models/q7_mnist.h5 mnist --root shared/data --compression 4.5

1 MB is 1e6 bytes. Writes benchmarks/records/<date>-qcapsnets-<model>.json; a probe log next to it lets a killed run go
on (``--log``).
"""

import argparse
import json
import platform
import resource
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caplet.data import load_data
from caplet.fixed import Rounding
from caplet.jobs.quantize.accept import footprint
from caplet.metrics import accuracy, paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.quant.choices import Exponents
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import DEFAULT_IMAGES, calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.search.qcapsnets import SIMPLEST_FIRST, search_qcapsnets
from caplet.quant.search.search import Request, Step, Workbench

RECORDS = Path(__file__).parent / "records"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.2, help="percentage points")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget-mb", type=float, help="weight budget in 1e6 bytes")
    budget.add_argument("--compression", type=float, help="weight budget as float size / this")
    parser.add_argument("--images", type=int, default=5000, help="calibration images for the search")
    parser.add_argument("--rounding", choices=[*Rounding, "all"], default="nearest")
    parser.add_argument("--exponents", choices=list(Exponents), default="bound")
    parser.add_argument("--tune", action="store_true", help="exponents by their effect on the class capsules")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--cache-mb", type=float, default=1600)
    parser.add_argument("--log", type=Path, help="probe log, to resume a killed run")
    parser.add_argument("--no-record", action="store_true")
    return parser.parse_args()


def show(step: Step) -> None:
    """One line per decision."""
    widths = ", ".join(f"{name} {bits}" for name, bits in zip(step.widths.names, step.widths.bits, strict=True))
    mark = "kept" if step.accepted else "refused"
    print(
        f"  {step.step:3s} {widths}: {step.correct} of {step.needed} needed, {mark}, cost {step.cost:.3f}", flush=True
    )


def on_test(model: CapsNet, plan: QuantPlan, images: Tensor, labels: Tensor, batch_size: int) -> dict[str, Any]:
    """Float and quantized accuracy on the test split, and their paired difference."""
    evaluator = Evaluator(model, images, labels, batch_size=batch_size, cache_bytes=0)
    began = time.perf_counter()
    before, after = evaluator.float_result(), evaluator.evaluate(plan)
    return {
        "float": asdict(accuracy(before.correct, before.n)),
        "quantized": asdict(accuracy(after.correct, after.n)),
        "paired": asdict(paired(before.correct_images, after.correct_images)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Search, then test, then record."""
    args = arguments()
    model = load_model(args.model)
    splits = load_data(args.data, args.root, calibration_size=args.images)
    images, labels = splits.calibration.images, splits.calibration.labels
    float_bits = count_memory(model).total.weight_bits
    budget = args.budget_mb * 8e6 if args.compression is None else float_bits / args.compression
    rule = FormatRule(Exponents(args.exponents))
    roundings = SIMPLEST_FIRST if args.rounding == "all" else (Rounding(args.rounding),)
    request = Request(args.tolerance, budget, roundings=roundings, rule=rule)

    began = time.perf_counter()
    calibration = calibrate(model, images[:DEFAULT_IMAGES])
    calibrated = time.perf_counter()
    cache = int(args.cache_mb * 1e6)
    evaluator = Evaluator(model, images, labels, batch_size=args.batch_size, cache_bytes=cache, log_path=args.log)
    source = Tuner(model, calibration, images[:TUNING_IMAGES]) if args.tune else calibration
    bench = Workbench(evaluator, source, lambda plan: footprint(model, plan), show)
    result = search_qcapsnets(bench, request)
    searched = time.perf_counter()
    best = result.best
    print(f"{result.reason}\n  {best.memory}")
    print(f"  searched in {searched - calibrated:.0f} s, {result.record['cost']:.2f} passes")

    record = {
        "benchmark": "qcapsnets_search",
        "command": shlex.join(["python", "benchmarks/qcapsnets_search.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": torch.get_num_threads(), "system": platform.system(), "torch": torch.__version__},
        "settings": {
            "tolerance_points": args.tolerance,
            "budget_bits": budget,
            "rounding": args.rounding,
            "exponents": args.exponents,
            "tuned": args.tune,
            "calibration_images": len(images),
        },
        "seconds": {"calibration": round(calibrated - began, 1), "search": round(searched - calibrated, 1)},
        "full_passes": round(evaluator.spent, 3),
        "probes": evaluator.measured,
        "memory": count_memory(model, best.plan).to_json(),
        "on_calibration": asdict(paired(result.reference.correct_images, best.evaluation.correct_images)),
        "on_test": on_test(model, best.plan, splits.test.images, splits.test.labels, args.batch_size),
        "plan": best.plan.to_json(),
        "result": result.record,
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    shown = ("seconds", "full_passes", "on_calibration", "on_test", "peak_rss_gib")
    print(json.dumps({key: record[key] for key in shown}, indent=1))
    if not args.no_record:
        RECORDS.mkdir(exist_ok=True)
        path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-qcapsnets-{args.model.stem}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
