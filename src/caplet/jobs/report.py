"""Make the report of one or more finished runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from caplet.errors import ArtefactError
from caplet.files import access, write_text
from caplet.report.page import render
from caplet.report.records import FILES, RunRecords
from caplet.runs.folder import ENVIRONMENT, METRICS, RUNNING, SETTINGS, RunFolder
from caplet.version import __version__

PAGE = "report.html"


def read_run(path: str | Path) -> RunRecords:
    """The records of a finished run.

    Raises:
        ArtefactError: no folder, no run, an unfinished run, or a record that cannot be read.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise ArtefactError(f"{folder.path}: no such folder; give the --out of a caplet run")
    if not (folder / METRICS).exists() or (folder / RUNNING).exists():
        if not (folder / SETTINGS).exists():
            raise ArtefactError(f"{folder.path} holds no run (no {SETTINGS}); give the --out of a caplet run")
        raise ArtefactError(
            f"the run in {folder.path} is not finished"
            f" ({f'no {METRICS}' if not (folder / METRICS).exists() else 'it stopped, or goes on now'});"
            " finish it with --resume, or give a finished one"
        )
    present = {name: folder.read_json(name) for name in FILES if (folder / name).exists()}
    return RunRecords(folder.path.resolve().name, present)


def find_runs(path: str | Path) -> list[Path]:
    """The run folders that ``path`` means: itself, or the runs directly in it, the latest first.

    Raises:
        ArtefactError: the folder cannot be read.
    """
    path = Path(path)
    if not path.is_dir() or (path / SETTINGS).exists():
        return [path]
    with access("read", path):
        inside = [path / name for name in os.listdir(path) if (path / name / SETTINGS).exists()]
    return sorted(inside, key=_started, reverse=True) or [path]


def _started(run: Path) -> tuple[str, Path]:
    return str(RunFolder(run).read_json(ENVIRONMENT)["started"]), run


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
