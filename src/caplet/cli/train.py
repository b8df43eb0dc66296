"""``caplet train``: train a capsule network by a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from caplet.cli.options import with_options
from caplet.cli.output import console, note, print_json
from caplet.cli.shared import Changes, Device, FileOptions, Limit, Memory, RunOptions, bytes_of
from caplet.train.settings import TrainSettings


@with_options
def command(
    given: Annotated[dict[str, Any], TrainSettings],
    files: FileOptions,
    run: RunOptions,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Name of a recipe, or path of a TOML file of settings.")
    ] = None,
    set_: Changes = None,
    limit: Limit = None,
    memory: Memory = None,
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Folder that keeps what a frozen CNN gives for every image, for more runs."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes and exit.")] = False,
) -> None:
    """Train a capsule network; the model kept is the best on the calibration split, never on the test split.

    The run folder gets model.safetensors, metrics.json (test accuracy with interval), train.csv and a checkpoint
    that --resume goes on from, to the result of an uninterrupted run.
    A frozen CNN (--freeze) is computed once for every image; training reads what it gave from files.

    Example: caplet train --recipe shallow-fashion-mnist --root ~/data
    Example: caplet train --recipe small-mnist --model cnn-like:small-28 --root ~/data
    Example: caplet train --model resnet18-caps --data cifar10 --root ~/data --size 64 --pretrained torchvision --freeze
    """
    from caplet.api import BACKBONE_RECIPE, parse_changes, recipes, train_model

    if list_:
        print_json({"recipes": recipes()}) if run.as_json else console().print("\n".join(recipes()))
        return
    model = given.get("model")
    if recipe is None and model is not None and not model.startswith("cnn-like:"):
        recipe = BACKBONE_RECIPE
    if recipe is None:
        raise typer.BadParameter(f"name one of: {', '.join(recipes())}", param_hint="--recipe")
    how: dict[str, Any] = {"tensorboard": tensorboard, "features": features, "device": device, **run.begun}
    how |= {"memory": bytes_of(memory), "limit": limit, "changes": {**parse_changes(set_ or []), **given}}
    folder = run.out or Path("runs") / (model or Path(recipe).stem)
    done = train_model(recipe, folder, **files.model_dump(), progress=not run.quiet, **how)
    if run.as_json:
        print_json({**done.metrics, "model": str(done.model_path)})
        return
    console().print(f"test accuracy {done.test} (float)")
    note(f"model: {done.model_path}")
