"""``caplet export``: a quantized model for firmware, for browsers and node, or any model as ONNX."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import note, print_json
from caplet.cli.shared import ImageOptions, ImportOptions, Json, parse_ram
from caplet.errors import ConfigError, NotExact, ToolMissing

Form = Literal["exact", "qdq"]
"""Of ONNX files."""


@with_options
def command(
    images_of: ImageOptions,
    importing: ImportOptions,
    run: Annotated[
        Path,
        typer.Argument(help="A .caplet file, or the run folder of `caplet quantize`; for onnx also a float model."),
    ],
    to: Annotated[
        Literal["c", "cmake", "arduino", "zephyr", "esp-idf", "platformio", "micropython", "web", "onnx"],
        typer.Option("--to", help="For which place; see above."),
    ] = "c",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New folder, or .onnx file. Default: export/, or NAME.onnx, beside the model."),
    ] = None,
    ram: Annotated[
        str, typer.Option("--ram", help="fast, small (votes recomputed, maps in bands); or a limit such as 64KB.")
    ] = "fast",
    prefix: Annotated[str | None, typer.Option("--prefix", help="Of every C name. Default: the model's name.")] = None,
    images: Annotated[
        int, typer.Option("--images", help="Of onnx: images on which the file is compared with the model.", min=1)
    ] = 100,
    form: Annotated[
        Form,
        typer.Option("--form", help="Of onnx: exact integers; or qdq, for faster kernels of int8, codes may differ."),
    ] = "exact",
    json: Json = False,
) -> None:
    """Write what computes exactly the integers of the .caplet file, for the place that --to names.

    --to c (the default): C99 without malloc, float or libm: the model, the runtime, a self-test with embedded vectors,
    a Makefile, CMake files and a README.

    --to cmake (a package for find_package), arduino (a library), zephyr (a module), esp-idf (a component), platformio
    (a library), micropython (a native module): the same C as that place wants it; one call gives class and confidence.

    --to web: a page that works offline, where images are drawn or dropped, and an ES module for node and bundlers;
    WebAssembly, with SIMD where there is. Needs the Python package ziglang.

    --to onnx: a .caplet file becomes an ONNX graph of the same integers; a float model is exported, its routing
    unrolled; where onnxruntime is installed, the file is run and compared (exit code 6 if a code differs).

    --to onnx --form qdq: QuantizeLinear and DequantizeLinear around Conv and MatMul, for the int8 kernels of
    onnxruntime, OpenVINO and others; how many codes differ is counted on calibration images of --data, and printed.

    Example: caplet export runs/fmnist --to arduino --ram small
    """
    if to == "onnx":
        _onnx(run, out, images, form, images_of, importing, json)
        return
    if form != "exact":
        raise ConfigError(f"--form {form}: only with --to onnx; leave it out")
    from caplet.api import EmitSettings, export_c, find_program

    source = find_program(run)
    folder = out or _beside(run, source) / ("export" if to == "c" else f"export-{to}")
    export = export_c(source, folder, EmitSettings(prefix=prefix, ram=parse_ram(ram), to=to))
    if json:
        print_json({"folder": str(export.folder), "prefix": export.prefix, "memory": export.plan.to_json()})
        return
    note(f"{len(export.files)} files in {export.folder}; arena {export.plan}")
    if to == "web":
        note(f"open {export.folder / 'index.html'} in a browser")
    elif to == "c":
        note(f"test them on this machine: make -C {shlex.quote(str(export.folder))} test")
    else:
        note(f"how to use it: {export.folder / 'README.md'}")


def _beside(run: Path, source: Path) -> Path:
    """Where an export goes: beside the model, or for one that comes with caplet a folder in runs/."""
    return Path("runs") / str(run).replace(":", "-") if str(run).startswith("trained:") else source.parent


def _onnx(
    run: Path,
    out: Path | None,
    images: int,
    form: Form,
    images_of: ImageOptions,
    importing: ImportOptions,
    json: bool,
) -> None:
    from caplet.api import Program, check_onnx, export_onnx, find_program

    source = find_program(run) if run.is_dir() else run
    model = importing.load(source)
    pixels, told = images_of.pixels(images, model, calibration=form == "qdq")
    name = source.with_suffix(".onnx" if form == "exact" else f".{form}.onnx").name.replace(":", "-")
    path = export_onnx(model, out or _beside(run, source) / name, form)
    wide = model.wide if form == "qdq" and isinstance(model, Program) else ()
    if wide:
        note(f"wider than 8 bits, so that the kernels around them stay float: {', '.join(wide)}")
    try:
        found = check_onnx(path, model, pixels)
    except ToolMissing as error:
        found = None
        note(f"not checked: {error}")
    if json:
        extra = {"form": form, "wide": wide} if form == "qdq" else {}
        print_json({"file": str(path), "bytes": path.stat().st_size, "check": found, **extra, **told})
    else:
        note(f"{path}: {path.stat().st_size:,} bytes")
    if found is not None:
        shown = f", {'calibration' if images_of.data else 'random'} images" if form == "qdq" else ""
        note(
            f"onnxruntime{shown}: {found.equal_predictions:,} of {found.images:,} predictions equal;"
            f" {found.differing:,} of {found.values:,} class-capsule values differ, by at most {found.largest:.3g}"
        )
        if isinstance(model, Program) and form == "exact" and found.differing:
            raise NotExact(f"{path}: {found.differing:,} of {found.values:,} codes differ in onnxruntime")
