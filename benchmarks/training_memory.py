"""Memory of a training step: predicted without data, against what a process of its own took.

    python benchmarks/training_memory.py

Each row trains two steps and evaluates a batch of the same size in a new process, and takes the growth of its largest
resident size, with the weights, which were there before. Writes benchmarks/records/<date>-training-memory.json.
"""

import argparse
import json
import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from caplet.models.registry import named_model
from caplet.train import memory
from caplet.train.memory import go_through, keep_votes_of, step_memory
from caplet.train.settings import TrainSettings
from caplet.train.task import RecipeTask

RECORDS = Path(__file__).parent / "records"
ROWS = (
    "shallow 28 64 0 dense float32",
    "shallow 28 64 8 dense float32",
    "shallow 64 16 0 none float32",
    "shallow 96 8 0 none float32",
    "shallow 96 8 2 none float32",
    "deep 32 32 0 conv float32",
    "resnet18-caps 64 16 0 none float32",
)
"""Model, image side, batch, votes at once (0: all), decoder, precision."""


def resident() -> int:
    """Bytes, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: str, side: int, batch: int, at_once: int, decoder: str, precision: str) -> dict[str, float]:
    """Predicted and measured bytes; for a process of its own."""
    image = (named_model(model).config.image[0], side, side)
    values = {"epochs": 1, "model": model, "dataset": "none", "batch_size": batch, "decoder": decoder}
    values |= {"precision": precision, "overrides": {"image": image}, "initial_norm": None}
    task = RecipeTask(TrainSettings.of(values))
    memory.EVALUATED = batch
    predicted = step_memory(task, image, batch, at_once or None)
    keep_votes_of(task, at_once or None)
    there = sum(p.numel() * p.element_size() for net in (task.network, task.average) for p in net.parameters())
    before = resident()
    go_through(task, lambda count: torch.rand(count, *image).to(memory_format=torch.channels_last), batch)
    measured = resident() - before + there
    return {"predicted_bytes": predicted, "measured_bytes": measured, "predicted_over_measured": predicted / measured}


def main() -> None:
    """Measure each row in its own process, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", help="one row, measured in this process; default: all")
    words = parser.parse_args().row
    if words:
        model, side, batch, at_once, decoder, precision = words
        print(json.dumps(measure(model, int(side), int(batch), int(at_once), decoder, precision)))
        return
    rows = []
    for row in ROWS:
        done = subprocess.run([sys.executable, __file__, *row.split()], capture_output=True, text=True, check=True)
        rows.append({"row": row, **json.loads(done.stdout)})
        print(rows[-1], flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "columns": "model, image side, batch, votes at once (0: all), decoder, precision",
        "rows": rows,
    }
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-training-memory.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
