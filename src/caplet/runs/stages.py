"""A run of several stages: each is a folder, done once for equal inputs, and gone on with where it was killed."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caplet.errors import ArtefactError
from caplet.files import access, digest, file_digest
from caplet.progress import Note, silent
from caplet.runs.folder import read_record, sweep, write_record

STAGES = "stages.json"


@dataclass(frozen=True)
class StageRecord:  # a stage in the file: digest of its inputs, wall time; outputs where it is finished
    inputs: str
    seconds: float
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A finished stage.

    Attributes:
        folder: where its files are.
        seconds: wall time of its work, all parts of an interrupted one together.
        skipped: whether it was found finished.
        outputs: SHA-256 (hex) by file name; what later stages take among their inputs.
    """

    folder: Path
    seconds: float
    skipped: bool
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:  # a stage to be done: digest of its inputs, whether an interrupted call left files, seconds that it took
    name: str
    folder: Path
    inputs: str
    resume: bool
    spent: float


class Stages:
    """Does stages in a run folder and remembers them in ``stages.json``.

    A stage that is finished, whose inputs are equal and whose outputs still have the hashes they had, is skipped. One
    that was interrupted with equal inputs goes on. In all other cases the stage's folder is removed and the stage done.

    Attributes:
        run: the run folder, held open by the caller.
        note: called with one line of text about every stage.
    """

    def __init__(self, run: Path, note: Note = silent) -> None:
        self.run, self.note = run, note
        known = (run / STAGES).exists()
        self._records = read_record(run / STAGES, dict[str, StageRecord]) if known else {}

    def do(
        self, name: str, inputs: Mapping[str, Any], work: Callable[[Path, bool], None], outputs: tuple[str, ...]
    ) -> Done:
        """Do a stage, or find it done.

        Args:
            name: of its folder under the run's.
            inputs: everything its outcome depends on, JSON values: settings, and digests of what it reads.
            work: called with the stage's folder and whether to go on with what an interrupted call left there; it
                creates the folder.
            outputs: files that it leaves in its folder and that later stages read.

        Raises:
            ArtefactError: a file cannot be read, written or removed; the stage's own errors pass through.
        """
        begun = self.begin(name, inputs, outputs)
        if isinstance(begun, Done):
            return begun
        began = time.perf_counter()
        try:
            work(begun.folder, begun.resume)
        except BaseException:
            self._remember(name, StageRecord(begun.inputs, begun.spent + time.perf_counter() - began))
            raise
        return self.finish(begun, time.perf_counter() - began, outputs)

    def begin(self, name: str, inputs: Mapping[str, Any], outputs: tuple[str, ...]) -> Begun | Done:
        """The first part of :meth:`do`, for work that is done elsewhere: what to do, or that it is done."""
        folder, asked = self.run / name, digest(json.dumps(dict(inputs), sort_keys=True))
        before = self._records.get(name, StageRecord("", 0.0))
        equal = before.inputs == asked
        if equal and before.outputs and _hashes(folder, outputs) == before.outputs:
            self.note(f"{name}: unchanged, skipped")
            return Done(folder, before.seconds, True, before.outputs)
        resume = equal and not before.outputs and folder.is_dir()
        if resume:
            sweep(folder)
        elif os.path.lexists(folder):
            with access("remove", folder):
                shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        spent = before.seconds if resume else 0.0
        self.note(f"{name}: going on" if resume else name)
        self._remember(name, StageRecord(asked, spent))
        return Begun(name, folder, asked, resume, spent)

    def finish(self, begun: Begun, seconds: float, outputs: tuple[str, ...]) -> Done:
        """The last part of :meth:`do`, after ``seconds`` of work."""
        found = _hashes(begun.folder, outputs)
        if found is None:
            raise ArtefactError(f"{begun.folder}: the stage ended without {', '.join(outputs)}; start it again")
        seconds = round(begun.spent + seconds, 1)
        self._remember(begun.name, StageRecord(begun.inputs, seconds, found))
        return Done(begun.folder, seconds, False, found)

    def _remember(self, name: str, record: StageRecord) -> None:
        self._records[name] = record
        write_record(self.run / STAGES, self._records)


def _hashes(folder: Path, names: tuple[str, ...]) -> dict[str, str] | None:
    """SHA-256 by name; None if a file cannot be read."""
    try:
        return {name: file_digest(folder / name) for name in names}
    except ArtefactError:
        return None
