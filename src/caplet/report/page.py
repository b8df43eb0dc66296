"""The report: one HTML page that needs nothing else, from the records of one or more runs."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from caplet.report.cards import card, verified_reason
from caplet.report.compression import pairs, speed, stages, tradeoff
from caplet.report.content import Section
from caplet.report.noise import noise, sensitivity
from caplet.report.predictions import changed, confusion
from caplet.report.pruning import activity, remaining, rounds
from caplet.report.search import front, search
from caplet.report.sweeps import network, pareto
from caplet.report.tensors import memory, widths
from caplet.report.training import by_epoch, by_step
from caplet.runs.finished import RunRecords
from caplet.runs.folder import ENVIRONMENT

Part = Callable[[RunRecords[Any]], Section | str]
"""From a run's records to a section, or to one sentence on why there is none."""
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


PARTS: dict[str, tuple[Part, ...]] = {
    "train": (by_epoch, provenance),
    "quantize": (widths, front, search, memory, confusion, changed, noise, provenance),
    "sensitivity": (sensitivity, provenance),
    "finetune": (by_epoch, provenance),
    "qat": (by_epoch, widths, memory, confusion, changed, noise, provenance),
    "prune": (rounds, by_step, remaining, activity, provenance),
    "trial": (network, by_epoch, provenance),
    "sweep": (pareto, widths, search, memory, confusion, changed, noise, provenance),
    "compress": (tradeoff, pairs, speed, widths, memory, confusion, changed, noise, stages, provenance),
}
"""What a page shows of a run, by its job, in order."""


def render(runs: Sequence[RunRecords[Any]], version: str) -> str:
    """The page as text: UTF-8 HTML with its style sheet, pictures and data inside; no script, no address outside.

    Args:
        runs: at least one, in the order in which they are shown.
        version: of the program that makes the page, for its last line.
    """
    environment = Environment(
        loader=PackageLoader("caplet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chapters = [_chapter(run) for run in runs]
    title = "caplet: " + ", ".join(run.name for run in runs)
    return environment.get_template("page.html.j2").render(chapters=chapters, title=title, version=version)


def _chapter(run: RunRecords[Any]) -> dict[str, Any]:
    """What the page shows of one run; ``missing`` says what it cannot show, and why."""
    found = [part(run) for part in PARTS[run.job]]
    missing = [verified_reason(run) if run.job == "quantize" else None, *found]
    return {
        "name": run.name,
        "kind": run.job,
        "card": card(run),
        "sections": [part for part in found if isinstance(part, Section)],
        "missing": [part for part in missing if isinstance(part, str)],
    }
