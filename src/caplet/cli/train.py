"""``caplet train``: train a capsule network by a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.options import DATA, with_options
from caplet.cli.output import RunOptions, console, note, print_json


@with_options
def command(
    output: RunOptions,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Name of a recipe, or path of a TOML file of settings.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Another model than the recipe's; alone, a CNN with capsules: resnet18-caps."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Folder (or archive) where the dataset's files already are; otherwise downloaded.",
            rich_help_panel=DATA,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Another dataset than the recipe's.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Resize images to this many rows and columns.", rich_help_panel=DATA)
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="1 for gray, 3 for RGB.", rich_help_panel=DATA)
    ] = None,
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
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="Several devices through Hugging Face accelerate.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard logs.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes and exit.")] = False,
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
        print_json({"recipes": names}) if output.as_json else console().print("\n".join(names))
        return
    if recipe is None and model is not None:
        recipe = BACKBONE_RECIPE
    if recipe is None:
        raise typer.BadParameter(f"name one of: {', '.join(recipes())}", param_hint="--recipe")
    folder = output.out or Path("runs") / (model or Path(recipe).stem)
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
        resume=output.resume,
        force=output.force,
        accelerate=accelerate,
        tensorboard=tensorboard,
        progress=not output.quiet,
    )
    if output.as_json:
        print_json({**run.metrics, "model": str(run.model_path)})
        return
    console().print(f"test accuracy {run.test} (float)")
    note(f"model: {run.model_path}")
