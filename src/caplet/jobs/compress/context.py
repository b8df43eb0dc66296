"""What all stages of a compression share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from caplet.data import Splits
from caplet.jobs.compress.settings import CompressSettings
from caplet.jobs.train import fit_to_data, resolve_recipe, train_by_recipe
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.progress import Note, Progress
from caplet.runs.folder import METRICS, RunFolder
from caplet.runs.stages import Done, RunStage, Stages
from caplet.train.finetune import TeacherAnswers

TRAIN = "train"
FLOAT = "model.safetensors"


@dataclass
class Context:
    """A run's folder, data and settings, whom to tell, and the stages done so far.

    Attributes:
        answers: what the float model is known to answer as a teacher, shared by all networks that learn from it.
        done: by stage, in order.
        threads: of the CPU, that everything computes with.
    """

    run: RunFolder
    splits: Splits
    settings: CompressSettings
    note: Note
    progress: Progress | None
    bars: bool
    answers: TeacherAnswers = field(default_factory=TeacherAnswers)
    done: dict[str, Done] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = Stages(self.run, self.note)
        self.threads = torch.get_num_threads()
        self.data: dict[str, Any] = {"name": self.splits.info["name"], "hashes": self.splits.info["hashes"]}

    def do(self, name: str, inputs: dict[str, Any], work: Callable[[Path, bool], None], *outputs: str) -> Done:
        """Do a stage."""
        done = self.stages.do(RunStage(name, {**inputs, "data": self.data}, work, outputs))
        self.done[name] = done
        return done

    def trained(self) -> CapsNet:
        """The stage that trains the recipe."""
        settings = self.settings
        recipe = settings.recipe
        assert recipe is not None
        changes = {"calibration_size": len(self.splits.calibration)}

        def work(folder: Path, resume: bool) -> None:
            train_by_recipe(
                recipe,
                folder,
                root=settings.root,
                data=settings.data,
                size=settings.size,
                channels=settings.channels,
                changes=changes,
                resume=resume,
                progress=self.bars,
            )

        resolved = fit_to_data(resolve_recipe(recipe, changes), self.splits)
        done = self.do(TRAIN, {"settings": resolved.model_dump(mode="json")}, work, FLOAT, METRICS)
        return load_model(done.folder / FLOAT)
