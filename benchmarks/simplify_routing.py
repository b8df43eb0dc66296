"""What simpler routing alone does to float models: every trial of ``caplet quantize --simplify-routing``, paired.

    python benchmarks/simplify_routing.py ../shared/models/q7_mnist.h5 mnist --root ../shared/data

All choices are tried, each alone, also after one would be accepted. Calibration images only: the test split stays
closed. Writes benchmarks/records/<date>-simplify-routing-<name>.json.
"""

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from caplet.data import load_data
from caplet.jobs.run import float_predictions
from caplet.metrics import paired
from caplet.models.checkpoint import load_model
from caplet.models.cost import stage_macs
from caplet.quant.search.simplify_routing import COUPLING_IMAGES, choices, routed_layers, simplified

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Try, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, default=5000, help="calibration images")
    parser.add_argument("--name", help="of the record; default: the model's")
    options = parser.parse_args()
    model = load_model(options.model)
    split = load_data(options.data, options.root, calibration_size=options.images).calibration
    labels = split.labels.numpy()
    first = float_predictions(model, split) == labels
    rows = []
    for layer in routed_layers(model).values():
        for choice in choices(layer):
            began = time.perf_counter()
            candidate = simplified(
                model, choice, split.images[:: max(1, len(split) // COUPLING_IMAGES)][:COUPLING_IMAGES]
            )
            result = paired(first, float_predictions(candidate, split) == labels)
            rows.append(
                {
                    "choice": str(choice),
                    "paired": asdict(result),
                    "macs": sum(stage_macs(candidate)),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            print(choice, result, flush=True)
    record = {
        "command": shlex.join(["python", "benchmarks/simplify_routing.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "calibration_images": len(split),
        "float_correct": int(first.sum()),
        "macs": sum(stage_macs(model)),
        "trials": rows,
    }
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-simplify-routing-{options.name or options.model.stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
