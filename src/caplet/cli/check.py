"""``caplet check``: a model before any work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caplet.cli.output import ImageSize, Json, console, kilobytes, print_json
from caplet.errors import ModelError

if TYPE_CHECKING:
    from caplet.api import Check


def command(
    model: Annotated[Path, typer.Argument(help="A .safetensors checkpoint, a .pt / .h5 to import, or a .caplet file.")],
    image_size: ImageSize = None,
    images: Annotated[
        int, typer.Option("--images", help="Calibration images that the search would see.", min=1)
    ] = 5000,
    json: Json = False,
) -> None:
    """Say what of a model is supported, what it would take at 8 and 4 bits, on which device, and how long a search is.

    Needs no data. Exit code 3 means that the file cannot be used, or that a layer has no integer form; the message
    says what to do.

    Example: caplet check model.pt
    """
    from caplet.api import check_model, load

    found = check_model(load(model, image_size=image_size), images)
    if json:
        print_json(found.to_json())
    else:
        _show(found)
    if found.problems:
        raise ModelError("; ".join(found.problems))


def _show(found: "Check") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    out.print(found.title)
    if found.layers:
        out.print(
            f"{found.parameters:,} parameters, {kilobytes(found.float_bytes)} in 32-bit float;"
            f" {found.macs:,} multiply-accumulates per image"
        )
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("layer", "type", "parameters", "MACs", "integers"):
            table.add_column(heading, justify="right" if heading in ("parameters", "MACs") else "left")
        for layer in found.layers:
            supported = "supported" if layer.problem is None else "NOT SUPPORTED"
            table.add_row(layer.name, layer.type, f"{layer.parameters:,}", f"{layer.macs:,}", supported)
        out.print(table)
    for fit in found.fits:
        what = "as it is" if fit.bits is None else f"{fit.bits} bits everywhere"
        out.print(
            f"{what}: {kilobytes(fit.flash_bytes)} of constants, {kilobytes(fit.ram_bytes)} of RAM"
            f" ({kilobytes(fit.small_ram_bytes)} with votes recomputed), {fit.accumulator_bits}-bit accumulators;"
            f" smallest device: {fit.device or 'none of those known to caplet'}"
        )
    if found.minutes is not None:
        least, most = found.minutes
        out.print(
            f"caplet quantize: about {_minutes(least)} to {_minutes(most)} minutes on this machine, with"
            f" {found.images:,} calibration images"
        )


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
