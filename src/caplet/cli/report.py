"""``caplet report`` and ``caplet diff``: finished runs, from their records; ``caplet doctor``: this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caplet.cli.output import console, note, print_json, show_table
from caplet.cli.shared import Json
from caplet.errors import ToolMissing

if TYPE_CHECKING:
    from caplet.api import Diff


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

    Example: caplet report runs/fmnist-ilp runs/fmnist --out fmnist.html
    """
    from caplet.api import write_report

    page = write_report(runs, out)
    if json:
        print_json({"page": str(page), "bytes": page.stat().st_size})
    else:
        note(f"{page}: {page.stat().st_size:,} bytes")


def diff(
    first: Annotated[Path, typer.Argument(help="Run folder of train or quantize.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    json: Json = False,
) -> None:
    """Compare two runs: accuracy (image by image where the test images are the same), bytes, settings, widths.

    Example: caplet diff runs/fmnist-ilp runs/fmnist-qcapsnets
    """
    from caplet.api import diff_runs

    found = diff_runs(first, second)
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: "Diff") -> None:
    tables = {"Figures": found.figures, "Settings that differ": found.settings, "Bits that differ": found.widths}
    for title, values in tables.items():
        rows = [(value.name, _text(value.first), _text(value.second)) for value in values]
        if rows:
            show_table(("", *found.names), rows, title, fold=True)
    out = console()
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


def doctor(json: Json = False) -> None:
    """Look for compilers, emulator, Python packages and a writable cache; say how to install what is missing.

    Exit code 7 means that something is missing without which the main jobs do not work.
    """
    from caplet.runtime.doctor import examine

    findings = examine()
    missing = [finding.name for finding in findings if finding.required and not finding.found]
    if json:
        print_json({"ready": not missing, "findings": findings})
    else:
        out = console()
        for finding in findings:
            state = "found  " if finding.found else "MISSING" if finding.required else "absent "
            out.print(f"{state}  {finding.name}: {finding.about}")
            if not finding.found:
                out.print(f"         for {finding.purpose}; get it: {finding.install}")
    if missing:
        raise ToolMissing(f"needed and missing: {', '.join(missing)}; see above how to get it")
