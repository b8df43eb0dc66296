"""``caplet check``, ``caplet inspect``, ``caplet models``: what a model is, before and after any work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caplet.cli.options import with_options
from caplet.cli.output import console, estimates, kilobytes, print_json, show_table
from caplet.cli.shared import ImportOptions, Json, Memory, bytes_of, origin
from caplet.errors import ModelError

if TYPE_CHECKING:
    from caplet.api import Check, ShippedNetwork


POINTS = {"point": "{point}", "shape": "{shape}", "storage": "{storage}", "format": "{format}"}
POINTS |= {"elements": "{elements:,}", "bytes": "{bytes:,}"}
GROUPS = {"group": "{group}", "weights": "{weights:,}", "W bits": "{weight_widths}"}
GROUPS |= {"activations": "{activations:,}", "A bits": "{activation_widths}"}
GROUPS |= {"bytes W": "{W:,.0f}", "bytes A": "{A:,.0f}"}
"""Columns of a row per tensor and of one per layer group: the heading, and the text below it."""


@with_options
def check(
    importing: ImportOptions,
    model: Annotated[Path, typer.Argument(help="A .safetensors, a .pt / .h5 / .keras to import, or a .caplet file.")],
    images: Annotated[
        int, typer.Option("--images", help="Calibration images that the search would see.", min=1)
    ] = 5000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images of a training step.", min=1)] = 64,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Say what of a model is supported, what it would take at 8 and 4 bits, on which device, and how long a search is.

    Needs no data. Exit code 3 means that the file cannot be used, or that a layer has no integer form; the message
    says what to do.

    Example: caplet check model.pt
    """
    from caplet.api import check_model

    loaded = importing.load(model)
    found = check_model(loaded, images, batch_size, bytes_of(memory))
    if json:
        print_json({**vars(found), **origin(loaded)})
    else:
        _show_check(found)
    if found.problems:
        raise ModelError("; ".join(found.problems))


def _show_check(found: "Check") -> None:
    out = console()
    out.print(found.title)
    if found.layers:
        out.print(
            f"{found.parameters:,} parameters, {kilobytes(found.float_bytes)} in 32-bit float;"
            f" {found.macs:,} multiply-accumulates per image"
        )
        rows = [
            (
                layer.name,
                layer.type,
                "supported" if layer.problem is None else "NOT SUPPORTED",
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
            )
            for layer in found.layers
        ]
        show_table(("layer", "type", "integers", "parameters", "MACs"), rows, left=3, fold=True)
    if found.training is not None:
        out.print(str(found.training))
    for fit in found.fits:
        what = "as it is" if fit.bits is None else f"{fit.bits} bits everywhere"
        bands = " and maps in bands" if fit.banded else ""
        out.print(
            f"{what}: {kilobytes(fit.flash_bytes)} of constants, {kilobytes(fit.ram_bytes)} of RAM"
            f" ({kilobytes(fit.small_ram_bytes)} with votes recomputed{bands}),"
            f" {fit.accumulator_bits}-bit accumulators;"
            f" smallest device: {fit.device or 'none of those known to caplet'}"
        )
        out.print(f"  {estimates(fit.times)}")
    if found.minutes is not None:
        least, most = (f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in found.minutes)
        out.print(
            f"a search of caplet quantize: about {least} to {most} minutes on this machine, with {found.images:,}"
            " calibration images; fits and images that decide come on top"
        )


@with_options
def command(
    importing: ImportOptions,
    model: Annotated[
        str, typer.Argument(help="A .caplet file, a checkpoint, a .pt / .h5 to import, or a name of `caplet models`.")
    ],
    points: Annotated[
        bool, typer.Option("--points", help="One row per stored tensor instead of per layer group.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a model's layers, the tensors its device stores, their widths, and bytes."""
    from caplet.api import inspect

    found = inspect(model, importing.image_size, importing.assume)
    if json:
        print_json(found)
        return
    if points:
        columns = POINTS
        rows = [{**row, "shape": "x".join(map(str, row["shape"]))} for row in found["points"]]
    else:
        columns = GROUPS
        rows = [{**row, "W": row["weight_bits"] / 8, "A": row["activation_bits"] / 8} for row in found["groups"]]
    texts = [[text.format(**row) for text in columns.values()] for row in rows]
    show_table(tuple(columns), texts, found["title"], left=4 if points else 1, fold=True)
    if found["file_bytes"] is not None:
        console().print(f"file: {found['file_bytes']:,} bytes ({kilobytes(found['file_bytes'])})")
    for name, value in found["notes"].items():
        console().print(f"{name}: {value}")


def models(
    trained: Annotated[
        bool, typer.Option("--trained", help="List the trained networks that come with caplet instead.")
    ] = False,
    json: Json = False,
) -> None:
    """List the ready-made models with image size, groups and parameter counts; or those that are trained already.

    A trained one's name, such as trained:mnist, stands wherever a model's path is asked for: for its integers, or in
    float where a float model is needed; trained:mnist.safetensors is the float one everywhere.

    Example: caplet models --trained
    Example: caplet eval trained:mnist --data mnist
    """
    from caplet.api import list_models, trained_networks

    if trained:
        _list_trained(list(trained_networks().values()), json)
        return
    found = list_models()
    if json:
        print_json({"models": found})
        return
    headings = ("name", "family", "about", "image", "classes", "parameters")
    texts = [
        {**row, "image": "x".join(map(str, row["image"])), "parameters": f"{row['parameters']:,}"} for row in found
    ]
    show_table(headings, [[str(row[name]) for name in headings] for row in texts], "Models", left=3, fold=True)


def _list_trained(networks: list["ShippedNetwork"], json: bool) -> None:
    if json:
        print_json({"trained": [network.to_json() for network in networks]})
        return
    headings = ("path", "n", "integers (%)", "float (%)", "CNN (%)", "size", "float size")
    rows = []
    for network in networks:
        found = (network.test, network.float_test, network.cnn_test)
        tested = ["-" if each is None else f"{each.percent:.2f} [{each.low:.2f}, {each.high:.2f}]" for each in found]
        sizes = [kilobytes(path.stat().st_size) for path in (network.integers, network.float)]
        rows.append((network.path, f"{network.test.n:,}", *tested, *sizes))
    title = "Trained networks: accuracy on n test images, of a plain CNN of that size too, and bytes"
    show_table(headings, rows, title, left=1, fold=True)
