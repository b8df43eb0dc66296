"""Where the numbers come from: command, versions, machine, seeds, data."""

import json
from typing import Any

from caplet.report.content import Section
from caplet.runs.finished import RunRecords
from caplet.runs.folder import ENVIRONMENT

_LONGEST = 300


def provenance(run: RunRecords[Any]) -> Section | str:
    """How to get these numbers again."""
    environment, splits = run.environment, run.splits
    if environment is None:
        return f"Provenance: the run has no {ENVIRONMENT}."
    rows = [
        ("Command", environment.command),
        ("Started", environment.started),
        ("Machine", f"{environment.system} {environment.machine}, {environment.cores} cores"),
        ("Python", environment.python),
        ("Packages", ", ".join(f"{name} {text or 'absent'}" for name, text in environment.packages.items())),
    ]
    if splits is not None:
        rows.append(("Data", splits.name + (f" ({splits.note})" if splits.note else "")))
        for name, found in (("Train", splits.train), ("Calibration", splits.calibration), ("Test", splits.test)):
            rows.append((f"{name} split", f"{found['count']:,} images, SHA-256 {found['sha256']}"))
    if run.details is not None:
        rows.append(("Model file", f"SHA-256 {run.details.sha256}"))
    if "seed" in run.settings:
        rows.append(("Seed", _text(run.settings["seed"])))
    settings = tuple((name, _text(value)) for name, value in sorted(run.settings.items()) if name != "data_hashes")
    text = "Equal command, versions and data give equal files."
    return Section("Provenance", text, rows=tuple(rows), folded=("All settings", settings))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
