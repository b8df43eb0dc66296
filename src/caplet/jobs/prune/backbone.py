"""Prune the CNN under capsules to a fraction of the multiply-accumulates, fine-tune, and write a run folder."""

from pathlib import Path

from caplet.data import Splits
from caplet.jobs.prune.job import PruneResult, ship_pruned
from caplet.jobs.run import begin, check, job_device, training_notes
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.nn.device import AUTO, TRAINING, computing, placed
from caplet.progress import Note, silent
from caplet.prune.backbone import prune_backbone
from caplet.prune.choices import BackbonePruneSettings
from caplet.runs.folder import read_record, write_record
from caplet.train.finetune import FinetuneTask, weights_digest
from caplet.train.loop import train
from caplet.train.loss import margin_loss
from caplet.train.settings import FinetuneSettings
from caplet.workers.settings import WorkerSettings

PRUNED, CANDIDATES, TUNING = "pruned.safetensors", "candidates.json", "tune"


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
    workers: WorkerSettings | None = None,
    device: str = AUTO,
) -> PruneResult:
    """Prune ``model``'s CNN, fine-tune it under the unpruned model, and write a run folder.

    Candidates are judged on ``splits.calibration``; batch norms and fine-tuning see ``splits.train``; the test split is
    opened once, at the end. An interrupted run goes on with ``resume``: after the candidates, or within fine-tuning.

    Args:
        tuning: of fine-tuning; None for none.
        workers: who measures candidates; None for this process alone.
        device: as of :func:`caplet.jobs.prune.job.prune`; workers compute on the CPU.

    Raises:
        ModelError: the model has no CNN, takes other images, or holds NaN weights.
        ConfigError: a target that no network of this kind meets; see :func:`caplet.prune.backbone.prune_backbone`.
        ToolMissing: torch-pruning is asked for and not installed.
        ArtefactError: the run folder cannot be used. WorkerError: a worker cannot be used, or a candidate failed there.
    """
    there = job_device(device, workers, TRAINING, exact=False)
    splits = check(splits, model, note=note)
    resolved = {
        **settings.model_dump(mode="json"),
        "tuning": None if tuning is None else tuning.model_dump(mode="json"),
        "weights": weights_digest(model),
    }
    with computing(there), begin("prune-backbone", out, splits, resolved, model, resume=resume, force=force) as run:
        model = placed(model, there)
        if not (run / CANDIDATES).exists():
            with (workers or WorkerSettings()).open(note) as team:
                found = prune_backbone(model, splits.train, splits.calibration, settings, margin_loss, note, team)
            save_model(found.model, run / PRUNED, training_notes(splits, model))
            candidates = [candidate.to_json() for candidate in found.candidates]
            record = {"best": found.best.index, "refitted": found.refitted, "candidates": candidates}
            write_record(run / CANDIDATES, record)
        result = load_model(run / PRUNED).to(there)
        if tuning is not None:
            task = FinetuneTask(tuning, result, model)
            result = train(task, splits, run / TUNING, resume=resume, progress=bars, device=device).model.to(there)
        return ship_pruned(run, splits, model, result, read_record(run / CANDIDATES, dict), note)
