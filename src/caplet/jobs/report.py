"""Make the report of one or more finished runs."""

from collections.abc import Sequence
from pathlib import Path

from caplet.files import write_text
from caplet.report.page import render
from caplet.runs.finished import find_runs, read_run
from caplet.runs.folder import reading
from caplet.version import __version__

PAGE = "report.html"


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one HTML page about runs; see :func:`caplet.report.page.render`.

    Args:
        runs: run folders, or folders of run folders, in the order in which they are shown.
        out: the file. Default: ``report.html`` in the first folder.

    Returns:
        The file.

    Raises:
        ArtefactError: a folder holds no finished run, its records cannot be used, or the page cannot be written.
    """
    records = [read_run(path) for given in runs for path in find_runs(given)]
    target = Path(runs[0]) / PAGE if out is None else Path(out)
    with reading(f"the record of {', '.join(record.name for record in records)}"):
        page = render(records, __version__)
    write_text(target, page, todo="choose another --out")
    return target
