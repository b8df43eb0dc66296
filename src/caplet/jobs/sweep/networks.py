"""The networks of a sweep: which ones are drawn, what one takes, and one made and measured, for a trial or in full."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from caplet.data import Splits
from caplet.data.splits import stratified_choice
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.prune.targets import network_sizes, put_in_order, removals_for
from caplet.jobs.run import classify, training_notes
from caplet.jobs.sweep.settings import SweepSettings
from caplet.jobs.train import fit_to_data
from caplet.lower import lower
from caplet.metrics import accuracy
from caplet.models.architectures import ARCHITECTURES
from caplet.models.base import CapsNet
from caplet.models.checkpoint import save_model
from caplet.models.cost import cost_of
from caplet.program import Program
from caplet.program.file import save_program
from caplet.program.program import CODE_BYTES
from caplet.program.within import plan_within
from caplet.prune.structure import cut
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runs.folder import METRICS, write_record
from caplet.runs.swept import TrialMetrics
from caplet.train.finetune import FinetuneTask
from caplet.train.loop import train
from caplet.train.loss import evaluate
from caplet.train.settings import TrainSettings
from caplet.train.task import build_model, plan_model

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MODEL, PROGRAM = "model.safetensors", "model.caplet"
WEIGHT_BITS, BITS = 4, 8
"""Of weights, which narrow further in the end, and of computed tensors, in the integers of a trial or in full."""
SHOWN = {True: (200_000, 4, 120), False: (20_000, 5, 15)}
"""Images that a network in full, and a trial, are shown, counted as often as they are; fewest and most epochs."""
JUDGES, CALIBRATED, GUESSED = 2000, 256, 4
"""Calibration images that judge a trial; images that choose exponents; training images that do for an estimate."""
TRUNK, TRUNK_ROWS = "mobilenetv1", 16
"""A trunk whose first blocks are drawn, and rows that an image needs for it, and for four convolutions."""
PLANS = ("fast", "small")
"""Memory plans of which the smaller one counts, unless the limit of RAM asks for another."""
Report = Callable[[dict[str, Any]], None]


class Network(NamedTuple):
    """Its model and settings, the fraction of the multiply-accumulates that pruning leaves, and a line on it."""

    model: str
    overrides: dict[str, Any]
    keep: float
    text: str


def draw(trial: "BaseTrial", rows: int) -> Network:
    """Convolutions or the first blocks of a MobileNetV1, primary capsules, class capsules; perhaps too large for images
    of so many ``rows`` and columns."""
    choice, whole = trial.suggest_categorical, trial.suggest_int
    primary = {"types": whole("types", 2, 32, log=True), "dim": choice("dim", (4, 8))}
    dim, iterations, keep = choice("class_dim", (4, 8, 16)), whole("iterations", 1, 3), 1.0
    family = choice("family", ("plain", "normed", "trunk") if rows >= TRUNK_ROWS else ("plain", "normed"))
    if family == "trunk":
        width, count = choice("width", (0.25, 0.5)), whole("blocks", 3, 8)
        trunk = ARCHITECTURES[TRUNK].make(width)
        overrides: dict[str, Any] = {"trunk": trunk.model_copy(update={"blocks": trunk.blocks[:count]}).model_dump()}
        text = f"{count} blocks of {TRUNK} {width:g} + {{types}} types of {{dim}}".format(**primary)
    else:
        kernels = [kernel for kernel in (3, 5, 7, 9) if 2 * kernel <= rows + 2]
        channels, depth = whole("channels", 4, 64, log=True), whole("depth", 1, 4 if rows >= TRUNK_ROWS else 3)
        growth, stem = choice("growth", (1.0, 1.5, 2.0)), list[dict[str, Any]]()
        for index in range(depth):
            kernel, stride = choice("kernel", kernels) if index == 0 else 3, choice(f"stride{index}", (1, 2))
            wide = max(4, 4 * round(channels * (growth if 2 * index >= depth else 1) / 4))
            stem.append({"kernel": kernel, "stride": stride, "channels": wide})
        text = " + ".join("{channels} of {kernel}x{kernel}/{stride}".format(**conv) for conv in stem)
        text += ", batch norms" * (family == "normed")
        overrides = {"stem": [each | {"batch_norm": 1e-3 if family == "normed" else None} for each in stem]}
        primary |= {"kernel": choice("primary_kernel", kernels), "stride": choice("primary_stride", (1, 2))}
        text += " + {types} types of {dim}, {kernel}x{kernel}/{stride}".format(**primary)
        keep = choice("keep", (1.0, 0.7, 0.5, 0.35))
    text += f" + classes of {dim}, {iterations} iterations" + (f", pruned to {keep:.0%}" if keep < 1 else "")
    overrides |= {f"primary_{name}": value for name, value in primary.items()}
    overrides |= {"class_dim": dim, "iterations": iterations}
    return Network(f"{TRUNK}-caps" if family == "trunk" else "shallow", overrides, keep, text)


class Maker:
    """Makes networks: in full with all of ``splits``, for a trial with ``few``."""

    def __init__(self, settings: SweepSettings, splits: Splits) -> None:
        images, judges = splits.train, splits.calibration.evenly_spaced(JUDGES)
        count = min(settings.trial_images, len(images))
        chosen = images.subset(stratified_choice(images.labels, images.ids, count, seed=settings.seed))
        self.settings, self.splits = settings, splits
        self.few = replace(splits, train=chosen, calibration=judges)

    def recipe(self, full: bool, network: Network | None = None) -> TrainSettings:
        """How a network is trained. Raises ConfigError."""
        settings, images = self.settings, (self.splits if full else self.few).train
        shown, fewest, most = SHOWN[full]
        epochs = settings.epochs if full else settings.trial_epochs
        values = {"lr": 4e-3, "batch_size": 32, "ema": 0.98, "initial_norms": {"digit": 0.3}, "threads": 1}
        values |= {"epochs": epochs or min(max(round(shown / len(images)), fewest), most), "seed": settings.seed}
        values |= {"shift": min(2, images.image_shape[1] // 14), **settings.train, "dataset": self.splits.info["name"]}
        values |= {"model": network.model, "overrides": network.overrides} if network else {"model": "shallow"}
        return fit_to_data(TrainSettings.of(values), self.splits)

    def estimate(self, network: Network) -> dict[str, Any]:
        """What the untrained network takes (:func:`sizes`), constants and work as far as pruning leaves them. Raises
        ModelError, PlanError: there is no such network for these images, or none in integers."""
        recipe, keep = self.recipe(False, network), network.keep
        cost = cost_of(plan_model(recipe))
        packed, macs = round(keep * cost.parameters * WEIGHT_BITS / 8), round(keep * cost.macs)
        least = {"flash": CODE_BYTES + packed, "ram": 0, "macs": macs}
        if self.settings.limits.excess(least):
            return least  # what cannot fit is not built
        with torch.random.fork_rng(devices=[]):
            taken, program = sizes(build_model(recipe).eval(), self.few.train.images[:GUESSED], self.settings.ram)
        pruned = round((1 - keep) * program.flash_bytes)
        return taken | {"flash": taken["flash"] - pruned, "macs": macs}

    def make(self, number: int, network: Network, run: Path, full: bool, report: Report | None = None) -> TrialMetrics:
        """Train a network, prune it, measure its integers, and write all of it to its run folder, which is open.

        ``report`` is called with each epoch's record. Raises CapletError: training diverged, or pruning cannot do it.
        """
        began, splits, recipe = time.monotonic(), self.splits if full else self.few, self.recipe(full, network)
        found = train(recipe, splits, run, resume=True, progress=False, on_epoch=report)
        model, judges = found.model, splits.calibration
        if network.keep < 1:
            model = _pruned(model, network.keep, splits, recipe, run / "finetune")
        taken, program = sizes(model, judges.evenly_spaced(CALIBRATED).images, self.settings.ram, judges.classes)
        correct, reference = int((classify(program, judges) == judges.labels.numpy()).sum()), evaluate(model, judges)
        metrics = TrialMetrics(
            number,
            "full" if full else "made",
            network.text,
            **taken,
            accuracy=accuracy(correct, len(judges)),
            reference=accuracy(reference.correct, len(judges)),
            loss=reference.loss,
            folder=f"{run.parent.name}/{run.name}",
            seconds=round(time.monotonic() - began, 1),
            epoch=found.epoch,
            history=tuple(found.history),
        )
        save_model(model, run / MODEL, training_notes(splits))
        save_program(program, run / PROGRAM)
        write_record(run / METRICS, metrics)
        return metrics


def sizes(
    model: CapsNet, images: Tensor, ram: int | None, labels: tuple[str, ...] = ()
) -> tuple[dict[str, Any], Program]:
    """What the Program with weights of 4 bits takes, by the names of limits (``flash``, ``ram``, ``macs``), and itself.

    ram: the limit, by which the memory plan is chosen (:func:`plan_within`). The RAM is enough for weights of other
    widths, too: bytes, or unpacked into it. ``images`` uint8 (N, C, H, W) choose exponents. Raises PlanError,
    ModelError: there is no integer form.
    """
    source, meta = calibrate(model, images), {"family": model.family}
    plans = (uniform_plan(model, source, bits, activations=BITS) for bits in (WEIGHT_BITS, BITS))
    program, wider = (lower(model, plan, labels=labels, meta=meta) for plan in plans)
    arenas = [plan_within(each, ram, PLANS)[0] for each in (program, wider)]
    flash = program.firmware_bytes + max(arena.code_bytes for arena in arenas)
    return {"flash": flash, "ram": max(arena.bytes for arena in arenas), "macs": cost_of(model).macs}, program


def _pruned(model: CapsNet, keep: float, splits: Splits, recipe: TrainSettings, folder: Path) -> CapsNet:
    """The network with a fraction of its multiply-accumulates, fine-tuned for a third of the epochs."""
    same = recipe.model_dump(include={"batch_size", "shift", "flip", "threads", "seed"})
    settings = PruneSettings(macs=keep, epochs=max(1, recipe.epochs // 3), **same)
    order, whole = put_in_order(model, splits.calibration, settings), network_sizes(model, settings.units)
    smaller = cut(model, order.selection(removals_for(model, order, settings, whole, 1.0)), order.structure)
    task = FinetuneTask(settings.finetuning(len(splits.train)), smaller, model)
    return train(task, splits, folder, resume=True, progress=False).model
