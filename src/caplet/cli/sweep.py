"""``caplet sweep``: which small capsule network, for these images and limits."""

import shlex
from pathlib import Path
from typing import Annotated, Any

from caplet.cli.options import with_options
from caplet.cli.output import console, going_on, percent, print_json
from caplet.cli.shared import Changes, DataOptions, Limit, RunOptions
from caplet.errors import TargetNotMet
from caplet.jobs.sweep.settings import SweepSettings


@with_options
def command(
    given: Annotated[dict[str, Any], SweepSettings],
    data: DataOptions,
    run: RunOptions,
    set_: Changes = None,
    limit: Limit = None,
) -> None:
    """Find a small capsule network for your images and your chip, where there is no network yet.

    Draws networks, leaves out those that cannot fit, trains the others for a short time, stops weak ones early, trains
    a few of the best in full, and quantizes the winner. Calibration images decide; the test split is opened once, for
    the winner. A page shows accuracy against flash, RAM and work. Needs a package: pip install 'caplet\\[sweep]'.

    It finds the most accurate network within the limits; with --min-accuracy or --max-drop, the smallest one that does.
    After Ctrl-C, or for more --trials, the same command with --resume goes on. The same command once more, in another
    terminal or on another machine that shares the folder --out, joins in. Exit code 5: nothing keeps to all limits.

    Example: caplet sweep --data ~/my-images --flash 64KB --ram 32KB --min-accuracy 95 --out runs/sweep
    """
    from caplet.api import parse_changes, sweep

    settings = SweepSettings.of({**given, "train": parse_changes(set_ or [])})
    folder = run.out or Path("runs") / f"{Path(data.data).name}-sweep"
    with going_on(tells=True):
        splits = data.load(not run.quiet, limit)
        metrics = sweep(splits, folder, settings, resume=run.resume, force=run.force, note=run.note)
    if run.as_json:
        print_json({**metrics, "folder": str(folder)})
    else:
        model, sizes = metrics["models"][0], {name: f"{row['found']:,}" for name, row in metrics["limits"].items()}
        console().print(
            f"test accuracy {percent(model['test'])} %, on calibration images {percent(model['calibration'])} %"
        )
        console().print("{flash} bytes of flash, {ram} of RAM, {macs} multiply-accumulates".format(**sizes))
        console().print(f"{folder / model['file']}; all networks: {folder / 'report.html'}")
        run.note(f"firmware: caplet export {shlex.quote(str(folder))} --ram {metrics['plan']} --out FOLDER")
    if not metrics["met"]:
        give = "; ".join(metrics["outlook"]) or metrics["reason"]
        raise TargetNotMet(f"no network keeps to all limits; the best is in {folder}; what would have to give: {give}")
