"""Redo the rows of papers' tables that have their model and data here; each is a folder, done once for equal inputs."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from caplet.bench.papers.page import PAGE, RECORD, page, record_of
from caplet.bench.papers.rows import ROWS, PaperRow, select
from caplet.bench.papers.work import PruneCnn, Rates
from caplet.bench.settings import PapersSettings
from caplet.data import Splits, load_data
from caplet.data.norb import NAME as SMALLNORB
from caplet.errors import CapletError, WorkerError
from caplet.files import file_digest, read_text, write_text
from caplet.jobs.run import check
from caplet.jobs.timing import forward_rate, training_rate
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.cost import cost_of
from caplet.progress import Note, silent
from caplet.runs.folder import environment, open_run, read_record, sweep, write_record
from caplet.runs.stages import Begun, Done, Stages
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Failed, Team

ROW, MARK = "row.json", ".workers"


@dataclass
class Sources:
    """The models and the data of a call; the last ones loaded are kept."""

    settings: PapersSettings
    _data: tuple[tuple[str, int | None], Splits] | None = None

    def missing(self, row: PaperRow) -> str | None:
        """Why a row cannot be made, as far as it shows before anything is loaded; None where nothing does."""
        name = row.network.name
        if name in self.settings.models:
            return None
        how = (
            " (Keras weights of its authors)" if row.network.command is None else f" ({row.network.command} makes one)"
        )
        return f"no checkpoint: give --model {name}=FILE{how}"

    def model(self, row: PaperRow) -> CapsNet:
        """The row's network. Raises ModelError."""
        return load_model(self.settings.models[row.network.name])

    def digest(self, row: PaperRow) -> str:
        """SHA-256 of the checkpoint. Raises ArtefactError where it cannot be read."""
        return file_digest(self.settings.models[row.network.name])

    def data(self, row: PaperRow) -> Splits:
        """The row's data. Raises DataError where they are not here."""
        settings, name = self.settings, row.network.data
        size = settings.size if isinstance(row.work, PruneCnn) or name == SMALLNORB else None
        if self._data is None or self._data[0] != (name, size):
            root = settings.roots.get(name, settings.roots.get(""))
            splits = load_data(name, root, calibration_size=settings.calibration_size, size=size, download=False)
            self._data = (name, size), _limited(splits, settings.test_images)
        return self._data[1]


@dataclass(frozen=True)
class PapersResult:
    """What a call left: ``papers.md``, ``papers.json`` and a folder for each row, in ``folder``.

    Attributes:
        folder: the run folder.
        record: what ``papers.json`` holds.
    """

    folder: Path
    record: dict[str, Any]

    @cached_property
    def done(self) -> tuple[str, ...]:
        """Names of the rows that have figures."""
        return tuple(row["name"] for row in self.record["rows"] if row["measured"] is not None)

    @cached_property
    def blank(self) -> dict[str, str]:
        """Why a row has none, by name."""
        return {row["name"]: row["missing"] for row in self.record["rows"] if row["measured"] is None}


def redo_papers(
    settings: PapersSettings,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    note: Note = silent,
    workers: WorkerSettings | None = None,
) -> PapersResult:
    """Make every chosen row whose model and data are here, and write the page and its record after each.

    Searches, calibration and pruning see calibration (and training) images; every row opens the test split once, at
    its end. A row that is finished, with an equal model file, data and settings, is kept; one that was interrupted
    goes on. A row that fails says why on the page, and the others are made.

    Args:
        out: the run folder. ``resume`` goes on with it under equal limits; ``force`` also under others. Which rows are
            asked for may change: the page has all that the folder holds.
        note: called with one line of text at every decision; of a row that a worker makes, when it is done.
        workers: who makes the rows; None for this process alone. A cluster's workers must see the run folder, the
            models and the data under the same paths.

    Raises:
        WorkerError: a worker cannot be used.
        ConfigError: no row fits a pattern; other limits than those of the folder to go on with.
        ArtefactError: the run folder cannot be used.
    """
    rows, sources = select(settings.only), Sources(settings)
    limits = {key: getattr(settings, key) for key in ("calibration_size", "test_images", "size")}
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with (
        (workers or WorkerSettings()).open(note) as team,
        open_run(out, {"job": "papers", **limits}, resume=resume, force=force) as run,
    ):
        made, stages = _Made(run, limits), Stages(run, note)
        made.write()
        team.warm(__name__, sum(sources.missing(row) is None for row in rows))
        begun: list[tuple[float, PaperRow, Begun, int]] = []
        for row in rows:
            missing = sources.missing(row)
            if missing is None:
                try:
                    if team.away and isinstance(found := stages.begin(*_stage(row, sources), (ROW,)), Begun):
                        begun.append((_work(row, sources), row, found, len(sources.data(row).calibration)))
                    else:
                        made.rows[row.name] = _make(row, sources, stages, note), None
                except CapletError as error:
                    missing = str(error)
                    note(f"{row.name}: {error}")
            if missing is not None and not made.has(row):
                made.rows[row.name] = None, missing
            made.write()
        for row, made_there in _elsewhere(team, begun, settings, stages, note):
            made.rows[row.name] = made_there
            made.write()
    return PapersResult(run, made.record())


def _work(row: PaperRow, sources: Sources) -> float:
    """What a row takes, in multiply-accumulates; a training step counts as three passes."""
    macs = cost_of(sources.model(row)).macs
    return row.work.seconds(Rates(1 / macs, 1 / (3 * macs)), sources.data(row))


def _stage(row: PaperRow, sources: Sources) -> tuple[str, dict[str, Any]]:
    """A row's name, and all that it depends on."""
    hashes = sources.data(row).info["hashes"]
    return row.name, {"work": row.work.to_json(), "model": sources.digest(row), "data": hashes}


@dataclass(frozen=True)
class _Task:
    """A row for a worker; ``mark`` is a file in the run folder with the text ``token``."""

    name: str
    folder: Path
    resume: bool
    mark: Path
    token: str


def _elsewhere(
    team: Team,
    begun: Sequence[tuple[float, PaperRow, Begun, int]],
    settings: PapersSettings,
    stages: Stages,
    note: Note,
) -> Iterator[tuple[PaperRow, tuple[dict[str, Any] | None, str | None]]]:
    """Rows that workers make, as they are done, each with its values, or why there are none. The most work first: a
    long row that begins last would be made while others have nothing to do."""
    begun = sorted(begun, key=lambda each: -each[0])
    run = stages.run.resolve()
    paths = ({name: path.resolve() for name, path in found.items()} for found in (settings.models, settings.roots))
    chosen = PapersSettings(**{**settings.model_dump(), **dict(zip(("models", "roots"), paths, strict=True))})
    mark, token = run / MARK, secrets.token_hex()
    parcel = team.parcel(Sources, chosen)
    tasks = [(parcel, _Task(row.name, run / row.name, found.resume, mark, token)) for _, row, found, _ in begun]
    write_text(mark, token)
    try:
        for number, result in team.completed(_row, tasks, lambda task: task.name):
            _, row, found, images = begun[number]
            seconds, notes, error = (0.0, [], str(result)) if isinstance(result, Failed) else result
            for text in (*notes, *([f"{row.name}: {error}"] if error else ())):
                note(text)
            yield row, (None, error) if error else (_figures(stages.finish(found, seconds, (ROW,)), images), None)
    finally:
        mark.unlink(missing_ok=True)


def _row(sources: Sources, task: _Task) -> tuple[float, list[str], str]:
    """Make a row; seconds, notes, and why it cannot be made, or nothing."""
    if not task.mark.exists() or read_text(task.mark) != task.token:
        raise WorkerError(f"the worker does not see {task.mark.parent} as it is here; choose a folder that both share")
    notes: list[str] = []
    began = time.perf_counter()
    again = task.folder.exists()  # left by a worker that was lost
    if again:
        sweep(task.folder)
    try:
        _write(ROWS[task.name], sources, task.folder, task.resume or again, notes.append)
    except CapletError as error:
        return 0.0, notes, str(error)
    return time.perf_counter() - began, notes, ""


@dataclass
class _Made:
    """The page as it grows."""

    run: Path
    limits: Mapping[str, Any]
    rows: dict[str, tuple[dict[str, Any] | None, str | None]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: asdict(environment()))

    def __post_init__(self) -> None:
        if (self.run / RECORD).exists():  # of an earlier call for this folder
            for row in read_record(self.run / RECORD, dict)["rows"]:
                self.rows[row["name"]] = row["measured"], row["missing"]

    def has(self, row: PaperRow) -> bool:
        """Whether an earlier call made the row."""
        return self.rows.get(row.name, (None, None))[0] is not None

    def record(self) -> dict[str, Any]:
        return record_of(self.rows, self.limits, torch.get_num_threads(), self.environment)

    def write(self) -> None:
        record = self.record()
        write_record(self.run / RECORD, record)
        write_text(self.run / PAGE, page(record))


def _make(row: PaperRow, sources: Sources, stages: Stages, note: Note) -> dict[str, Any]:
    """One row, or what is left of it to do; JSON values of :class:`caplet.bench.papers.work.RowResult`, and seconds."""

    def work(folder: Path, resume: bool) -> None:
        _write(row, sources, folder, resume, note)

    return _figures(stages.do(*_stage(row, sources), work, (ROW,)), len(sources.data(row).calibration))


def _write(row: PaperRow, sources: Sources, folder: Path, resume: bool, note: Note) -> None:
    splits = sources.data(row)
    found = row.work.run(sources.model(row), splits, folder, resume, note)
    write_record(folder / ROW, {**found.to_json(), "data_note": splits.info["note"]})


def _figures(done: Done, calibration_images: int) -> dict[str, Any]:
    found: dict[str, Any] = read_record(done.folder / ROW, dict)
    return {**found, "seconds": done.seconds, "calibration_images": calibration_images}


def list_papers(settings: PapersSettings, *, estimate: bool = False) -> Iterator[dict[str, Any]]:
    """Every chosen row, JSON values: ``name``, ``model``, ``data``, ``method``, ``minutes``, ``missing``.

    Args:
        estimate: say how many minutes a row takes, from a few batches through its model here; else nothing is loaded,
            and ``minutes`` is None.

    Raises:
        ConfigError: no row fits a pattern.
    """
    sources = Sources(settings)
    known: dict[str, Rates] = {}
    if estimate and settings.threads is not None:
        torch.set_num_threads(settings.threads)
    for row in select(settings.only):
        missing, name, minutes = sources.missing(row), row.network.name, None
        if estimate and missing is None:
            try:
                splits = sources.data(row)
                if name not in known:
                    model = sources.model(row)
                    check(splits, model)
                    known[name] = Rates(forward_rate(model), training_rate(model))
                minutes = row.work.seconds(known[name], splits) / 60
            except CapletError as error:
                missing = str(error)
        yield {
            "name": row.name,
            "model": name,
            "data": row.network.data,
            "method": row.work.method,
            "minutes": minutes,
            "missing": missing,
        }


def _limited(splits: Splits, test_images: int | None) -> Splits:
    """With at most so many test images, at even distances."""
    if test_images is None or test_images >= len(splits.test):
        return splits
    test = splits.test.evenly_spaced(test_images)
    info = {
        **splits.info,
        "sizes": {**splits.info["sizes"], "test": len(test)},
        "hashes": {**splits.info["hashes"], "test": test.sha256()},
    }
    return replace(splits, test=test, info=info)
