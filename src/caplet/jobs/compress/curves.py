"""The two curves that the choice is made on: accuracy against pruning, and against width, a few points of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.jobs.compress.choose import Pruned, Size, Width
from caplet.jobs.compress.settings import BATCH, CompressSettings
from caplet.jobs.evaluate import float_predictions
from caplet.jobs.pruning import PruneSettings, Sizes, put_in_order, removals_for, spread_set
from caplet.jobs.stages import Stage, Stages
from caplet.lower import lower
from caplet.metrics import paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.program.arena import plan_memory
from caplet.prune.cost import cost_of
from caplet.prune.surgery import cut
from caplet.quant.calibrate import Calibration, calibrate
from caplet.quant.evaluator import Evaluator
from caplet.quant.tune import Tuner
from caplet.quant.widths import Widths, make_plan
from caplet.runs import RunFolder
from caplet.train.finetune import finetune, weights_digest

MODEL, POINT = "model.safetensors", "point.json"
IMAGES = 2000
"""Calibration images that a point is measured on."""
SCORED, CALIBRATED, TUNED = 1000, 256, 64
Note = Callable[[str], None]


@dataclass(frozen=True)
class Curves:
    """Measured points; ``curve`` begins with the model as it was, and goes on with less and less of it."""

    curve: tuple[Pruned, ...]
    widths: tuple[Width, ...]
    size: Callable[[Pruned, Width], Size]


def measure(
    model: CapsNet, splits: Splits, settings: CompressSettings, run: RunFolder, data: Mapping[str, Any], note: Note
) -> Curves:
    """Measure both curves on calibration images; every point is a stage in ``run``, so that a killed run goes on.

    A point that would empty a layer is left out, and said so.

    Args:
        data: what identifies the data, JSON values.
    """
    stages = Stages(run, note)
    images = spread_set(splits.calibration, IMAGES)
    right = float_predictions(model, images) == images.labels.numpy()
    whole = cost_of(model)
    curve = [Pruned(1.0, whole.macs, whole.parameters, 0.0, len(images), 0)]
    models = {1.0: model}
    common = {"model": weights_digest(model), "data": dict(data), "seed": settings.seed}
    asked = () if settings.prune.use == "no" else sorted(settings.prune.probes, reverse=True)
    for fraction in asked:
        inputs = {
            **common,
            "score": settings.prune.score,
            "macs": fraction,
            "steps": settings.prune.probe_steps,
            "lr": settings.prune.lr,
        }
        work = partial(_prune, model, splits, images, right, settings, fraction)
        try:
            done = stages.do(Stage(f"macs-{fraction:g}", inputs, work, (MODEL, POINT)))
        except ConfigError as error:
            note(f"macs-{fraction:g}: left out: {error}")
            break
        point = Pruned(**RunFolder(done.folder).read_json(POINT))
        note(f"{point.macs_kept:.1%} of the multiply-accumulates: {point.drop:+.2f} points")
        curve.append(point)
        models[point.macs_kept] = load_model(done.folder / MODEL)
    inputs = {**common, "widths": list(settings.quantize.probes)}
    done = stages.do(Stage("widths", inputs, partial(_widths, model, splits, images, right, settings, note), (POINT,)))
    widths = tuple(Width(**point) for point in RunFolder(done.folder).read_json(POINT))
    return Curves(tuple(curve), widths, _sizes(models, splits, settings))


def _prune(
    model: CapsNet,
    splits: Splits,
    images: ImageSet,
    right: NDArray[np.bool_],
    settings: CompressSettings,
    fraction: float,
    folder: Path,
    resume: bool,
) -> None:
    """One point of the pruning curve."""
    chosen = PruneSettings(
        score=settings.prune.score,
        macs=fraction,
        images=SCORED,
        lr=settings.prune.lr,
        batch_size=BATCH,
        seed=settings.seed,
    )
    order = put_in_order(model, splits.calibration, chosen)
    whole = Sizes.whole(model, chosen.units)
    smaller = cut(model, order.selection(removals_for(model, order, chosen, whole, 1.0)), order.structure)
    folder.mkdir(parents=True, exist_ok=True)
    steps = settings.prune.probe_steps
    if steps:
        tuning = chosen.finetuning(len(splits.train)).model_copy(update={"steps": steps, "epochs": 1 + steps})
        smaller = finetune(
            smaller, splits, folder / "finetune", tuning, teacher=model, resume=resume, progress=False
        ).model
    cost = cost_of(smaller)
    drop = paired(right, float_predictions(smaller, images) == images.labels.numpy()).loss
    point = Pruned(cost.macs / whole.macs, cost.macs, cost.parameters, drop, len(images), steps)
    save_model(smaller, folder / MODEL)
    RunFolder(folder).write_json(POINT, asdict(point))


def _widths(
    model: CapsNet,
    splits: Splits,
    images: ImageSet,
    right: NDArray[np.bool_],
    settings: CompressSettings,
    note: Note,
    folder: Path,
    resume: bool,
) -> None:
    """The width curve."""
    calibration = _calibration(model, splits)
    tuner = Tuner(model, calibration, spread_set(splits.calibration, TUNED).images)
    folder.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(model, images.images, images.labels, log_path=folder / "probes.jsonl")
    points = []
    for bits in sorted(settings.quantize.probes, reverse=True):
        plan = make_plan(model, tuner, Widths.uniform(len(model.groups()), bits))
        points.append(Width(bits, paired(right, evaluator.evaluate(plan).hits).loss, len(images)))
        note(f"{bits} bits everywhere: {points[-1].drop:+.2f} points")
    RunFolder(folder).write_json(POINT, [asdict(point) for point in points])


def _sizes(
    models: Mapping[float, CapsNet], splits: Splits, settings: CompressSettings
) -> Callable[[Pruned, Width], Size]:
    """Bytes by lowering each pruned model at each width; computed when first asked for."""

    @cache
    def calibration(macs_kept: float) -> Calibration:
        return _calibration(models[macs_kept], splits)

    @cache
    def size(pruned: Pruned, width: Width) -> Size:
        model = models[pruned.macs_kept]
        widths = Widths.uniform(len(model.groups()), width.bits)
        program = lower(model, make_plan(model, calibration(pruned.macs_kept), widths))
        return Size(program.firmware_bytes, plan_memory(program, settings.ram).bytes)

    return size


def _calibration(model: CapsNet, splits: Splits) -> Calibration:
    return calibrate(model, spread_set(splits.calibration, CALIBRATED).images)
