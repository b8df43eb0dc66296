"""``caplet prune``: make a trained model physically smaller."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.cli.options import Given, with_options
from caplet.cli.output import DataOptions, FloatModel, ImageSize, RunOptions, console, note, print_json
from caplet.jobs.prune.settings import PruneSettings

if TYPE_CHECKING:
    from caplet.api import PruneResult


@with_options
def command(
    model: FloatModel,
    given: Annotated[dict[str, Any], Given(PruneSettings)],
    data: DataOptions,
    run: RunOptions,
    curves: Annotated[
        bool, typer.Option("--curves", help="Only analyse: accuracy against what is kept, for every score.")
    ] = False,
    image_size: ImageSize = None,
) -> None:
    """Remove channels, capsule types or single capsules, and fine-tune what is left.

    The result is an ordinary, smaller model: quantize, export and train it as any other. Scores and decisions see the
    calibration split, cut from the training images; the test split is opened once, at the end. Exit code 5 means that
    no trial kept within --max-drop.

    Example: caplet prune model.pt --data fashion-mnist --root ~/data --macs 0.1 --epochs 1
    """
    from caplet.api import load_float, prune_curves, prune_model
    from caplet.cli.output import bar
    from caplet.errors import TargetNotMet

    settings = PruneSettings.of({**given, "keep": 1.0} if curves else given)
    loaded = load_float(model, image_size=image_size)
    splits = data.load(not run.quiet)
    folder = run.folder(model, "curves" if curves else "pruned")
    with bar(not run.quiet) as (step, measured):
        if curves:
            record = prune_curves(loaded, splits, folder, settings, force=run.force, note=step, progress=measured)
        else:
            result = prune_model(
                loaded, splits, folder, settings, resume=run.resume, force=run.force, note=step, progress=measured
            )
    if curves:
        if run.as_json:
            print_json(record)
        else:
            for score_name, line in record["scores"].items():
                console().print(f"{score_name:10} area under accuracy / kept {line['area']:.4f}")
        note(f"plot: {folder / 'curves.svg'}")
        return
    if run.as_json:
        print_json({**result.metrics, "folder": str(result.folder)})
    else:
        _show(result)
    if not result.met:
        raise TargetNotMet(
            f"no trial kept within {settings.max_drop:g} pp on the calibration split; the nearest one is in"
            f" {result.folder}"
        )
    note(f"model: {result.path}")


def _show(result: "PruneResult") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from caplet.cli.output import kilobytes

    before, after = (result.metrics[key]["cost"] for key in ("original", "pruned"))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "before", "after", "kept"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    rows = [("MACs", "macs"), ("  convolutions", "conv_macs"), ("  votes", "vote_macs"), ("  routing", "routing_macs")]
    for label, key in (*rows, ("parameters", "parameters"), ("capsules", "capsules")):
        table.add_row(label, f"{before[key]:,}", f"{after[key]:,}", f"{100 * after[key] / before[key]:.1f} %")
    for label, key in (("float32 weights", "bytes"), ("peak RAM, float32", "peak_bytes")):
        share = f"{100 * after[key] / before[key]:.1f} %"
        table.add_row(label, kilobytes(before[key]), kilobytes(after[key]), share)
    for name, (left, of) in result.metrics["sizes"].items():
        if left != of:
            table.add_row(name, str(of), str(left), f"{100 * left / of:.1f} %")
    console().print(table)
    pair = result.against
    console().print(f"test accuracy {result.original} before, {result.test} after")
    console().print(
        f"loss {pair.loss:.2f} pp [{pair.low:.2f}, {pair.high:.2f}], {pair.n10} images lost, {pair.n01} won"
    )
