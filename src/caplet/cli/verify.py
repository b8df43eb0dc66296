"""``caplet verify``: the same integers on every engine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.options import with_options
from caplet.cli.output import ImageOptions, Json, Quiet, console, note, parse_ram, print_json


@with_options
def command(
    images_of: ImageOptions,
    run: Annotated[Path, typer.Argument(help="A .caplet file, or the run folder of `caplet quantize`.")],
    on: Annotated[
        str, typer.Option("--on", help="Engines, separated by commas: interpreter, native, cortex-m4, riscv32.")
    ] = "interpreter,native",
    images: Annotated[int, typer.Option("--images", help="How many images.", min=1)] = 50,
    ram: Annotated[str, typer.Option("--ram", help="Memory plan of the firmware: fast, small, or a limit.")] = "small",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run images on every engine and compare every output code with the reference; exit code 6 if one differs.

    Given a run folder, it also writes verify.json there, for `caplet report`.

    cortex-m4 and riscv32 build firmware (a GNU cross-compiler or the ziglang package) and run it in QEMU; instructions
    are those the emulator counts, not clock cycles of a device.

    Example: caplet verify runs/q7 --on interpreter,native,cortex-m4 --images 50 --data mnist --root ~/data
    """
    from caplet.api import find_program, load_program, parse_targets, record_verified, verify_engines
    from caplet.errors import NotExact

    targets = parse_targets(on)
    program = load_program(find_program(run))
    pixels = images_of.pixels(images, program.image_shape, progress=not quiet)
    results = verify_engines(program, pixels, targets, ram=parse_ram(ram), note=(lambda text: None) if quiet else note)
    if run.is_dir():
        record_verified(run, program, images_of.data or "random images", results)
    if json:
        print_json({"engines": [asdict(result) for result in results]})
    else:
        for result in results:
            verdict = "identical" if not result.differing else f"{result.differing:,} differ"
            console().print(f"{result.target}: {result.codes:,} codes of {result.images:,} images: {verdict}")
            for name, value in (result.device or {}).items():
                console().print(
                    f"  {name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"  {name}: {value}"
                )
    for result in results:
        if result.differing:
            raise NotExact(f"{result.target}: {result.differing:,} of {result.codes:,} codes differ; {result.first}")
