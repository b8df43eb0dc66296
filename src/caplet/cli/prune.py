"""``caplet prune`` and ``caplet prune-backbone``: make a trained model physically smaller."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caplet.cli.options import with_options
from caplet.cli.output import bar, console, kilobytes, note, print_json, show_table
from caplet.cli.shared import DataOptions, Device, FloatModel, ImportOptions, Limit, RunOptions
from caplet.errors import TargetNotMet
from caplet.jobs.prune.settings import BackboneTuning, PruneSettings
from caplet.prune.choices import BackbonePruneSettings
from caplet.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from caplet.api import PruneResult


@with_options
def command(
    model: FloatModel,
    given: Annotated[dict[str, Any], PruneSettings],
    data: DataOptions,
    importing: ImportOptions,
    run: RunOptions,
    curves: Annotated[
        bool, typer.Option("--curves", help="Only analyse: accuracy against what is kept, for every score.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Remove channels, capsule types or single capsules, and fine-tune what is left.

    The result is an ordinary, smaller model: quantize, export and train it as any other. Scores and decisions see the
    calibration split, cut from the training images; the test split is opened once, at the end. Exit code 5 means that
    no trial kept within --max-drop.

    Example: caplet prune model.pt --data fashion-mnist --root ~/data --macs 0.1 --epochs 1
    """
    from caplet.api import prune_curves, prune_model

    settings = PruneSettings.of({**given, "keep": 1.0} if curves else given)
    loaded = importing.load_float(model)
    data.check_size(loaded)
    splits = data.load(not run.quiet)
    folder = run.folder(model, "curves" if curves else "pruned")
    with bar(not run.quiet) as (step, measured):
        how: dict[str, Any] = {"device": device, "progress": measured, "note": step}
        if curves:
            record = prune_curves(loaded, splits, folder, settings, force=run.force, **how)
        else:
            result = prune_model(loaded, splits, folder, settings, **run.begun, **how)
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
    before, after = (result.metrics[key]["cost"] for key in ("original", "pruned"))
    names = {
        "MACs": "macs",
        "  convolutions": "conv_macs",
        "  votes": "vote_macs",
        "  routing": "routing_macs",
        "parameters": "parameters",
        "capsules": "capsules",
    }
    rows = [(label, f"{before[key]:,}", f"{after[key]:,}", after[key] / before[key]) for label, key in names.items()]
    for label, key in (("float32 weights", "bytes"), ("peak RAM, float32", "peak_bytes")):
        rows.append((label, kilobytes(before[key]), kilobytes(after[key]), after[key] / before[key]))
    sizes = result.metrics["sizes"].items()
    rows += [(name, str(of), str(remaining), remaining / of) for name, (remaining, of) in sizes if remaining != of]
    show_table(("", "before", "after", "kept"), [(*row[:3], f"{100 * row[3]:.1f} %") for row in rows])
    pair = result.against
    console().print(f"test accuracy {result.original} before, {result.test} after")
    console().print(
        f"loss {pair.loss:.2f} pp [{pair.low:.2f}, {pair.high:.2f}], {pair.n10} images lost, {pair.n01} won"
    )


@with_options
def backbone(
    model: Annotated[Path, typer.Argument(help="A trained model on a CNN (.safetensors).")],
    settings: BackbonePruneSettings,
    tuning: BackboneTuning,
    data: DataOptions,
    run: RunOptions,
    workers: WorkerSettings,
    limit: Limit = None,
    device: Device = "auto",
) -> None:
    """Remove channels of the CNN under capsules: the best of several candidates to one target, then fine-tuning.

    Candidates are compared on the calibration split after their batch norms have seen training images again. The
    chosen one's convolutions are refitted on those images. The primary capsules follow the channels that remain; prune
    them further with caplet prune --units types,capsules.

    Example: caplet prune-backbone runs/resnet18-caps/model.safetensors --data cifar10 --root ~/data --macs 0.25
    """
    from caplet.api import load_float, prune_backbone_model

    loaded, splits, folder = load_float(model), data.load(not run.quiet, limit), run.folder(model, "pruned")
    how: dict[str, Any] = {"note": run.note, "bars": not run.quiet, "workers": workers, "device": device, **run.begun}
    result = prune_backbone_model(loaded, splits, folder, settings, tuning.finetuning(settings.seed), **how)
    metrics = result.metrics
    if run.as_json:
        print_json({**metrics, "model": str(result.path)})
        return
    console().print(
        f"multiply-accumulates {100 * metrics['macs_kept']:.1f} %, parameters {100 * metrics['parameters_kept']:.1f} %"
    )
    console().print(f"test accuracy {result.original} before, {result.test} after")
    note(f"model: {result.path}")
