"""``caplet export``: a quantized model as C99 for firmware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.output import Json, note, parse_ram, print_json


def command(
    run: Annotated[Path, typer.Argument(help="A .caplet file, or the run folder of `caplet quantize`.")],
    to: Annotated[Literal["c"], typer.Option("--to", help="What to write.")] = "c",
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder. Default: export/ beside the .caplet file.")
    ] = None,
    ram: Annotated[
        str, typer.Option("--ram", help="fast stores all votes, small recomputes them; or a limit such as 64KB.")
    ] = "fast",
    prefix: Annotated[str | None, typer.Option("--prefix", help="Of every C name. Default: the model's name.")] = None,
    json: Json = False,
) -> None:
    """Write C99 sources that compute exactly the integers of the .caplet file: no malloc, no float, no libm.

    The folder has the model, the runtime, a self-test with embedded vectors, a Makefile, CMake files and a README.

    Example: caplet export runs/fmnist --to c --ram small
    """
    from caplet.api import EmitSettings, export_c, find_program

    source = find_program(run)
    folder = out or source.parent / "export"
    export = export_c(source, folder, EmitSettings(prefix=prefix, ram=parse_ram(ram)))
    if json:
        print_json({"folder": str(export.folder), "prefix": export.prefix, "memory": export.plan.to_json()})
        return
    note(f"{len(export.files)} files in {export.folder}; arena {export.plan.bytes:,} bytes")
    note(f"test them on this machine: make -C {export.folder} test")
