"""``caplet eval``: accuracy of a float checkpoint or of a .caplet file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.output import CalibrationSize, Channels, Data, Json, Quiet, Root, Size, console, print_json


def command(
    model: Annotated[Path, typer.Argument(help="A .caplet file, a .safetensors checkpoint, or a .pt / .h5 to import.")],
    data: Data = "digits",
    root: Root = None,
    split: Annotated[Literal["test", "calibration", "train"], typer.Option("--split", help="Which images.")] = "test",
    engine: Annotated[
        Literal["auto", "native", "interpreter"],
        typer.Option("--engine", help="What runs a .caplet file: compiled C, or the reference interpreter."),
    ] = "auto",
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Image side of an imported model, where its file leaves it open.")
    ] = None,
    size: Size = None,
    channels: Channels = None,
    calibration_size: CalibrationSize = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Use only so many images of the split.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure accuracy with its 95 % interval. A .caplet file is run in integers, exactly as on the device.

    Example: caplet eval runs/fmnist/model_satisfied.caplet --data fashion-mnist --root ~/data
    """
    from caplet.api import evaluate, load, load_data

    loaded = load(model, image_size=image_size)
    splits = load_data(
        data, root, calibration_size=calibration_size, size=size, channels=channels, limit=limit, progress=not quiet
    )
    result = evaluate(loaded, getattr(splits, split), engine=engine)
    if json:
        print_json(
            {"model": str(model), "split": split, "accuracy": result.accuracy.to_json(), "engine": result.engine}
        )
        return
    console().print(f"{split} accuracy {result.accuracy} ({result.engine}, {result.seconds:.1f} s)")
