"""Record a finished recipe run: curves, time, the checkpoint's hash, and its accuracy on the test split.

    caplet train --recipe deepcaps-cifar10 --root ../shared/data/cifar10-jpeg.tar.xz --out ~/runs/deepcaps
    python benchmarks/record_recipe.py ~/runs/deepcaps deepcaps-cifar10 --root ../shared/data/cifar10-jpeg.tar.xz

Reads ``train.csv`` and ``model.safetensors`` of the folder; writes benchmarks/records/<date>-recipe-<name>.json and
.svg. Seconds are those that the training loop counted, on whatever else the machine did at the time (``--note``).
"""

import argparse
import csv
import hashlib
import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import caplet
from caplet.report.training import learning_curves
from caplet.train.settings import load_recipe

RECORDS = Path(__file__).parent / "records"


def history(path: Path) -> list[dict[str, Any]]:
    """The epoch rows of a training log, numbers as numbers."""
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "epoch"]
    return [{key: float(value) for key, value in row.items() if key != "kind" and value} for row in rows]


def main() -> None:
    """Parse, measure the test split once, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--root", required=True)
    parser.add_argument("--note", default="", help="what else the machine did, threads, ...")
    options = parser.parse_args()
    settings = load_recipe(options.recipe)
    file = options.folder / "model.safetensors"
    splits = caplet.load_data(settings.dataset, options.root, calibration_size=settings.calibration_size)
    test = caplet.evaluate(caplet.load(file), splits.test).accuracy
    rows = history(options.folder / "train.csv")
    today = datetime.now(UTC).date().isoformat()
    record = {
        "date": today,
        "command": shlex.join(["python", "benchmarks/record_recipe.py", *sys.argv[1:]]),
        "recipe": options.recipe,
        "settings": settings.model_dump(mode="json"),
        "data": {key: splits.info[key] for key in ("name", "note", "sizes", "hashes")},
        "test": asdict(test),
        "calibration_accuracy": max(row["calibration_accuracy"] for row in rows),
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "images_per_second": [round(row["images_per_second"], 1) for row in rows],
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "cores": os.cpu_count(),
        "note": options.note,
        "history": rows,
    }
    RECORDS.mkdir(exist_ok=True)
    name = f"{today}-recipe-{options.recipe}"
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RECORDS / f"{name}.svg").write_bytes(learning_curves(rows, f"{options.recipe}: {test}"))
    print(f"{options.recipe}: test {test}, {record['minutes']} minutes")


if __name__ == "__main__":
    main()
