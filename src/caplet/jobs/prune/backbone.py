"""Prune the CNN under capsules to a fraction of the multiply-accumulates, fine-tune, and write a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet.data import Splits
from caplet.jobs.run import begin, check, open_test_split, ship
from caplet.metrics import Accuracy, Paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.cost import cost_of
from caplet.progress import Note, silent
from caplet.prune.backbone import prune_backbone
from caplet.prune.choices import BackbonePruneSettings
from caplet.runs.folder import read_record, write_record
from caplet.train.finetune import FinetuneTask, weights_digest
from caplet.train.loop import train
from caplet.train.loss import margin_loss
from caplet.train.settings import FinetuneSettings

MODEL, PRUNED, CANDIDATES, TUNING = "model.safetensors", "pruned.safetensors", "candidates.json", "tune"


@dataclass(frozen=True)
class BackboneRun:
    """A finished run.

    Attributes:
        model: the pruned and fine-tuned model, evaluation mode.
        path: its checkpoint.
        original, test: accuracy of the unpruned and of the pruned model on the test split, opened once.
        against: the two on the same test images.
        metrics: what ``metrics.json`` holds.
    """

    model: CapsNet
    path: Path
    original: Accuracy
    test: Accuracy
    against: Paired
    metrics: dict[str, Any]


def prune_backbone_model(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: BackbonePruneSettings,
    tuning: FinetuneSettings | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    note: Note = silent,
    bars: bool = False,
) -> BackboneRun:
    """Prune ``model``'s CNN, fine-tune it under the unpruned model, and write a run folder.

    Candidates are judged on ``splits.calibration``; batch norms and fine-tuning see ``splits.train``; the test split is
    opened once, at the end. An interrupted run goes on with ``resume``: after the candidates, or within fine-tuning.

    Args:
        tuning: of fine-tuning; None for none.

    Raises:
        ModelError: the model has no CNN, takes other images, or holds NaN weights.
        ConfigError: a target that no network of this kind meets; see :func:`caplet.prune.backbone.prune_backbone`.
        ToolMissing: torch-pruning is asked for and not installed.
        ArtefactError: the run folder cannot be used.
    """
    check(model, splits)
    resolved = {
        **settings.model_dump(mode="json"),
        "tuning": None if tuning is None else tuning.model_dump(mode="json"),
        "weights": weights_digest(model),
    }
    with begin("prune-backbone", out, splits, resolved, model, resume=resume, force=force) as run:
        if not (run / CANDIDATES).exists():
            found = prune_backbone(model, splits.train, splits.calibration, settings, margin_loss, note)
            save_model(found.model, run / PRUNED)
            candidates = [candidate.to_json() for candidate in found.candidates]
            refitted = None if found.refitted is None else found.refitted.to_json()
            write_record(run / CANDIDATES, {"best": found.best.index, "refitted": refitted, "candidates": candidates})
        pruned = load_model(run / PRUNED)
        result = pruned
        if tuning is not None:
            task = FinetuneTask(tuning, pruned, model)
            result = train(task, splits, run / TUNING, resume=resume, progress=bars).model
        answers = open_test_split(splits, model, {"pruned": result}, note)
        original, test, against = answers.accuracy(), answers.accuracy("pruned"), answers.against("pruned")
        before, after = cost_of(model), cost_of(result)
        metrics = {
            **read_record(run / CANDIDATES),
            "original": {"cost": before.to_json(), "test": original.to_json()},
            "pruned": {"cost": after.to_json(), "test": test.to_json()},
            "macs_kept": after.macs / before.macs,
            "parameters_kept": after.parameters / before.parameters,
            "paired": against.to_json(),
        }
        save_model(result, run / MODEL, {"pruned": True, "test": test.to_json(), "data": splits.info["name"]})
        metrics = ship(run, splits, metrics, answers, result="pruned")
        return BackboneRun(result, run / MODEL, original, test, against, metrics)
