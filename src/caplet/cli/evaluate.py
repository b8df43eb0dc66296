"""``caplet eval``: accuracy of a float checkpoint or of a .caplet file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import DataOptions, Engine, ImageSize, Json, Quiet, console, print_json


@with_options
def command(
    data: DataOptions,
    model: Annotated[Path, typer.Argument(help="A .caplet file, a .safetensors checkpoint, or a .pt / .h5 to import.")],
    split: Annotated[Literal["test", "calibration", "train"], typer.Option("--split", help="Which images.")] = "test",
    engine: Engine = "auto",
    image_size: ImageSize = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Use only so many images of the split.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure accuracy with its 95 % interval. A .caplet file is run in integers, exactly as on the device.

    Example: caplet eval runs/fmnist/model_satisfied.caplet --data fashion-mnist --root ~/data
    """
    from caplet.api import evaluate, load

    loaded = load(model, image_size=image_size)
    splits = data.load(not quiet, limit)
    result = evaluate(loaded, getattr(splits, split), engine=engine)
    if json:
        print_json(
            {"model": str(model), "split": split, "accuracy": result.accuracy.to_json(), "engine": result.engine}
        )
        return
    console().print(f"{split} accuracy {result.accuracy} ({result.engine}, {result.seconds:.1f} s)")
