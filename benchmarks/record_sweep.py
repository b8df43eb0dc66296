"""Record a finished sweep: command, limits, the winner's figures, and every network that was made.

    caplet sweep --data digits --flash 20652 --minutes 20 --out RUN
    python benchmarks/record_sweep.py RUN digits

Reads ``metrics.json`` and ``environment.json`` of the run folder and looks at no image itself. Writes
benchmarks/records/<date>-sweep-<name>.json. ``seconds`` are the sum of all networks', by the clock.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
KEPT = ("data", "data_note", "float", "front", "limits", "met", "models", "plan", "promise", "reason", "winner")


def main() -> None:
    """Parse, pick the figures, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", default="", help="how many processes, what else the machine did, ...")
    options = parser.parse_args()
    metrics, environment = (
        json.loads((options.folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("metrics", "environment")
    )
    networks: list[dict[str, Any]] = metrics["networks"]
    made = [{key: value for key, value in each.items() if key != "history"} for each in networks if each["accuracy"]]
    command = re.sub(r"--out \S+", "--out RUN", environment["command"])
    record = {
        "command": re.sub(r"--root \S+", "--root DATA", command),
        "date": environment["started"][:10],
        "machine": {key: environment[key] for key in ("cores", "machine", "packages")},
        "note": options.note,
        "seconds": round(sum(each["seconds"] for each in networks)),
        "states": Counter(each["state"] for each in networks),
        **{key: metrics[key] for key in KEPT},
        "networks": [each for each in made if each["state"] in ("made", "full")],
    }
    path = RECORDS / f"{record['date']}-sweep-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path, record["seconds"], dict(record["states"]), metrics["models"][0]["test"], metrics["limits"])


if __name__ == "__main__":
    main()
