"""``caplet sensitivity``: what each tensor's width alone costs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caplet.cli.options import with_options
from caplet.cli.output import bar, note, print_json, show_table
from caplet.cli.shared import DataOptions, FloatModel, ImportOptions, RunOptions
from caplet.quant.choices import SensitivitySettings

if TYPE_CHECKING:
    from caplet.api import SensitivityResult


@with_options
def command(
    settings: SensitivitySettings,
    data: DataOptions,
    importing: ImportOptions,
    run: RunOptions,
    model: FloatModel,
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
    with bar(not run.quiet) as (_, measured):
        result = sensitivity(loaded, splits, folder, settings, resume=run.resume, force=run.force, progress=measured)
    if run.as_json:
        print_json(result.metrics)
    else:
        _show(result)
    note(f"plot: {result.folder / 'sensitivity.svg'}")


def _show(result: "SensitivityResult") -> None:
    settings = result.metrics["settings"]
    rows = [
        (
            summary.key,
            str(summary.bits),
            _spread(summary.sqnr, ".0f"),
            _spread(summary.output_sqnr, ".0f"),
            _spread(summary.loss_change, ".3f"),
            f"{summary.accuracy_change.mean:.{2 if summary.accuracy_change.mean > -10 else 1}f}",
            f"{summary.n10}/{summary.n01}",
            f"{100 * summary.saturation.mean:.1f}",
        )
        for summary in result.summaries
    ]
    draws = f"{settings['draws']} draws of {settings['images']} calibration images"
    headings = ("point", "bits", "dB", "dB out", "loss", "pp", "lost/won", "sat%")
    show_table(headings, rows, f"One point at a time; {draws}, ± half their range")


def _spread(spread: Any, form: str) -> str:
    if not math.isfinite(spread.high - spread.low):
        return f"{spread.mean:{form}}"
    return f"{spread.mean:{form}}±{(spread.high - spread.low) / 2:{form}}"
