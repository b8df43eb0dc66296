"""Put a trained network into the package, and record what it is worth: its float file first, then its integers.

    caplet train --recipe small-mnist --root ../shared/data --out ~/runs/mnist
    python benchmarks/record_trained.py float mnist ~/runs/mnist
    caplet quantize trained:mnist.safetensors --data mnist --root ../shared/data --tolerance 0.2 --out ~/runs/mnist-q
    caplet train --recipe small-mnist --model cnn-like:small-28 --root ../shared/data --out ~/runs/cnn
    python benchmarks/record_trained.py integers mnist ~/runs/mnist --quantized ~/runs/mnist-q --cnn ~/runs/cnn
    python benchmarks/record_trained.py cnn fashion-mnist ~/runs/cnn-fashion

``float`` rounds the checkpoint to 16 bits and writes src/caplet/models/trained/NAME.safetensors. ``integers`` copies
the result of `caplet quantize` beside it, measures both once on the test split, and writes their row in index.json and
benchmarks/records/<date>-trained-NAME.json with the curve. ``cnn`` adds a CNN that was trained later to both. Nothing
is chosen here: the test split comes last.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from record_recipe import RECORDS, history

from caplet.api import evaluate, find_program, load, load_data, load_float, save_model
from caplet.files import digest
from caplet.jobs.trained import FOLDER, ShippedNetwork
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of
from caplet.nn.conv import ConvNorm

INDEX = FOLDER / "index.json"


def write_float(name: str, run: Path) -> None:
    """Store a run's checkpoint in 16 bits."""
    model = load_float(run / "model.safetensors")
    kept = {key: model.notes[key] for key in ("recipe", "epoch", "classes", "data") if key in model.notes}
    save_model(model.half(), FOLDER / f"{name}.safetensors", kept)


def write_integers(name: str, run: Path, quantized: Path, cnn: Path | None, root: str | None, note: str) -> None:
    """Copy the integers, measure both files, and a CNN, on the test split; write the row and the record."""
    shutil.copyfile(find_program(quantized), FOLDER / f"{name}.caplet")
    trained = json.loads((run / "settings.json").read_text())
    settings = json.loads((quantized / "settings.json").read_text())
    model, program = load_float(FOLDER / f"{name}.safetensors"), load(FOLDER / f"{name}.caplet")
    splits = load_data(trained["dataset"], root, calibration_size=trained["calibration_size"])
    in_float, in_integers = (evaluate(each, splits.test).accuracy for each in (model, program))
    plain = None if cnn is None else load_float(cnn / "model.safetensors")
    of_cnn = None if plain is None else evaluate(plain, splits.test).accuracy
    today = datetime.now(UTC).date().isoformat()
    record = f"{today}-trained-{name}.json"
    cost = cost_of(model)
    row = ShippedNetwork(
        name, trained["dataset"], trained["recipe"], cost.parameters, cost.macs, in_integers, in_float, of_cnn, record
    )
    rows: list[dict[str, Any]] = json.loads(INDEX.read_text()) if INDEX.exists() else []
    rows = [*(other for other in rows if other["name"] != name), asdict(row)]
    INDEX.write_text(json.dumps(rows, indent=1) + "\n")
    curve = history(run / "train.csv")
    files = {f"{name}{ending}": FOLDER / f"{name}{ending}" for ending in (".caplet", ".safetensors")}
    found = {
        "date": today,
        "commands": [
            f"caplet train --recipe {row.recipe} --root ROOT --out RUN",
            f"python benchmarks/record_trained.py float {name} RUN",
            f"caplet quantize trained:{name}.safetensors --data {row.data} --root ROOT"
            f" --tolerance {settings['tolerance']} --accept {settings['accept']} --out QUANTIZED",
            f"python benchmarks/record_trained.py integers {name} RUN --quantized QUANTIZED --root ROOT",
        ],
        "train": {key: value for key, value in trained.items() if key != "data"},
        "quantize": {key: settings[key] for key in settings if key not in ("data", "weights")},
        "data": {key: splits.info[key] for key in ("name", "note", "sizes", "hashes")},
        "network": asdict(row),
        "cnn": None if plain is None else _about(plain),
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "sha256": {name: digest(file.read_bytes()) for name, file in files.items()},
        "calibration_accuracy": max(epoch["calibration_accuracy"] for epoch in curve),
        "minutes": round(curve[-1]["seconds"] / 60, 1),
        "note": note,
        "history": curve,
    }
    (RECORDS / record).write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {in_integers} in integers, {in_float} in float, {found['bytes']} bytes")


def add_cnn(name: str, run: Path, root: str | None) -> None:
    """Measure a CNN of the network's size, and put it into the row and the record that are there."""
    plain = load_float(run / "model.safetensors")
    rows: list[dict[str, Any]] = json.loads(INDEX.read_text())
    row = next(row for row in rows if row["name"] == name)
    trained = json.loads((run / "settings.json").read_text())
    if (trained["recipe"], trained["dataset"]) != (row["recipe"], row["data"]):
        raise SystemExit(f"{run} was trained by {trained['recipe']} on {trained['dataset']}: not what {name} was")
    splits = load_data(trained["dataset"], root, calibration_size=trained["calibration_size"])
    row["cnn_test"] = asdict(evaluate(plain, splits.test).accuracy)
    path = RECORDS / row["record"]
    found = json.loads(path.read_text())
    commands = [
        f"caplet train --recipe {row['recipe']} --model {trained['model']} --root ROOT --out CNN",
        f"python benchmarks/record_trained.py cnn {name} CNN --root ROOT",
    ]
    found |= {"network": row, "cnn": _about(plain), "commands": [*found["commands"], *commands]}
    path.write_text(json.dumps(found, indent=1) + "\n")
    INDEX.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{name}: CNN {row['cnn_test']}")


def _about(cnn: CapsNet) -> dict[str, Any]:
    """Parameters, MACs, and channels and stride of every convolution."""
    cost = cost_of(cnn)
    convs = [(layer.out_shape[0], layer.stride) for layer in cnn.layers() if isinstance(layer, ConvNorm)]
    return {"parameters": cost.parameters, "macs": cost.macs, "channels and stride": convs}


def main() -> None:
    """Parse, and do one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("float", "integers", "cnn"))
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("--quantized", type=Path)
    parser.add_argument("--cnn", type=Path, help="run folder of a plain CNN of its size, trained by the same recipe")
    parser.add_argument("--root")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if options.step == "float":
        write_float(options.name, options.run)
    elif options.step == "cnn":
        add_cnn(options.name, options.run, options.root)
    else:
        write_integers(options.name, options.run, options.quantized, options.cnn, options.root, options.note)


if __name__ == "__main__":
    main()
