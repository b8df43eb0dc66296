"""Record a finished quantization run: command, plan, accuracies on both splits, routing trials, what the search cost.

    caplet quantize ../shared/models/q7_mnist.h5 --data mnist --root ../shared/data --method qcapsnets --out RUN
    python benchmarks/record_quantize.py RUN q7-mnist

Reads ``metrics.json``, ``environment.json``, ``search.json`` and, where it is, ``simplified.json`` of the run folder,
which were written when the test split was opened, and looks at no image itself. Writes
benchmarks/records/<date>-quantize-<name>.json.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def read(folder: Path, name: str) -> Any:
    """A JSON file of the run folder; None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    """Parse, pick the figures, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", default="", help="what else the machine did, ...")
    options = parser.parse_args()
    metrics, environment, search = (read(options.folder, name) for name in ("metrics", "environment", "search"))
    simplified = read(options.folder, "simplified")
    record = {
        "command": re.sub(r"--out \S+", "--out RUN", environment["command"]),
        "date": environment["started"][:10],
        "machine": {key: environment[key] for key in ("cores", "machine", "packages")},
        "note": options.note,
        **metrics,
        "full_passes": search["full_passes"],
        **({} if simplified is None else {"routing": simplified["trials"]}),
    }
    path = RECORDS / f"{record['date']}-quantize-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for model in metrics["models"]:
        print(f"{path}: W {model['weight_reduction']:.2f}x, A {model['activation_reduction']:.2f}x", model["paired"])


if __name__ == "__main__":
    main()
