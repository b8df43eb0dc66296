"""``caplet sensitivity``: what each tensor's width alone costs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caplet.cli.options import with_options
from caplet.cli.output import bar, note, print_json, show_table
from caplet.cli.shared import DataOptions, Device, FloatModel, ImportOptions, RunOptions
from caplet.quant.choices import SensitivitySettings
from caplet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from caplet.api import SensitivityResult


@with_options
def command(
    settings: SensitivitySettings,
    data: DataOptions,
    importing: ImportOptions,
    run: RunOptions,
    workers: WorkerSettings,
    model: FloatModel,
    device: Device = "auto",
) -> None:
    """Round one tensor at a time, everything else in float, at every width, on several draws of calibration images.

    Shows the signal-to-quantization-noise ratio at the tensor (dB) and at the class capsules (dB out), the change of
    the margin loss and of the accuracy (paired: images lost and won over all draws), and how many values saturate. The
    folder gets a table (metrics.json), a row per measurement (sensitivity.jsonl) and a plot (sensitivity.svg).

    Example: caplet sensitivity model.pt --data fashion-mnist --root ~/data --widths 2-8
    """
    from caplet.api import sensitivity

    loaded = importing.load_float(model)
    splits = data.load(not run.quiet, None, loaded)
    folder = run.out or Path("runs") / f"{model.stem}-sensitivity"
    with bar(not run.quiet) as (note_, measured):
        how: dict[str, Any] = {**run.begun, "workers": workers, "device": device}
        result = sensitivity(loaded, splits, folder, settings, **how, progress=measured, note=note_)
    if run.as_json:
        print_json(result.metrics)
    else:
        _show(result)
    note(f"plot: {result.folder / 'sensitivity.svg'}")


def _show(result: "SensitivityResult") -> None:
    settings = result.metrics["settings"]
    rows = [
        (
            row["point"],
            str(row["bits"]),
            _spread(row["sqnr"], ".0f"),
            _spread(row["output_sqnr"], ".0f"),
            _spread(row["loss_change"], ".3f"),
            f"{row['accuracy_change']['mean']:.{2 if row['accuracy_change']['mean'] > -10 else 1}f}",
            f"{row['n10']}/{row['n01']}",
            f"{100 * row['saturation']['mean']:.1f}",
        )
        for row in result.metrics["points"]
    ]
    draws = f"{settings['draws']} draws of {settings['images']} calibration images"
    headings = ("point", "bits", "dB", "dB out", "loss", "pp", "lost/won", "sat%")
    show_table(headings, rows, f"One point at a time; {draws}, ± half their range")


def _spread(values: dict[str, float | None], form: str) -> str:
    mean, low, high = (math.inf if value is None else value for value in values.values())
    return f"{mean:{form}}" + (f"±{(high - low) / 2:{form}}" if math.isfinite(high - low) else "")
