"""``caplet train``: train a capsule network by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.output import Channels, Json, Quiet, Root, Size, console, note, print_json


def command(
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Name of a recipe, or path of a TOML file of settings.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Another model than the recipe's; alone, a CNN with capsules: resnet18-caps."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/RECIPE.")] = None,
    root: Root = None,
    data: Annotated[str | None, typer.Option("--data", help="Another dataset than the recipe's.")] = None,
    size: Size = None,
    channels: Channels = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting, e.g. --set epochs=3 --set lr=1e-3. May be repeated."),
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Do not train the CNN under the capsules.")] = False,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained", help="Weights for that CNN: a state dict's path, or torchvision or timm (its cache)."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Use only so many images of each split.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the run folder.")] = False,
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="Several devices through Hugging Face accelerate.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes and exit.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a capsule network; the model kept is the best on the calibration split, never on the test split.

    The run folder gets model.safetensors, metrics.json (test accuracy with interval), train.csv and a checkpoint
    that --resume goes on from, to the result of an uninterrupted run.

    Example: caplet train --recipe shallow-fashion-mnist --root ~/data
    Example: caplet train --model resnet18-caps --data cifar10 --root ~/data --size 64 --pretrained torchvision --freeze
    """
    from caplet.api import BACKBONE_RECIPE, recipes, train_model

    if list_:
        names = recipes()
        print_json({"recipes": names}) if json else console().print("\n".join(names))
        return
    if recipe is None and model is not None:
        recipe = BACKBONE_RECIPE
    if recipe is None:
        raise typer.BadParameter(f"name one of: {', '.join(recipes())}", param_hint="--recipe")
    folder = out or Path("runs") / (model or Path(recipe).stem)
    changes = [f"{name}={value}" for name, value in (("model", model), ("pretrained", pretrained)) if value is not None]
    changes += ["freeze=true"] if freeze else []
    run = train_model(
        recipe,
        folder,
        root=root,
        data=data,
        size=size,
        channels=channels,
        changes=[*changes, *(set_ or [])],
        limit=limit,
        resume=resume,
        force=force,
        accelerate=accelerate,
        tensorboard=tensorboard,
        progress=not quiet,
    )
    if json:
        print_json({**run.metrics, "model": str(run.model_path)})
        return
    console().print(f"test accuracy {run.test} (float)")
    note(f"model: {run.model_path}")
