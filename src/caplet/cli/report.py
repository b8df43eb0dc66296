"""``caplet report``: one HTML page about finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from caplet.cli.output import Json, note, print_json


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders of train, quantize or sensitivity, or folders of run folders.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: report.html in the first folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about finished runs: verdict, widths, search, memory, answers, provenance.

    It reads the saved records only, needs no network to be read, and every figure's numbers can be saved as CSV.

    Example: caplet report runs/fmnist-qcapsnets runs/fmnist --out fmnist.html
    """
    from caplet.api import write_report

    page = write_report(runs, out)
    if json:
        print_json({"page": str(page), "bytes": page.stat().st_size})
    else:
        note(f"{page}: {page.stat().st_size:,} bytes")
