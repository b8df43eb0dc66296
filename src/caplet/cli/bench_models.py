"""``caplet bench A B``: two float models side by side."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from caplet.cli.output import Json, console, print_json


def command(
    a: Annotated[Path, typer.Argument(help="A float model, such as the unpruned one.")],
    b: Annotated[Path, typer.Argument(help="Another float model for the same images, such as the pruned one.")],
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    batch: Annotated[int, typer.Option("--batch", help="Images per forward pass of inference.")] = 100,
    training_batch: Annotated[int, typer.Option("--training-batch", help="Images per training step.")] = 32,
    turns: Annotated[int, typer.Option("--turns", help="How often the models take turns.")] = 7,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--precision", help="Of training; inference is float32.")
    ] = "float32",
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Image side of imported models, where their files leave it open.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure training and inference speed of two models in PyTorch, in turns within one run.

    Medians over the turns and their range; the ratio is that of each pair of turns. Random images: speed does not
    depend on them.

    Example: caplet bench model.pt runs/model-pruned/model.safetensors --threads 2
    """
    from caplet.api import load_float
    from caplet.bench.two_models import BenchSettings, bench

    first, second = (load_float(path, image_size=image_size) for path in (a, b))
    record = bench(first, second, BenchSettings(threads, batch, training_batch, turns, precision))
    record["models"] = {"a": str(a), "b": str(b)}
    if json:
        print_json(record)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=f"images per second, {threads} thread(s)"
    )
    for heading in ("", a.name, b.name, "ratio"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for what in ("inference", "training"):
        row = [record[what][key] for key in ("a", "b", "ratio")]
        cells = [f"{x['median']:,.0f} ({x['low']:,.0f}-{x['high']:,.0f})" for x in row[:2]]
        table.add_row(what, *cells, f"{row[2]['median']:.1f} ({row[2]['low']:.1f}-{row[2]['high']:.1f})")
    for label, key in (("MACs", "macs"), ("parameters", "parameters")):
        costs = [record["cost"][name][key] for name in "ab"]
        table.add_row(label, *(f"{cost:,}" for cost in costs), f"{costs[1] / costs[0]:.3f}")
    console().print(table)
