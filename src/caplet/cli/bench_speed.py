"""``caplet bench speed``: everything that runs one model, side by side."""

from typing import Annotated

import typer

from caplet.cli.output import ImageSize, Json, console, note, print_json

_KINDS = ("training", "search", "inference")


def command(
    model: Annotated[str, typer.Argument(help="A float model's file, or the name of a ready-made one: shallow, deep.")],
    threads: Annotated[int, typer.Option("--threads", help="CPU threads of PyTorch and of the compiled C.")] = 1,
    batch: Annotated[int, typer.Option("--batch", help="Images per training step and per forward pass.")] = 64,
    interpreted: Annotated[
        int, typer.Option("--interpreted", help="Images per call of the interpreter, which is slow.")
    ] = 8,
    turns: Annotated[int, typer.Option("--turns", help="How often each side has its turn.")] = 5,
    bits: Annotated[int, typer.Option("--bits", help="Width of every tensor of the quantized sides.")] = 8,
    image_size: ImageSize = None,
    json: Json = False,
) -> None:
    """Measure training, search, interpreter, compiled C and PyTorch on one model, in turns within one run.

    Medians over the turns and their range, on noise: speed does not depend on pixels. The plain broadcast form is the
    same network as it is usually written in PyTorch; whole ShallowCaps and DeepCaps have one. A training step is
    forward, margin loss, backward, Adam; a search's probe is a fake-quantized forward pass.

    Example: caplet bench speed shallow --threads 2
    """
    from caplet.api import load_or_build
    from caplet.bench.speed.job import SpeedSettings, bench_speed

    settings = SpeedSettings(threads, batch, interpreted, turns, bits)
    record = {"model": model, **bench_speed(load_or_build(model, image_size), settings)}
    if json:
        print_json(record)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=f"images per second, {threads} thread(s)"
    )
    for heading in ("", "", "median", "range", "of slowest"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for kind in _KINDS:
        sides = [side for side in record["sides"] if side["what"] == kind]
        medians = [side["images_per_second"]["median"] for side in sides]
        for side in sides:
            found = side["images_per_second"]
            cells = (f"{found['median']:,.1f}", f"{found['low']:,.1f}-{found['high']:,.1f}")
            table.add_row(kind, side["side"], *cells, f"{found['median'] / min(medians):.1f}x")
    console().print(table)
    for side, reason in record["left_out"].items():
        note(f"{side}: not measured: {reason}")
