"""Make the report of one or more finished runs."""

from collections.abc import Sequence
from pathlib import Path

from caplet.errors import ArtefactError
from caplet.files import write_text
from caplet.report.page import render
from caplet.runs.records import find_runs, read_run
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
    try:
        page = render(records, __version__)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        names = ", ".join(record.name for record in records)
        raise ArtefactError(
            f"the records of {names} are not what this version of caplet writes ({type(error).__name__}: {error}); make"
            " the runs again, or use the version that made them"
        ) from error
    write_text(target, page, todo="choose another --out")
    return target
