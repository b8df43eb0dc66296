"""A run of several stages: each is a folder, done once for equal inputs, and gone on with where it was killed."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet.errors import ArtefactError
from caplet.files import access, digest, file_digest
from caplet.progress import Note, silent
from caplet.runs.folder import read_record, sweep, write_record

STAGES = "stages.json"


@dataclass(frozen=True)
class Done:
    """A finished stage.

    Attributes:
        folder: where its files are.
        outputs: SHA-256 (hex) by file name; what later stages take among their inputs.
        seconds: wall time of its work, all parts of an interrupted one together.
        skipped: whether it was found finished.
    """

    folder: Path
    outputs: dict[str, str]
    seconds: float
    skipped: bool


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
        found = read_record(run / STAGES) if (run / STAGES).exists() else {}
        self._records: dict[str, Any] = {name: record for name, record in found.items() if _sound(record)}

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
        folder, asked = self.run / name, digest(json.dumps(dict(inputs), sort_keys=True))
        before = self._records.get(name, {})
        equal = before.get("inputs") == asked
        if equal and before.get("outputs") and _hashes(folder, outputs) == before["outputs"]:
            self.note(f"{name}: unchanged, skipped")
            return Done(folder, before["outputs"], before["seconds"], True)
        resume = equal and not before.get("outputs") and folder.is_dir()
        if resume:
            sweep(folder)
        elif folder.exists():
            with access("remove", folder):
                shutil.rmtree(folder)
        spent = before.get("seconds", 0.0) if resume else 0.0
        self.note(f"{name}: going on" if resume else name)
        began = time.perf_counter()
        try:
            self._remember(name, {"inputs": asked, "seconds": spent})
            work(folder, resume)
        except BaseException:
            self._remember(name, {"inputs": asked, "seconds": spent + time.perf_counter() - began})
            raise
        found = _hashes(folder, outputs)
        if found is None:
            raise ArtefactError(f"{folder}: the stage ended without {', '.join(outputs)}; start it again")
        seconds = round(spent + time.perf_counter() - began, 1)
        self._remember(name, {"inputs": asked, "seconds": seconds, "outputs": found})
        return Done(folder, found, seconds, False)

    def _remember(self, name: str, record: dict[str, Any]) -> None:
        self._records[name] = record
        write_record(self.run / STAGES, self._records)


def _sound(record: Any) -> bool:
    """Whether a record is one of :meth:`Stages.do`; a stage whose record is not is done anew."""
    known = isinstance(record, dict) and isinstance(record.get("seconds"), int | float)
    return known and isinstance(record.get("outputs", {}), dict)


def _hashes(folder: Path, names: tuple[str, ...]) -> dict[str, str] | None:
    """SHA-256 by name; None if a file cannot be read."""
    try:
        return {name: file_digest(folder / name) for name in names}
    except ArtefactError:
        return None
