"""``caplet prune``: make a trained model physically smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, FloatModel, ImageSize, RunOptions, console, note, parse_bytes, print_json
from caplet.errors import ConfigError

if TYPE_CHECKING:
    from caplet.api import PruneResult


@with_options
def command(
    data: DataOptions,
    run: RunOptions,
    model: FloatModel,
    keep: Annotated[float | None, typer.Option("--keep", help="Fraction of the units to keep, e.g. 0.25.")] = None,
    macs: Annotated[float | None, typer.Option("--macs", help="Fraction of the multiply-accumulates to keep.")] = None,
    params: Annotated[float | None, typer.Option("--params", help="Fraction of the parameters to keep.")] = None,
    bytes_: Annotated[str | None, typer.Option("--bytes", help="Size of the float32 parameters, e.g. 500KB.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", help="Largest loss on the calibration split, in percentage points; bisects."),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", help="What stays of one space: a fraction, or a number of units; primary.types=8. Repeatable."
        ),
    ] = None,
    units: Annotated[
        str, typer.Option("--units", help="What may go: a list of channels, types, dim, capsules.")
    ] = "channels,types",
    score: Annotated[
        str, typer.Option("--score", help="Importance: taylor, length, coupling, weight or random.")
    ] = "taylor",
    allocation: Annotated[
        str,
        typer.Option(
            "--allocation",
            help="uniform (same fraction everywhere), measured (loss per MAC, measured) or global (score per MAC).",
        ),
    ] = "uniform",
    iterations: Annotated[
        int | None, typer.Option("--iterations", help="Routing iterations of the pruned model's class capsules.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Prune and fine-tune in so many rounds.")] = 1,
    epochs: Annotated[
        float, typer.Option("--epochs", help="Fine-tuning in all, in passes over the training split; 0 for none.")
    ] = 1.0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of fine-tuning.")] = 1e-3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step of fine-tuning.")] = 32,
    precision: Annotated[str, typer.Option("--precision", help="Of fine-tuning: float32 or bfloat16.")] = "float32",
    shift: Annotated[int, typer.Option("--shift", help="Augmentation: largest random shift in pixels.")] = 0,
    flip: Annotated[bool, typer.Option("--flip", help="Augmentation: random mirroring.")] = False,
    teach: Annotated[
        bool, typer.Option("--teach/--no-teach", help="Fine-tuning follows the unpruned model beside the labels.")
    ] = True,
    refit: Annotated[
        int, typer.Option("--refit", help="Training images that weights are refitted on after surgery; 0 for none.")
    ] = 1000,
    images: Annotated[int, typer.Option("--images", help="Calibration images that scores look at.")] = 1000,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of fine-tuning.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the score 'random' and of fine-tuning.")] = 0,
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
    from caplet.api import load_float, prune_curves, prune_model, prune_settings
    from caplet.cli.progress import bar
    from caplet.errors import TargetNotMet

    given: dict[str, Any] = {
        "keep": keep,
        "macs": macs,
        "params": params,
        "bytes": None if bytes_ is None else parse_bytes(bytes_),
        "max_drop": max_drop,
        "spaces": dict(map(_parse_space, space or [])),
        "units": [word.strip() for word in units.split(",")],
        "score": score,
        "allocation": allocation,
        "iterations": iterations,
        "rounds": rounds,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "precision": precision,
        "shift": shift,
        "flip": flip,
        "teach": teach,
        "refit": refit,
        "images": images,
        "threads": threads,
        "seed": seed,
    }
    if curves:
        given |= {"keep": 1.0}
    settings = prune_settings(given)
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
            f"no trial kept within {max_drop:g} pp on the calibration split; the nearest one is in {result.folder}"
        )
    note(f"model: {result.path}")


def _parse_space(text: str) -> tuple[str, float]:
    """``primary.types=8`` as a pair."""
    name, sign, value = text.partition("=")
    try:
        if not sign or not name:
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise ConfigError(
            f"--space {text!r}: the rule is NAME=VALUE, e.g. primary.types=8 or conv1.channels=0.5"
        ) from None


def _show(result: PruneResult) -> None:
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
