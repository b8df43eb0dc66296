"""``caplet prune-backbone``: make the CNN under capsules smaller."""

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, RunOptions, console, note, print_json


@with_options
def command(
    data: DataOptions,
    run: RunOptions,
    model: Annotated[Path, typer.Argument(help="A trained model on a CNN (.safetensors).")],
    macs: Annotated[float, typer.Option("--macs", help="Fraction of the multiply-accumulates to keep, e.g. 0.25.")],
    score: Annotated[
        str, typer.Option("--score", help="Importance: torch-pruning, taylor, length, coupling, weight or random.")
    ] = "torch-pruning",
    primary: Annotated[
        str, typer.Option("--primary", help="Primary capsule types: follow (the last channels) or keep.")
    ] = "follow",
    candidates: Annotated[int, typer.Option("--candidates", help="How many ways to prune are compared.")] = 16,
    spread: Annotated[float, typer.Option("--spread", help="How much the layers' shares differ, 0 to 1.")] = 0.75,
    multiple: Annotated[int, typer.Option("--multiple", help="Keep multiples of so many channels.")] = 1,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Refit the chosen candidate's weights before fine-tuning.")
    ] = True,
    epochs: Annotated[int, typer.Option("--epochs", help="Fine-tuning, passes over the training split; 0: none.")] = 1,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of fine-tuning.")] = 1e-3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step of fine-tuning.")] = 32,
    shift: Annotated[int, typer.Option("--shift", help="Augmentation: largest random shift in pixels.")] = 0,
    flip: Annotated[bool, typer.Option("--flip", help="Augmentation: random mirroring.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of fine-tuning.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the candidates and of fine-tuning.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", help="Use only so many images of each split.")] = None,
) -> None:
    """Remove channels of the CNN under capsules: the best of several candidates to one target, then fine-tuning.

    Candidates are compared on the calibration split after their batch norms have seen training images again. The
    chosen one's convolutions are refitted on those images. The primary capsules follow the channels that remain; prune
    them further with caplet prune --units types,capsules.

    Example: caplet prune-backbone runs/resnet18-caps/model.safetensors --data cifar10 --root ~/data --macs 0.25
    """
    from caplet.api import backbone_prune_settings, load_float, prune_backbone_model

    settings, tuning = backbone_prune_settings(
        {
            "macs": macs,
            "score": score,
            "primary": primary,
            "candidates": candidates,
            "spread": spread,
            "multiple": multiple,
            "refit": refit,
            "seed": seed,
        },
        {
            "epochs": epochs,
            "lr": lr,
            "batch_size": batch_size,
            "shift": shift,
            "flip": flip,
            "threads": threads,
            "seed": seed,
        },
    )
    loaded = load_float(model)
    splits = data.load(not run.quiet, limit)
    result = prune_backbone_model(
        loaded,
        splits,
        run.folder(model, "pruned"),
        settings,
        tuning,
        resume=run.resume,
        force=run.force,
        note=note if not run.quiet else lambda text: None,
        bars=not run.quiet,
    )
    if run.as_json:
        print_json({**result.metrics, "model": str(result.path)})
        return
    kept = result.metrics
    console().print(
        f"multiply-accumulates {100 * kept['macs_kept']:.1f} %, parameters {100 * kept['parameters_kept']:.1f} %"
    )
    console().print(f"test accuracy {result.original} before, {result.test} after")
    note(f"model: {result.path}")
