"""Compression as one job: measure two curves, choose a pair, try it and its neighbours, finish the network found."""

from __future__ import annotations

from pathlib import Path

from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.jobs.compress.attempts import Attempts
from caplet.jobs.compress.choose import Choice, choose
from caplet.jobs.compress.context import Context
from caplet.jobs.compress.curves import Curves, measure
from caplet.jobs.compress.finish import SENSITIVITY, Finish
from caplet.jobs.compress.result import CompressedModel
from caplet.jobs.compress.settings import CompressSettings
from caplet.jobs.evaluate import check_data, float_predictions
from caplet.jobs.report import write_report
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.progress import Note, Progress, silent
from caplet.runs.folder import SPLITS, RunFolder, open_run
from caplet.train.finetune import weights_digest

CURVES, CHOICE = "curves", "choice.json"


def compress(
    model: CapsNet | None,
    splits: Splits,
    out: str | Path,
    settings: CompressSettings,
    *,
    resume: bool = False,
    force: bool = False,
    note: Note = silent,
    progress: Progress | None = None,
    bars: bool = False,
) -> CompressedModel:
    """Prune, fine-tune and quantize ``model`` until it keeps to the limits; write, verify and report the result.

    How much is left to pruning and how much to widths is chosen from a few measured points of either. Decisions see
    ``splits.calibration`` and, for fine-tuning, ``splits.train``. Every stage is a run folder of its own, and its last
    act is to measure the test split; no stage reads what another one measured there.

    Args:
        model: None trains the settings' recipe first.
        out: the run folder. ``resume`` goes on with the same settings; ``force`` also takes a folder with other
            settings. Either way finished stages whose inputs are equal are kept.
        settings: its ``model``, ``recipe`` and ``data`` only say where ``model`` and ``splits`` came from.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) during measurements.
        bars: a progress bar on stderr while networks are trained.

    Returns:
        The network; where no attempt keeps to all limits, the one that comes nearest, with ``met`` False.

    Raises:
        ModelError: NaN weights, images of another size, a layer without a pruning rule or an integer form.
        ConfigError: settings out of range, or others than those of the run to resume.
        ArtefactError: the run folder cannot be used.
    """
    if model is not None:
        check_finite(named_tensors(model), f"model {model.family}")
        check_data(model, splits.calibration)
    elif settings.recipe is None:
        raise ConfigError("compress: no model, and the settings name no recipe; give one of them")
    resolved = {
        **settings.model_dump(mode="json"),
        "weights": None if model is None else weights_digest(model),
        "data_hashes": splits.info["hashes"],
    }
    with open_run(out, resolved, resume=resume, force=force) as run:
        splits.save_ids(run / SPLITS)
        context = Context(run, splits, settings, note, progress, bars)
        result = _compressed(context, context.trained() if model is None else model)
    folders = [result.folder / name for name in (*reversed(result.metrics["folders"]), SENSITIVITY)]
    write_report([result.folder, *folders], result.report)
    return result


def _compressed(context: Context, model: CapsNet) -> CompressedModel:
    """Everything after training."""
    calibration = context.splits.calibration
    right = float_predictions(model, calibration) == calibration.labels.numpy()
    curves, choice = _choice(context, model)
    attempts = Attempts(context, model, right)
    best = attempts.best(curves.candidates(context.settings), choice)
    return Finish(context, model, right, best).all(curves, choice, attempts.tried)


def _choice(context: Context, model: CapsNet) -> tuple[Curves, Choice]:
    """The measured curves, and what they say."""
    folder = context.run / CURVES
    folder.mkdir(exist_ok=True)
    curves = measure(context, model, RunFolder(folder))
    settings = context.settings
    choice = choose(curves.candidates(settings), curves.widths, curves.size, settings.limits)
    for reason in choice.reasons:
        context.note(reason)
    context.run.write_json(CHOICE, choice.to_json())
    return curves, choice
