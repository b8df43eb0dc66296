"""Record what benchmarks/pretrained_trunk.sh left: capsules on a pretrained CNN, frozen, fine-tuned, pruned, quantized.

    python benchmarks/record_trunk.py ~/runs/lite0 lite0-64 --note "two threads, idle"

A row for each network: primary capsules, parameters, multiply-accumulates, seconds of training per epoch, memory, and
accuracy on the test split, as the paper of capsules on pruned CNNs (Renzulli and Grangetto 2022) has them; then the
integers of each. Reads the records of the run folders, which were written when each opened the test split, and looks at
no image itself; writes benchmarks/records/<date>-trunk-<name>.json.
"""

import argparse
import csv
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caplet.models.checkpoint import load_model
from caplet.models.cost import cost_of

RECORDS = Path(__file__).parent / "records"
SPLITS = ("train", "calibration", "test")
PROMISED = ("tolerance", "confidence", "kept", "expected")


def read(folder: Path, name: str) -> Any:
    """A JSON file of a run folder."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def per_epoch(path: Path) -> list[float]:
    """Seconds of each epoch of a training log."""
    with path.open(newline="") as stream:
        ends = [float(row["seconds"]) for row in csv.DictReader(stream) if row["kind"] == "epoch"]
    return [round(end - start, 1) for start, end in zip([0.0, *ends], ends, strict=False)]


def network(folder: Path) -> dict[str, Any]:
    """The row of one network."""
    metrics, model = read(folder, "metrics.json"), load_model(folder / "model.safetensors")
    primary = next(spec for key, spec in model.points().items() if key == "primary.activation")
    log, cost = folder / "train.csv", cost_of(model)
    pruned = metrics.get("pruned", metrics)
    return {
        "primary_capsules": primary.shape[0] * primary.shape[2] * primary.shape[3],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "float_bytes": {"weights": cost.bytes, "peak": cost.peak_bytes},
        "seconds_per_epoch": per_epoch(log if log.exists() else folder / "tune" / "train.csv"),
        "test": pruned["test"],
        "paired": metrics.get("paired"),
    }


def integers(folder: Path) -> dict[str, Any]:
    """What the quantized network of a run is."""
    metrics = read(folder, "metrics.json")
    model, promise = metrics["models"][0], metrics["promise"]
    names = ("weight_reduction", "activation_reduction", "output_reduction", "file_bytes", "test", "paired")
    found = {name: model[name] for name in names}
    return {"met": metrics["met"], **found, "promise": {name: promise.get(name) for name in PROMISED}}


def without_places(command: str, runs: Path) -> str:
    """A command without the folders of the machine it ran on."""
    return re.sub(r"/\S*/shared/", "../shared/", command).replace(str(runs.resolve()), "RUNS")


def main() -> None:
    """Read every run folder that is finished, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", default="", help="what else the machine did, ...")
    options = parser.parse_args()
    done = sorted(path.parent for path in options.folder.glob("*/metrics.json"))
    floats = [folder for folder in done if not folder.name.endswith("-integers")]
    splits = read(floats[0], "splits.json")
    environments = {folder.name: read(folder, "environment.json") for folder in done}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "note": options.note,
        "commands": {name: without_places(each["command"], options.folder) for name, each in environments.items()},
        "machine": {key: environments[done[0].name][key] for key in ("cores", "machine", "packages")},
        "data": {
            **{key: splits[key] for key in ("name", "note", "size")},
            **{split: {key: splits[split][key] for key in ("count", "sha256")} for split in SPLITS},
        },
        "networks": {folder.name: network(folder) for folder in floats},
        "integers": {
            folder.name.removesuffix("-integers"): integers(folder) for folder in done if folder not in floats
        },
    }
    path = RECORDS / f"{record['date']}-trunk-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path, *(f"{name} {each['test']['percent']:.2f} %" for name, each in record["networks"].items()))


if __name__ == "__main__":
    main()
