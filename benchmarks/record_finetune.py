"""Record a finished fine-tuning run, under a plan or in float: command, sizes, accuracies, time.

    caplet finetune ../shared/models/shallow_fmnist.pt --data fashion-mnist --root ../shared/data \\
        --widths conv1=4/5,primary=2/5,digit=3/5/6 --steps 850 --set batch_size=64 --set lr=1e-3 \\
        --set lr_multipliers.primary=0.1 --set precision=bfloat16 --set distill_lengths=0 --set threads=1 \\
        --out ~/runs/qat
    python benchmarks/record_finetune.py ~/runs/qat shallow-fashion-mnist

Reads ``metrics.json``, ``settings.json`` and ``environment.json`` of the run folder, which were written when the test
split was opened, and looks at no image itself; writes benchmarks/records/<date>-finetune-<name>.json.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def read(folder: Path, name: str) -> Any:
    """A JSON file of the run folder."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def main() -> None:
    """Parse, pick the figures, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", default="", help="what else the machine did, ...")
    options = parser.parse_args()
    metrics, settings, environment = (
        read(options.folder, f"{name}.json") for name in ("metrics", "settings", "environment")
    )
    model = metrics["models"][0] if "models" in metrics else {key: metrics[key] for key in ("test", "paired")}
    steps, batch = metrics["finetune"]["steps"], settings["batch_size"]
    record = {
        "command": re.sub(r"--out \S+", "--out RUN", environment["command"]),
        "started": environment["started"],
        "machine": {key: environment[key] for key in ("cores", "machine", "packages")},
        "note": options.note,
        "images_trained_on": steps * batch,
        "steps": steps,
        "seconds": metrics["finetune"]["seconds"],
        "images_per_second": metrics["finetune"]["images_per_second"],
        "float_test": metrics["float"]["test"],
        "calibration_accuracy": metrics["finetune"]["calibration_accuracy"],
        "alarms": metrics.get("alarms", []),
        **{key: value for key, value in model.items() if key != "memory"},
    }
    path = RECORDS / f"{environment['started'][:10]}-finetune-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path, *(f"{key} {model[key]:.2f}x" for key in ("weight_reduction", "activation_reduction") if key in model))


if __name__ == "__main__":
    main()
