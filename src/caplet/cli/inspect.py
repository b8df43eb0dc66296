"""``caplet inspect``: layers, shapes, widths and bytes of any model or .caplet file."""

from typing import Annotated, Any

import typer

from caplet.cli.output import ImageSize, Json, console, kilobytes, print_json


def command(
    model: Annotated[
        str, typer.Argument(help="A .caplet file, a checkpoint, a .pt / .h5 to import, or a name of `caplet models`.")
    ],
    image_size: ImageSize = None,
    points: Annotated[
        bool, typer.Option("--points", help="One row per stored tensor instead of per layer group.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a model's layers, the tensors its device stores, their widths, and bytes."""
    from caplet.api import inspect

    found = inspect(model, image_size=image_size)
    if json:
        print_json(found)
        return
    _show(found, points)


def _show(found: dict[str, Any], points: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=found["title"])
    if points:
        for heading in ("point", "shape", "storage", "format", "elements", "bytes"):
            table.add_column(heading, justify="right" if heading in ("elements", "bytes") else "left")
        for row in found["points"]:
            shape = "x".join(map(str, row["shape"]))
            table.add_row(
                row["point"],
                shape,
                row["storage"],
                row["format"],
                f"{row['elements']:,}",
                f"{row['bytes']:,}",
            )
    else:
        for heading in ("group", "weights", "W bits", "activations", "A bits", "bytes W", "bytes A"):
            table.add_column(heading, justify="left" if heading == "group" else "right")
        for row in found["groups"]:
            table.add_row(
                row["group"],
                f"{row['weights']:,}",
                row["weight_widths"],
                f"{row['activations']:,}",
                row["activation_widths"],
                f"{row['weight_bits'] / 8:,.0f}",
                f"{row['activation_bits'] / 8:,.0f}",
            )
    out.print(table)
    if found["file_bytes"] is not None:
        out.print(f"file: {found['file_bytes']:,} bytes ({kilobytes(found['file_bytes'])})")
    for name, value in found["notes"].items():
        out.print(f"{name}: {value}")
