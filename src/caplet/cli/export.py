"""``caplet export``: a quantized model as C99 for firmware, or any model as ONNX."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import note, print_json
from caplet.cli.shared import ImageOptions, ImportOptions, Json, parse_ram
from caplet.errors import NotExact, ToolMissing


@with_options
def command(
    images_of: ImageOptions,
    importing: ImportOptions,
    run: Annotated[
        Path,
        typer.Argument(help="A .caplet file, or the run folder of `caplet quantize`; for onnx also a float model."),
    ],
    to: Annotated[Literal["c", "onnx"], typer.Option("--to", help="What to write.")] = "c",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New folder, or .onnx file. Default: export/, or NAME.onnx, beside the model."),
    ] = None,
    ram: Annotated[
        str, typer.Option("--ram", help="fast stores all votes, small recomputes them; or a limit such as 64KB.")
    ] = "fast",
    prefix: Annotated[str | None, typer.Option("--prefix", help="Of every C name. Default: the model's name.")] = None,
    images: Annotated[
        int, typer.Option("--images", help="Of onnx: images on which the file is compared with the model.", min=1)
    ] = 100,
    json: Json = False,
) -> None:
    """Write C99 sources that compute exactly the integers of the .caplet file: no malloc, no float, no libm.

    The folder has the model, the runtime, a self-test with embedded vectors, a Makefile, CMake files and a README.

    With --to onnx, a .caplet file becomes an ONNX graph of the same integers; a float model is exported, its routing
    unrolled; where onnxruntime is installed, the file is run and compared (exit code 6 if a code differs).

    Example: caplet export runs/fmnist --to c --ram small
    """
    if to == "onnx":
        _onnx(run, out, images, images_of, importing, json)
        return
    from caplet.api import EmitSettings, export_c, find_program

    source = find_program(run)
    folder = out or source.parent / "export"
    export = export_c(source, folder, EmitSettings(prefix=prefix, ram=parse_ram(ram)))
    if json:
        print_json({"folder": str(export.folder), "prefix": export.prefix, "memory": export.plan.to_json()})
        return
    note(f"{len(export.files)} files in {export.folder}; arena {export.plan.bytes:,} bytes")
    note(f"test them on this machine: make -C {export.folder} test")


def _onnx(
    run: Path, out: Path | None, images: int, images_of: ImageOptions, importing: ImportOptions, json: bool
) -> None:
    from caplet.api import Program, check_onnx, export_onnx, find_program

    source = find_program(run) if run.is_dir() else run
    model = importing.load(source)
    pixels, told = images_of.pixels(images, model)
    path = export_onnx(model, out or source.with_suffix(".onnx"))
    try:
        found = check_onnx(path, model, pixels)
    except ToolMissing as error:
        found = None
        note(f"not checked: {error}")
    if json:
        print_json({"file": str(path), "bytes": path.stat().st_size, "check": found, **told})
    else:
        note(f"{path}: {path.stat().st_size:,} bytes")
    if found is not None:
        note(
            f"onnxruntime: {found.equal_predictions:,} of {found.images:,} predictions equal; {found.differing:,} of"
            f" {found.values:,} class-capsule values differ, by at most {found.largest:.3g}"
        )
        if isinstance(model, Program) and found.differing:
            raise NotExact(f"{path}: {found.differing:,} of {found.values:,} codes differ in onnxruntime")
