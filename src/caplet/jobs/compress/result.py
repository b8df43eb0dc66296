"""What a compression gives."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.files import access
from caplet.jobs.evaluate import evaluate
from caplet.jobs.ship import export_c
from caplet.metrics import Accuracy
from caplet.program import Program
from caplet.program.c.emit import EmitSettings, Export
from caplet.program.interpreter import RunResult, run
from caplet.runtime.engine import Engine


@dataclass(frozen=True)
class CompressedModel:
    """A compressed network: integers, and where everything about them is.

    Attributes:
        met: whether all limits are kept.
        program: the integer Program.
        folder: the run folder: ``model.caplet``, ``metrics.json``, ``report.html``, ``firmware/`` and every stage.
        metrics: what ``metrics.json`` holds.
    """

    met: bool
    program: Program
    folder: Path
    metrics: dict[str, Any]

    def run(self, images: NDArray[np.uint8]) -> RunResult:
        """Class capsules and predictions of images uint8 (N, C, H, W). Raises DataError for others."""
        return run(self.program, images)

    def accuracy(self, images: ImageSet, *, engine: Engine | str = Engine.AUTO) -> Accuracy:
        """Accuracy of the integers; see :func:`caplet.jobs.evaluate.evaluate` for what is raised."""
        return evaluate(self.program, images, engine=engine).accuracy

    def save(self, path: str | Path) -> None:
        """Copy the ``.caplet`` file to ``path``. Raises ArtefactError when it cannot be written."""
        with access("write", path):
            shutil.copyfile(self.folder / MODEL, path)

    def export_c(self, folder: str | Path, settings: EmitSettings | None = None) -> Export:
        """Write C99 sources to a new folder; see :func:`caplet.jobs.ship.export_c`."""
        return export_c(self.program, folder, settings)

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / REPORT


MODEL, REPORT = "model.caplet", "report.html"
