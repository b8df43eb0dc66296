"""Compression as one job: measure two curves, choose a pair, try it and its neighbours, finish the network found."""

from pathlib import Path
from typing import Any

import torch

from caplet.data import Splits, load_data
from caplet.data.validation import load_validation
from caplet.errors import ArtefactError, ConfigError
from caplet.files import write_text
from caplet.jobs.compress.attempts import FIRST, Attempts
from caplet.jobs.compress.choose import choose
from caplet.jobs.compress.curves import IMAGES, Context, Measurement
from caplet.jobs.compress.finish import SENSITIVITY, CompressedModel, Finish
from caplet.jobs.compress.settings import BATCH, CompressSettings, settings_template
from caplet.jobs.quantize.promise import FIRST_IMAGES, SEARCH_FRACTION, check_tolerance
from caplet.jobs.report import write_report
from caplet.jobs.run import begin, check, check_size, correct_images, held_out, job_device
from caplet.jobs.timing import FORWARD, forward_rate, training_rate
from caplet.jobs.train import fit_to_data, resolve_recipe
from caplet.jobs.trained import model_file
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.cost import cost_of
from caplet.nn.device import AUTO, computing, placed
from caplet.progress import Note, Progress, silent
from caplet.runs.folder import write_record
from caplet.train.finetune import weights_digest
from caplet.train.task import build_model
from caplet.workers.settings import WorkerSettings, team_of

CURVES, CHOICE = "curves", "choice.json"


def compress(
    model: CapsNet | None,
    splits: Splits | None,
    out: str | Path,
    settings: CompressSettings,
    *,
    resume: bool = False,
    force: bool = False,
    threads: int | None = None,
    note: Note = silent,
    progress: Progress | None = None,
    bars: bool = False,
    workers: WorkerSettings | None = None,
    device: str = AUTO,
) -> CompressedModel:
    """Prune, fine-tune and quantize ``model`` until it keeps to the limits; write, verify and report the result.

    How much is left to pruning and how much to widths is chosen from a few measured points of either. Decisions see
    ``splits.calibration``, of which a part is set aside to accept results (see :mod:`caplet.jobs.quantize.promise`),
    and, for fine-tuning, ``splits.train``. Every stage is a run folder of its own, and its last
    act is to measure the test split; no stage reads what another one measured there.

    Args:
        model: None takes the settings' model, or trains their recipe first.
        splits: None loads the data that the settings name.
        out: the run folder. ``resume`` goes on with the same settings; ``force`` also takes a folder with other
            settings. Either way finished stages whose inputs are equal are kept.
        threads: of the CPU; None for torch's choice.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) during measurements.
        bars: progress bars on stderr while data are read and networks are trained.
        workers: who measures the curve of widths, and noises in searches; None for this process alone.
        device: of every stage; ``auto``: training and pruning take a GPU that is there, all else the CPU.

    Returns:
        The network; where no attempt keeps to all limits, the one that comes nearest, with ``met`` False.

    Raises:
        ModelError: NaN weights, images of another size, a layer without a pruning rule or an integer form.
        ConfigError: settings out of range, or others than those of the run to resume.
        ArtefactError: the run folder cannot be used.
        DataError: the data that the settings name cannot be used.
    """
    there = job_device(device, workers)
    if threads is not None:
        torch.set_num_threads(threads)
    if model is None and settings.model is not None:
        model = load_model(model_file(settings.model, ".safetensors"), assume=settings.assume)
    if splits is None:
        check_size(model, settings.size, settings.channels)
        splits = load_splits(settings, bars)
    if model is not None:
        splits = check(splits, model, note=note)
        if model.assumed:
            note(f"assumed: {model.assumed}")
    elif settings.recipe is None:
        raise ConfigError("compress: no model, and the settings name no recipe; give one of them")
    if settings.accept == "confidence":  # refuse before anything is trained what can be refused
        if settings.validation in (None, "calibration"):
            fresh = len(splits.calibration) - round(SEARCH_FRACTION * len(splits.calibration))
            familiar = model is not None and settings.validation is None and not held_out(model, splits)
            if familiar and fresh >= 2 * FIRST_IMAGES:
                fresh //= 2  # those that are not moved decide alone, too
        elif settings.validation in ("train", "test"):
            raise ConfigError(f"compress: validation: {settings.validation} images may not decide; give a folder")
        else:
            fresh = len(load_validation(Path(settings.validation), splits)[0])
        check_tolerance(settings.limits.max_drop, fresh, FIRST * (1 - settings.confidence), "images that decide")
    asked = settings.model_dump(mode="json", exclude={"labels_by_order", *([] if settings.assume else ["assume"])})
    resolved = {**asked, "weights": None if model is None else weights_digest(model)}
    with (
        team_of(workers, note) as team,
        begin("compress", out, splits, resolved, resume=resume, force=force) as run,
        computing(there),
    ):
        context = Context(run, splits, settings, note, progress, bars, team, device=device, there=there)
        result = _compressed(context, context.trained() if model is None else placed(model, there))
    folders = [result.folder / name for name in (*reversed(result.metrics["folders"]), SENSITIVITY)]
    write_report([result.folder, *folders], result.report)
    return result


def _compressed(context: Context, model: CapsNet) -> CompressedModel:
    """Everything after training: measure, choose, prune and quantize, finish."""
    context.divide(model)
    settings, correct = context.settings, correct_images(model, context.splits.calibration)
    curves = Measurement(context, model, context.run / CURVES).all()
    pruned = settings.prune.use == "yes" and len(curves.curve) > 1
    candidates = curves.curve[1:] if pruned else curves.curve  # with the model as it was, unless it must be pruned
    choice = choose(candidates, curves.widths, curves.size, settings.limits)
    for reason in choice.reasons:
        context.note(reason)
    write_record(context.run / CHOICE, choice.to_json())
    attempts = Attempts(context, model, correct)
    best = attempts.best(candidates, choice)
    return Finish(context, model, correct, best).all(curves, choice, attempts.tried)


_FAKE = 2.0
"""Times that a fake-quantized pass takes as long as a float one."""
_SEARCH_PASSES = 12
"""Full passes of the calibration images that a search for widths is reckoned with."""
_TORCH_BYTES, _CACHE_BYTES = 500_000_000, 1_600_000_000


def write_settings(path: str | Path, *, model: str | None, recipe: str, data: str, force: bool = False) -> None:
    """Write a commented settings file. Raises ArtefactError where there is one already, or none can be written."""
    path = Path(path)
    if path.exists() and not force:
        raise ArtefactError(f"{path} exists; choose another name, or --force")
    write_text(path, settings_template(model, recipe, data))


def load_splits(settings: CompressSettings, progress: bool = False) -> Splits:
    """The data that the settings, or their recipe, name. Raises DataError, ConfigError."""
    recipe = None if settings.recipe is None else resolve_recipe(settings.recipe, {})
    name = settings.data or (recipe.dataset if recipe is not None else "")
    size = settings.calibration_size or (recipe.calibration_size if recipe is not None else None)
    files = settings.model_dump(include={"root", "size", "channels", "background", "labels_by_order"})
    return load_data(name, calibration_size=size, progress=progress, **files)


def estimate_compression(
    settings: CompressSettings, *, threads: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """What a compression would do, with estimated minutes and peak memory, from the speed of a few batches here.

    Returns:
        JSON values: ``stages`` (stage, about, minutes), ``minutes``, ``memory_bytes``.

    Raises:
        ModelError, DataError, ConfigError: the model, the recipe or the data cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    splits = load_splits(settings, progress)
    rows: list[tuple[str, str, float]] = []  # stage, about, seconds
    if settings.recipe is None:
        assert settings.model is not None
        model = load_model(model_file(settings.model, ".safetensors"), assume=settings.assume)
        splits = check(splits, model)
    else:
        recipe = fit_to_data(resolve_recipe(settings.recipe, {}), splits)
        model = build_model(recipe)
        spent = recipe.epochs * len(splits.train) / training_rate(model, recipe.precision)
        rows.append(("train", f"recipe {settings.recipe}", spent))
    arithmetic = settings.prune.arithmetic
    infer, teach, train = forward_rate(model), forward_rate(model, arithmetic), training_rate(model, arithmetic)
    tested, scored = (len(splits.calibration) + len(splits.test)) / infer, settings.pruning(1.0).images / train
    fractions = () if settings.prune.use == "no" else settings.prune.probes
    shown = settings.prune.probe_steps * BATCH
    looked = min(IMAGES, len(splits.calibration)) / infer
    spent = sum((shown / train + 3 * looked) * fraction for fraction in fractions)  # training looks at them, too
    spent += looked * (1 + _FAKE * len(settings.quantize.probes))
    if fractions:
        spent += scored + shown / teach
    about = f"at most {len(fractions)} amounts of pruning, {len(settings.quantize.probes)} widths"
    rows.append(("curves", about, spent))
    if fractions:
        epochs = settings.finetuned(len(splits.train))
        seen = epochs * len(splits.train)
        spent = seen * max(fractions) / train + seen / teach + scored + tested
        rows.append(("prune", f"at most to {max(fractions):.0%}, {epochs:.3g} epochs", spent))
    seen = round(len(splits.calibration) * (SEARCH_FRACTION if settings.accept == "confidence" else 1))
    spent = _SEARCH_PASSES * seen / infer + tested
    rows.append(("quantize", f"{settings.quantize.method} on {seen:,} images", spent))
    about = f"{settings.verify.images} images, {settings.target}; the test split"
    rows.append(("firmware, verify", about, 60.0 + tested))
    cost = cost_of(model)
    batch = FORWARD * sum(layer.activation_bytes for layer in cost.layers)
    return {
        "stages": [{"stage": stage, "about": about, "minutes": seconds / 60} for stage, about, seconds in rows],
        "minutes": sum(seconds for *_, seconds in rows) / 60,
        "memory_bytes": _TORCH_BYTES + _CACHE_BYTES + 4 * cost.bytes + 2 * batch,
    }
