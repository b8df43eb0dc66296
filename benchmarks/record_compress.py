"""Record a finished compression: command, limits, what was reached, speed, the points it was chosen on, every stage.

    caplet compress MODEL --data fashion-mnist --root ../shared/data --max-drop 0.3 --out RUN
    python benchmarks/record_compress.py RUN shallow-fmnist

Reads ``metrics.json`` and ``environment.json`` of the run folder, and the widths of the stage that the network comes
from, and looks at no image itself. Writes benchmarks/records/<date>-compress-<name>.json.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def read(folder: Path, name: str) -> Any:
    """A JSON file of a run folder."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def minutes(folder: Path, metrics: dict[str, Any]) -> float:
    """Of all stages, the measured points among them; of a run that was interrupted all its parts."""
    stages = [*read(folder, "stages").values(), *read(folder / "curves", "stages").values()]
    used = {stage["folder"] for stage in metrics["stages"].values()}
    assert used <= set(read(folder, "stages")), "a stage that the metrics name has no record"
    return round(sum(float(stage["seconds"]) for stage in stages) / 60, 1)


def main() -> None:
    """Parse, pick the figures, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--note", default="", help="what else the machine did, ...")
    options = parser.parse_args()
    metrics, environment = read(options.folder, "metrics"), read(options.folder, "environment")
    model = read(options.folder / metrics["folders"][-1], "metrics")["models"][0]
    record = {
        "command": re.sub(r"--out \S+", "--out RUN", environment["command"]),
        "date": environment["started"][:10],
        "machine": {key: environment[key] for key in ("cores", "machine", "packages")},
        "note": options.note,
        "minutes_of_all_stages": minutes(options.folder, metrics),
        "widths": model["widths"],
        **metrics,
    }
    path = RECORDS / f"{record['date']}-compress-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    times = {side: round(rate["times"], 1) for side, rate in metrics["speed"]["sides"].items()}
    print(
        f"{path}: {metrics['compressed']['times_smaller']:.1f}x smaller, speed {times}", metrics["compressed"]["paired"]
    )


if __name__ == "__main__":
    main()
