"""Fine-tune a trained model, in float or under a plan: train, ship the integers, measure them, write the run folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.files import write_bytes
from caplet.jobs.quantize.accept import write_model
from caplet.jobs.quantize.job import CALIBRATION_IMAGES
from caplet.jobs.run import SplitAnswers, begin, check, evaluate, open_test_split, ship, training_notes
from caplet.jobs.train import CURVES, MODEL, parse_changes
from caplet.lower import lower
from caplet.metrics import Accuracy, Paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import save_model
from caplet.nn.device import AUTO, TRAINING, find_device, placed
from caplet.program import Program
from caplet.progress import Note, silent
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import KINDS, Widths, bits_in_use, group_units, make_plan
from caplet.report.training import learning_curves
from caplet.runtime.engine import Engine
from caplet.train.finetune import FinetuneTask, weights_digest
from caplet.train.loop import train
from caplet.train.qat import QatSettings, QatTask
from caplet.train.settings import FinetuneSettings

ROLE = "finetuned"


@dataclass(frozen=True)
class FinetuneRun:
    """A finished fine-tuning run.

    Attributes:
        model: the fine-tuned float weights.
        model_path: their checkpoint.
        plan: the plan with the exponents that the weights were trained for; None without one.
        program, program_path: the integer Program and its ``.caplet`` file; None without a plan.
        test: accuracy on the test split, opened once: the Program's, or the float model's without a plan.
        against_start: the float model given and the result on the test images, paired.
        metrics: what ``metrics.json`` holds.
    """

    model: CapsNet
    model_path: Path
    plan: QuantPlan | None
    program: Program | None
    program_path: Path | None
    test: Accuracy
    against_start: Paired
    metrics: dict[str, Any]


def finetune_settings(changes: list[str] | dict[str, Any] | None = None, *, under_plan: bool) -> FinetuneSettings:
    """The default settings with some of them changed; those of quantization-aware training ``under_plan``.

    Args:
        changes: settings by name, or ``NAME=VALUE`` texts. ``steps`` alone run as many epochs as they need.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    changed = parse_changes(changes or {})
    if changed.get("steps") is not None:
        changed.setdefault("epochs", changed["steps"])  # an epoch has at least one step
    return (QatSettings if under_plan else FinetuneSettings).of(changed, "finetune")


def plan_of_widths(model: CapsNet, splits: Splits, text: str) -> QuantPlan:
    """A plan from widths such as ``"conv1=4/5, primary=2/5, digit=3/5/6"``: weights/activations/routing by group.

    The routing width is the activations' where it is left out. Exponents are those of least squared error on images of
    the calibration split.

    Raises:
        ConfigError: not such a list, or not exactly one entry per group of ``model.groups()``.
        PlanError: a width outside 1..16.
    """
    found: dict[str, list[int]] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([\w.]+)\s*=\s*(\d{1,3})/(\d{1,3})(?:/(\d{1,3}))?\s*", part)
        if match is None or match[1] in found:
            raise ConfigError(
                f"widths: {part.strip()!r}; the rule is GROUP=WEIGHTS/ACTIVATIONS or GROUP=WEIGHTS/ACTIVATIONS/ROUTING,"
                " each group once, e.g. conv1=4/5, primary=2/5, digit=3/5/6"
            )
        found[match[1]] = [int(match[2]), int(match[3]), int(match[4] or match[3])]
    groups = model.groups()
    if set(found) != set(groups):
        wrong = sorted(set(found) ^ set(groups))
        raise ConfigError(f"widths: {wrong[0]!r}; give one entry for each group of the model: {', '.join(groups)}")
    bits = {f"{group} {kind}": width for group in groups for kind, width in zip(KINDS, found[group], strict=True)}
    units = group_units(model)
    widths = Widths(tuple(unit.name for unit in units), tuple(bits[unit.name] for unit in units))
    calibration = calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images)
    return make_plan(calibration, units, widths)


def finetune_model(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    plan: QuantPlan | None = None,
    settings: FinetuneSettings | None = None,
    *,
    teacher: CapsNet | None = None,
    resume: bool = False,
    force: bool = False,
    engine: Engine | str = Engine.AUTO,
    note: Note = silent,
    progress: bool = False,
    device: str = AUTO,
) -> FinetuneRun:
    """Fine-tune ``model`` and write a run folder; with a plan, train its numbers and ship the integers.

    Training and the choice of the kept epoch see ``splits.train`` and ``splits.calibration``; ``splits.test`` is opened
    once, at the end. With a plan the accuracy reported is the integer Program's.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``.
        plan: formats to train for; widths stay, exponents move as the settings say.
        settings: :class:`~caplet.train.qat.QatSettings` with a plan, else :class:`FinetuneSettings`.
        teacher: a float model to follow; with a plan, ``model`` itself where none is given.
        engine: what runs the Program.
        note: called with one line of text at every step and alarm.
        progress: progress bar and one line per epoch on stderr.
        device: of training; see :func:`caplet.train.loop.train`.

    Raises:
        PlanError: the plan does not fit the model. ModelError, ConfigError, ArtefactError: see their messages.
        KeyboardInterrupt: interrupted; ``resume`` goes on.
    """
    engine, under_plan = Engine(engine), plan is not None
    there = find_device(device, TRAINING, exact=under_plan)
    settings = settings or finetune_settings(under_plan=under_plan)
    if isinstance(settings, QatSettings) != under_plan:
        raise ConfigError("finetune: QatSettings go with a plan, FinetuneSettings go without one")
    teacher = model if teacher is None and under_plan else teacher
    splits = check(splits, model, teacher, note=note)
    resolved = {
        **settings.model_dump(mode="json"),
        "model": weights_digest(model),
        "teacher": None if teacher is None else weights_digest(teacher),
        "plan": None if plan is None else plan.digest(),
    }
    if plan is not None:
        lower(model, plan)  # refuses now what could not be shipped after hours of training
    job = "qat" if under_plan else "finetune"
    with begin(job, out, splits, resolved, model, resume=resume, force=force) as run:
        if plan is None:
            program = path = None
            task = FinetuneTask(settings, model, teacher)
            result = train(task, splits, run, resume=resume, progress=progress, device=device)
            answers = open_test_split(splits, placed(model, there), {ROLE: placed(result.model, there)}, note)
            outcome = _measured(answers)
        else:
            assert isinstance(settings, QatSettings)
            before = evaluate(lower(model, plan), splits.calibration, engine=engine).accuracy
            note(f"integers before training, calibration split: {before}")
            learner = QatTask(settings, model, teacher, plan, note)
            result = train(learner, splits, run, resume=resume, progress=progress, device=device)
            plan, alarms = learner.plan, learner.alarms
            program = lower(result.model, plan, labels=splits.test.classes, meta={"family": result.model.family})
            path, written = write_model(run, ROLE, program, result.model, plan)
            after = evaluate(program, splits.calibration, engine=engine).accuracy
            if after.correct < before.correct:
                alarms.append(
                    f"the integers have {after.correct:,} of {after.n:,} calibration images right after training, and"
                    f" had {before.correct:,} before it: lower lr, or train longer"
                )
                note(f"warning: {alarms[-1]}")
            answers = open_test_split(splits, placed(model, there), {ROLE: program}, note, engine)
            record = {
                **written,
                "widths": bits_in_use(result.model, plan),
                "calibration_before": before,
                "calibration": after,
                **_measured(answers),
            }
            outcome = {"models": [record], "alarms": alarms}
        metrics = {
            **outcome,
            "float": {"test": answers.accuracy(), "weight_bytes": 4 * count_memory(model).total.weights},
            "finetune": {
                "epoch": result.epoch,
                "steps": result.history[-1]["global_step"],
                "calibration_accuracy": result.calibration_accuracy,
                "seconds": round(result.seconds, 1),
                "images_per_second": round(result.images_per_second, 1),
                "history": result.history,
            },
        }
        metrics = ship(run, splits, metrics, answers, {} if program is None else {ROLE: program}, ROLE)
        result.model.notes = {"data": metrics["data"], "epoch": result.epoch, **training_notes(splits, model)}
        save_model(result.model, run / MODEL, result.model.notes)
        write_bytes(run / CURVES, learning_curves(result.history, f"fine-tuning on {metrics['data']}"))
        test, against = answers.accuracy(ROLE), answers.against(ROLE)
        return FinetuneRun(result.model, run / MODEL, plan, program, path, test, against, metrics)


def _measured(answers: SplitAnswers) -> dict[str, Any]:
    return {"test": answers.accuracy(ROLE), "paired": answers.against(ROLE)}
