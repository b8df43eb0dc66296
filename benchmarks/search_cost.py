"""What a search for widths costs, and what it finds: in full passes of the calibration images, and in seconds.

Only calibration images are used; the test split stays closed. The plan found is accepted by the integer Program on all
calibration images, like ``caplet quantize`` does.

    python benchmarks/search_cost.py shared/models/shallow_fmnist.pt fashion-mnist --root shared/data --budget-mb 5
    python benchmarks/search_cost.py ... --exact          # no kept stage outputs, no early decisions
    python benchmarks/search_cost.py ... --method progressive --granularity layer
    python benchmarks/search_cost.py ... --method ilp     # the record has the front, without its plans

1 MB is 1e6 bytes. Writes benchmarks/records/<date>-search-<method>-<model>[-exact].json; ``--log`` lets a killed run go
on.
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

import torch

from caplet.data import load_data
from caplet.jobs.quantize.accept import footprint
from caplet.jobs.quantize.job import CALIBRATION_IMAGES, describe_step, full_passes
from caplet.lower import lower
from caplet.metrics import paired
from caplet.models.checkpoint import load_model
from caplet.quant.choices import Granularity, Method
from caplet.quant.measure.early_decision import EarlyRule
from caplet.quant.measure.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import width_table
from caplet.quant.search.methods import METHODS
from caplet.quant.search.search import Request, Workbench
from caplet.runtime.engine import Engine, predictions

RECORDS = Path(__file__).parent / "records"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--method", choices=list(Method), default="qcapsnets")
    parser.add_argument("--granularity", choices=list(Granularity), default="layer")
    parser.add_argument("--tolerance", type=float, default=0.2, help="percentage points")
    parser.add_argument("--budget-mb", type=float, help="weight budget in 1e6 bytes")
    parser.add_argument("--images", type=int, default=5000, help="calibration images")
    parser.add_argument("--exact", action="store_true", help="no kept stage outputs, no early decisions")
    parser.add_argument("--log", type=Path, help="probe log, to resume a killed run")
    return parser.parse_args()


def main() -> None:
    """Search, accept, record."""
    args = arguments()
    model = load_model(args.model)
    split = load_data(args.data, args.root, calibration_size=args.images).calibration
    began = time.perf_counter()
    calibration = calibrate(model, split.evenly_spaced(CALIBRATION_IMAGES).images)
    tuner = Tuner(model, calibration, split.evenly_spaced(TUNING_IMAGES).images)
    evaluator = Evaluator(
        model,
        split.images,
        split.labels,
        cache_bytes=0 if args.exact else DEFAULT_CACHE_BYTES,
        log_path=args.log,
        early=None if args.exact else EarlyRule(),
    )
    bench = Workbench(
        evaluator, tuner, lambda plan: footprint(model, plan), lambda step: print(describe_step(step), flush=True)
    )
    request = Request(
        args.tolerance,
        weight_bits=None if args.budget_mb is None else 8e6 * args.budget_mb,
        granularity=Granularity(args.granularity),
    )
    found = METHODS.find(args.method).run(bench, request)
    searched = time.perf_counter()
    best = found.best
    predicted, engine = predictions(lower(model, best.plan), split.images.numpy(), Engine.AUTO)
    hits = predicted == split.labels.numpy()
    accepted = time.perf_counter()
    record = {
        "benchmark": "search_cost",
        "command": shlex.join(["python", "benchmarks/search_cost.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"threads": torch.get_num_threads(), "system": platform.system(), "torch": torch.__version__},
        "full_passes": {
            name: round(cost, 3) for name, cost in full_passes(evaluator, calibration.images, tuner, [found]).items()
        },
        "seconds": {"search": round(searched - began, 1), "integer_accept": round(accepted - searched, 1)},
        "probes": evaluator.measured,
        "met": found.met,
        "reason": found.reason,
        "needed": found.needed,
        "search_says": {"correct": best.evaluation.correct, "low": best.evaluation.low, "high": best.evaluation.high},
        "integers": {
            "engine": str(engine),
            "correct": int(hits.sum()),
            "accepted": int(hits.sum()) >= found.needed,
            "paired_with_float": asdict(paired(found.reference.correct_images, hits)),
        },
        "weight_reduction": best.memory.weight_reduction,
        "activation_reduction": best.memory.activation_reduction,
        "widths": width_table(model, best.plan),
        "plan": best.plan.digest(),
        "steps": [
            {
                key: step[key]
                for key in ("step", "about", "correct", "low", "high", "needed", "accepted", "seen", "cost")
            }
            for step in found.record["steps"]
        ],
        "front": [{key: value for key, value in row.items() if key != "plan"} for row in found.record.get("front", [])],
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps({key: value for key, value in record.items() if key != "steps"}, indent=1))
    name = f"{datetime.now(UTC):%Y-%m-%d}-search-{args.method}-{args.model.stem}{'-exact' if args.exact else ''}.json"
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORDS / name}")


if __name__ == "__main__":
    main()
