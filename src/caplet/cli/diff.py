"""``caplet diff``: two finished runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caplet.cli.output import Json, console, print_json

if TYPE_CHECKING:
    from caplet.api import Diff


def command(
    first: Annotated[Path, typer.Argument(help="Run folder of train or quantize.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    json: Json = False,
) -> None:
    """Compare two runs: accuracy (image by image where the test images are the same), bytes, settings, widths.

    Example: caplet diff runs/fmnist-qcapsnets runs/fmnist-ilp
    """
    from caplet.api import diff_runs

    found = diff_runs(first, second)
    if json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: "Diff") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    for title, values in (
        ("Figures", found.figures),
        ("Settings that differ", found.settings),
        ("Bits that differ", found.widths),
    ):
        if not values:
            continue
        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("", no_wrap=True)
        for name in found.names:
            table.add_column(name, justify="right", overflow="fold")
        for value in values:
            table.add_row(value.name, _text(value.first), _text(value.second))
        out.print(table)
    if found.pair is None:
        out.print(f"not paired: {found.unpaired}; compare the intervals of `caplet eval` instead")
        return
    pair = found.pair
    out.print(
        f"the same {pair.n:,} test images: {found.agree:,} equal answers; {pair.n10:,} only {found.names[0]} has right,"
        f" {pair.n01:,} only {found.names[1]}"
    )
    out.print(
        f"{found.names[0]} is {abs(pair.loss):.2f} points {'better' if pair.loss >= 0 else 'worse'} (95 % interval"
        f" {pair.low:+.2f} to {pair.high:+.2f}); exact McNemar test p = {pair.p_value:.3g}"
    )


def _text(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
