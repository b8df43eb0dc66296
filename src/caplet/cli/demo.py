"""``caplet demo``: the whole main job on data that comes with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.output import Json, Quiet, note, print_json


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the two runs.")] = Path("runs/demo"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the folder.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a small capsule net on 8x8 digits, quantize it, and compare. Needs no data and about a minute."""
    from caplet.api import QuantizeSettings, load_data, quantize, train_model
    from caplet.cli.progress import bar
    from caplet.cli.verdict import show_quantized
    from caplet.errors import TargetNotMet

    note("1/2 training a small capsule network on scikit-learn's digits")
    trained = train_model("digits", out / "train", force=force, progress=not quiet)
    note(f"float test accuracy {trained.test}")
    note("2/2 quantizing it by the Q-CapsNets method: at most 0.7 percentage points of loss")
    with bar(not quiet) as (step, measured):
        result = quantize(
            trained.model,
            load_data("digits"),
            out / "quantize",
            QuantizeSettings(tolerance=0.7),
            force=force,
            note=step,
            progress=measured,
        )
    if json:
        print_json({"train": trained.metrics, "quantize": result.metrics})
    else:
        show_quantized(result)
    if not result.met:
        raise TargetNotMet(f"{result.search.reason}; the best models found are in {result.folder}")
