"""``caplet demo``: the whole way on data that comes with scikit-learn."""

from pathlib import Path

from caplet.cli.options import with_options
from caplet.cli.output import RunOptions, note, print_json

SETTINGS = {
    "recipe": "demo",
    "calibration_size": 300,
    "limits": {"max_drop": 0.4},
    "prune": {"probes": [0.5, 0.35]},
}


@with_options
def command(
    run: RunOptions,
) -> None:
    """Train a capsule net on 8x8 digits and compress it. Needs no data and a minute or two.

    It is `caplet compress` with a recipe: prune, fine-tune, quantize, write firmware, compare the integers of every
    engine, and report.
    """
    from caplet.api import compress_by_settings, compress_settings
    from caplet.cli.output import bar
    from caplet.cli.verdict import show_compressed
    from caplet.errors import TargetNotMet

    note("training a small capsule network on scikit-learn's digits, then making it smaller")
    with bar(not run.quiet) as (step, measured):
        result = compress_by_settings(
            compress_settings(None, SETTINGS),
            run.out or Path("runs/demo"),
            resume=run.resume,
            force=run.force,
            note=step,
            progress=measured,
        )
    if run.as_json:
        print_json({**result.metrics, "folder": str(result.folder)})
    else:
        show_compressed(result)
    if not result.met:
        raise TargetNotMet(f"no network was found within the limits; the nearest one is in {result.folder}")
