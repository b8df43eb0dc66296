"""``caplet sensitivity``: what each tensor's width alone costs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, FloatModel, ImageSize, RunOptions, console, note, print_json

if TYPE_CHECKING:
    from caplet.api import SensitivityResult


@with_options
def command(
    data: DataOptions,
    run: RunOptions,
    model: FloatModel,
    widths: Annotated[str, typer.Option("--widths", help="Widths in bits: a list such as 2,4,8 or a range.")] = "2-8",
    draws: Annotated[int, typer.Option("--draws", help="How many disjoint sets of calibration images.")] = 3,
    images: Annotated[
        int | None, typer.Option("--images", help="Images per draw. Default: 128, or fewer in a small split.")
    ] = None,
    rounding: Annotated[
        Literal["nearest", "truncate", "stochastic"],
        typer.Option("--rounding", help="How values between two codes are resolved."),
    ] = "nearest",
    seed: Annotated[int, typer.Option("--seed", help="Of the draws and of stochastic rounding.")] = 0,
    image_size: ImageSize = None,
) -> None:
    """Round one tensor at a time, everything else in float, at every width, on several draws of calibration images.

    Shows the signal-to-quantization-noise ratio at the tensor (dB) and at the class capsules (dB out), the change of
    the margin loss and of the accuracy (paired: images lost and won over all draws), and how many values saturate. The
    folder gets a table (metrics.json), a row per measurement (sensitivity.jsonl) and a plot (sensitivity.svg).

    Example: caplet sensitivity model.pt --data fashion-mnist --root ~/data --widths 2-8
    """
    from caplet.api import Rounding, SensitivitySettings, load_float, sensitivity
    from caplet.cli.output import bar, parse_widths

    tried = parse_widths(widths)
    loaded = load_float(model, image_size=image_size)
    splits = data.load(not run.quiet)
    share = max(1, min(128, len(splits.calibration) // max(draws, 1)))
    settings = SensitivitySettings(tried, draws, share if images is None else images, Rounding(rounding), seed=seed)
    folder = run.out or Path("runs") / f"{model.stem}-sensitivity"
    with bar(not run.quiet) as (_, measured):
        result = sensitivity(loaded, splits, folder, settings, resume=run.resume, force=run.force, progress=measured)
    if run.as_json:
        print_json(result.metrics)
    else:
        _show(result)
    note(f"plot: {result.folder / 'sensitivity.svg'}")


def _show(result: "SensitivityResult") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    settings = result.metrics["settings"]
    draws = f"{settings['draws']} draws of {settings['images']} calibration images"
    table = Table(
        title=f"One point at a time; {draws}, ± half their range", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in ("point", "bits", "dB", "dB out", "loss", "pp", "lost/won", "sat%"):
        table.add_column(heading, justify="left" if heading == "point" else "right", no_wrap=True)
    for summary in result.summaries:
        table.add_row(
            summary.key,
            str(summary.bits),
            _spread(summary.sqnr, ".0f"),
            _spread(summary.output_sqnr, ".0f"),
            _spread(summary.loss_change, ".3f"),
            f"{summary.accuracy_change.mean:.{2 if summary.accuracy_change.mean > -10 else 1}f}",
            f"{summary.n10}/{summary.n01}",
            f"{100 * summary.saturation.mean:.1f}",
        )
    console().print(table)


def _spread(spread: Any, form: str) -> str:
    if not math.isfinite(spread.high - spread.low):
        return f"{spread.mean:{form}}"
    return f"{spread.mean:{form}}±{(spread.high - spread.low) / 2:{form}}"
