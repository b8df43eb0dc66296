"""A CNN under capsules, the whole way: train, prune to shares of the MACs, fine-tune, quantize, lower, verify.

    python benchmarks/backbone_path.py --root ../shared/data/cifar10-jpeg.tar.xz --out ~/runs/backbone

ResNet-18 with capsules on a subset of CIFAR-10 at 32x32 (2,000 training images by default), one thread. Candidates are
compared at 75, 50 and 25 % of the multiply-accumulates; the 25 % network is fine-tuned, quantized by the Q-CapsNets
search and run as integers. Needs torch-pruning (``pip install 'caplet[pruning]'``). Writes
benchmarks/records/<date>-backbone-<model>.json.
"""

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caplet
from caplet.data.imageset import to_float
from caplet.jobs.prune.backbone import prune_backbone_model
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.cost import cost_of
from caplet.prune.backbone import prune_backbone
from caplet.prune.choices import BackbonePruneSettings
from caplet.train.loss import margin_loss
from caplet.train.settings import FinetuneSettings

RECORDS = Path(__file__).parent / "records"
SHARES = (0.75, 0.5, 0.25)
CALIBRATION = 600


def images_per_second(models: list[CapsNet], images: torch.Tensor, rounds: int = 5) -> list[float]:
    """Forward passes of batches of 50 on one thread, the models in turn; the median of the rounds."""
    batch = to_float(images[:50])
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for model, times in zip(models, seconds, strict=True):
                began = time.perf_counter()
                model(batch)
                times.append(time.perf_counter() - began)
    return [round(len(batch) / float(np.median(times[1:])), 1) for times in seconds]


def main() -> None:
    """Parse, run all steps, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet18-caps")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tuning-epochs", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def done(step: str) -> None:
        nonlocal began
        seconds[step] = round(time.perf_counter() - began, 1)
        print(f"{step}: {seconds[step]} s", flush=True)
        began = time.perf_counter()

    splits = caplet.load_data("cifar10", options.root, calibration_size=CALIBRATION, limit=options.limit)
    done("load")
    changes = {"model": options.model, "epochs": options.epochs, "calibration_size": CALIBRATION, "threads": 1}
    trained = caplet.train_model(
        "backbone-cifar10",
        options.out / "train",
        root=options.root,
        changes=changes,
        limit=options.limit,
        resume=True,
        progress=False,
    )
    model = trained.model
    done("train")
    whole = cost_of(model)
    table: list[dict[str, Any]] = []
    for share in SHARES:
        settings = BackbonePruneSettings(macs=share, candidates=options.candidates)
        found = prune_backbone(model, splits.train, splits.calibration, settings, margin_loss)
        cost = cost_of(found.model)
        table.append(
            {
                "macs_target": share,
                "macs_kept": cost.macs / whole.macs,
                "parameters_kept": cost.parameters / whole.parameters,
                "primary_types": found.model.config.model_dump()["primary_types"],
                "best": found.best.to_json(),
                "refitted": None if found.refitted is None else asdict(found.refitted),
                "uniform": found.candidates[0].to_json(),
                "calibration_correct": [candidate.accuracy.correct for candidate in found.candidates],
            }
        )
    done("candidates")
    pruned = prune_backbone_model(
        model,
        splits,
        options.out / "prune",
        BackbonePruneSettings(macs=SHARES[-1], candidates=options.candidates),
        FinetuneSettings(epochs=options.tuning_epochs, lr=1e-3, batch_size=32, shift=3, flip=True, ema=0.99, threads=1),
        resume=True,
    )
    done("prune and fine-tune")
    speed = images_per_second([model, pruned.model], splits.test.images)
    done("speed")
    quantized = caplet.quantize(
        load_model(pruned.path),
        splits,
        options.out / "quantize",
        caplet.QuantizeSettings.of({"method": "qcapsnets", "accept": "measured", "tolerance": options.tolerance}),
        resume=True,
    )
    result = quantized.models[0]
    done("quantize")
    program = caplet.api.load_program(result.path)
    verified = caplet.verify_engines(program, splits.test.images[:100].numpy(), ("interpreter", "native"))
    done("verify")
    today = datetime.now(UTC).date().isoformat()
    record = {
        "date": today,
        "command": shlex.join(["python", "benchmarks/backbone_path.py", *sys.argv[1:]]),
        "data": {key: splits.info[key] for key in ("name", "note", "sizes", "hashes")},
        "model": options.model,
        "threads": 1,
        "cores": os.cpu_count(),
        "torch_pruning": version("torch-pruning"),
        "seconds": seconds,
        "trained": {"test": asdict(trained.test), "cost": _totals(whole.to_json()), "epochs": options.epochs},
        "candidates": table,
        "pruned": {
            "test": asdict(pruned.test),
            "against_trained": asdict(pruned.against),
            "cost": _totals(cost_of(pruned.model).to_json()),
            "macs_kept": pruned.metrics["macs_kept"],
            "parameters_kept": pruned.metrics["parameters_kept"],
            "primary_types": [model.config.model_dump()["primary_types"] for model in (model, pruned.model)],
        },
        "float_images_per_second": dict(zip(("trained", "pruned"), speed, strict=True)),
        "quantized": {
            "tolerance": options.tolerance,
            "met": quantized.met,
            "test": asdict(result.test),
            "file_bytes": result.path.stat().st_size,
            "flash_bytes": program.flash_bytes,
            "ops": sorted({op.kind for op in program.ops}),
        },
        "verified": [
            {"engine": row.target, "images": row.images, "codes": row.codes, "differing": row.differing}
            for row in verified
        ],
    }
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{today}-backbone-{options.model}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("seconds", "verified", "float_images_per_second")}, indent=1))


def _totals(cost: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cost.items() if key != "layers"}


if __name__ == "__main__":
    main()
