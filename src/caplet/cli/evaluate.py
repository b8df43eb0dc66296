"""``caplet eval`` and ``caplet verify``: a model on images, and the same integers on every engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from caplet.cli.options import with_options
from caplet.cli.output import bar, console, estimates, note, print_json
from caplet.cli.shared import DataOptions, Engine, ImageOptions, ImportOptions, Json, Limit, Quiet, origin, parse_ram
from caplet.errors import BoardError, NotExact, ToolMissing
from caplet.progress import silent

if TYPE_CHECKING:
    from caplet.api import Verified


@with_options
def command(
    data: DataOptions,
    importing: ImportOptions,
    model: Annotated[Path, typer.Argument(help="A .caplet file, a .safetensors checkpoint, or a .pt / .h5 to import.")],
    split: Annotated[Literal["test", "calibration", "train"], typer.Option("--split", help="Which images.")] = "test",
    engine: Engine = "auto",
    limit: Limit = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure accuracy with its 95 % interval. A .caplet file is run in integers, exactly as on the device.

    Example: caplet eval runs/fmnist/model_satisfied.caplet --data fashion-mnist --root ~/data
    """
    from caplet.api import evaluate

    loaded = importing.load(model)
    splits = data.load(not quiet, limit, loaded)
    result = evaluate(loaded, getattr(splits, split), engine=engine)
    if json:
        found = {"accuracy": result.accuracy, "engine": result.engine, "data_note": splits.info["note"]}
        print_json({"model": str(model), "split": split, **found, **origin(loaded)})
        return
    console().print(f"{split} accuracy {result.accuracy} ({result.engine}, {result.seconds:.1f} s)")


@with_options
def verify(
    images_of: ImageOptions,
    run: Annotated[Path, typer.Argument(help="A .caplet file, or the run folder of `caplet quantize`.")],
    on: Annotated[
        str,
        typer.Option(
            "--on",
            help="Engines, separated by commas: interpreter, native, cortex-m4, riscv32; or boards:"
            " serial:PORT, serial:PORT@BAUD, tcp:HOST:PORT.",
        ),
    ] = "interpreter,native",
    images: Annotated[int, typer.Option("--images", help="How many images.", min=1)] = 50,
    ram: Annotated[str, typer.Option("--ram", help="Memory plan of the firmware: fast, small, or a limit.")] = "small",
    wait: Annotated[float, typer.Option("--wait", help="Seconds that a board may take for an image.", min=1)] = 60,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run images on every engine and compare every output code with the reference; exit code 6 if one differs.

    Given a run folder, it also writes verify.json there, for `caplet report`.

    cortex-m4 and riscv32 build firmware (a GNU cross-compiler or the ziglang package) and run it in QEMU; instructions
    are those the emulator counts, not clock cycles of a device.

    serial:PORT sends the images to a board that runs the example "verify" of an export of this model, and gets the
    codes and the microseconds that it measured; tcp:HOST:PORT does so over a network. Serial ports need the Python
    package pyserial.

    Example: caplet verify runs/q7 --on serial:/dev/ttyACM0 --images 20

    Example: caplet verify runs/q7 --on interpreter,native,cortex-m4 --images 50 --data mnist --root ~/data
    """
    from caplet.api import device_times, find_program, load_program, parse_targets, record_verified, verify_engines

    targets = parse_targets(on)
    results: list[Verified] = []
    failure: BoardError | ToolMissing | None = None
    program = load_program(find_program(run))
    pixels, told = images_of.pixels(images, program, progress=not quiet)
    with bar(not quiet) as (say, move):
        say = silent if quiet else say
        try:
            verify_engines(
                program, pixels, targets, ram=parse_ram(ram), wait=wait, note=say, progress=move, done=results.append
            )
        except (BoardError, ToolMissing) as error:
            failure = error
    if failure is not None and not results:
        raise failure
    if run.is_dir():
        record_verified(run, program, images_of.data or "random images", results)
    if json:
        told |= {"error": str(failure)} if failure is not None else {}
        print_json({"engines": results, "times": device_times(program), **told})
    else:
        console().print(estimates(device_times(program)))
        for result in results:
            verdict = "identical" if not result.differing else f"{result.differing:,} differ"
            console().print(f"{result.target}: {result.codes:,} codes of {result.images:,} images: {verdict}")
            for name, value in (result.device or {}).items():
                console().print(
                    f"  {name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"  {name}: {value}"
                )
    for result in results:
        if result.differing:
            if failure is not None:
                note(str(failure))
            raise NotExact(f"{result.target}: {result.differing:,} of {result.codes:,} codes differ; {result.first}")
    if failure is not None:
        raise failure
