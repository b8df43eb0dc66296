"""Where the numbers come from: command, versions, machine, seeds, data."""

import json
from typing import Any

from caplet.report.content import Section
from caplet.runs.folder import ENVIRONMENT, SPLITS
from caplet.runs.records import RunKind, RunRecords

_LONGEST = 300


def provenance(run: RunRecords) -> Section | str:
    """How to get these numbers again."""
    environment, splits = run.find(ENVIRONMENT), run.find(SPLITS)
    if environment is None:
        return f"Provenance: the run has no {ENVIRONMENT}."
    rows = [
        ("Command", environment["command"]),
        ("Started", environment["started"]),
        ("Machine", f"{environment['system']} {environment['machine']}, {environment['cores']} cores"),
        ("Python", environment["python"]),
        ("Packages", ", ".join(f"{name} {text or 'absent'}" for name, text in environment["packages"].items())),
    ]
    if splits is not None:
        rows.append(("Data", splits["name"] + (f" ({splits['note']})" if splits.get("note") else "")))
        for split in ("train", "calibration", "test"):
            found = splits[split]
            rows.append((f"{split.capitalize()} split", f"{found['count']:,} images, SHA-256 {found['sha256']}"))
    details = run.details if "models" in run.metrics or run.kind is RunKind.COMPRESS else None
    if details is not None:
        rows.append(("Model file", f"SHA-256 {details['sha256']}"))
    if "seed" in run.settings:
        rows.append(("Seed", _text(run.settings["seed"])))
    settings = tuple((name, _text(value)) for name, value in sorted(run.settings.items()) if name != "data_hashes")
    text = "Equal command, versions and data give equal files."
    return Section("Provenance", text, rows=tuple(rows), folded=("All settings", settings))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
