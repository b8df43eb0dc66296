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
from caplet.models.assemble import skeleton
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
from caplet.train.task import build_model

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MODEL, PROGRAM = "model.safetensors", "model.caplet"
WEIGHT_BITS, BITS = 4, 8
"""Of weights, which narrow further in the end, and of computed tensors, in the integers of a trial or in full."""
SHOWN = {True: (200_000, 4, 120), False: (20_000, 5, 15)}
"""Images that a network in full, and a trial, are shown, counted as often as they are; fewest and most epochs."""
JUDGES, CALIBRATED, GUESSED = 2000, 256, 4
"""Calibration images that judge a trial; images that choose exponents; training images that do for an estimate."""
PLANS = ("fast", "small")
"""Memory plans of which the smaller one counts, unless the limit of RAM asks for another."""
Report = Callable[[dict[str, Any]], None]


class Network(NamedTuple):
    """Settings of its model, the fraction of the multiply-accumulates that pruning leaves, and a line on it."""

    overrides: dict[str, Any]
    keep: float
    text: str


def draw(trial: "BaseTrial", rows: int) -> Network:
    """Convolutions, primary capsules, class capsules; perhaps too large for images of so many ``rows`` and columns."""
    choice, whole = trial.suggest_categorical, trial.suggest_int
    kernels = [kernel for kernel in (3, 5, 7, 9) if 2 * kernel <= rows + 2]
    channels, growth, stem = float(whole("channels", 4, 64, log=True)), choice("growth", (1.0, 1.5, 2.0)), []
    for index in range(whole("depth", 1, 3)):
        kernel, stride = choice("kernel", kernels) if index == 0 else 3, choice(f"stride{index}", (1, 2))
        stem.append({"kernel": kernel, "stride": stride, "channels": max(4, 4 * round(channels / 4))})
        channels *= growth
    primary = {"types": whole("types", 2, 32, log=True), "dim": choice("dim", (4, 8))}
    primary |= {"kernel": choice("primary_kernel", kernels), "stride": choice("primary_stride", (1, 2))}
    dim, iterations, keep = choice("class_dim", (4, 8, 16)), whole("iterations", 1, 3), choice("keep", (1.0, 0.7, 0.5, 0.35))
    text = " + ".join("{channels} of {kernel}x{kernel}/{stride}".format(**conv) for conv in stem)
    text += " + {types} types of {dim}, {kernel}x{kernel}/{stride}".format(**primary)
    text += f" + classes of {dim}, {iterations} iterations" + (f", pruned to {keep:.0%}" if keep < 1 else "")
    capsules = {f"primary_{name}": value for name, value in primary.items()}
    return Network({"stem": stem, **capsules, "class_dim": dim, "iterations": iterations}, keep, text)


class Maker:
    """Makes networks of ShallowCaps: in full with all of ``splits``, for a trial with ``few``."""

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
        values |= {"shift": min(2, images.image_shape[1] // 14), **settings.train, "model": "shallow"}
        values |= {"dataset": self.splits.info["name"], "overrides": network.overrides if network else {}}
        return fit_to_data(TrainSettings.of(values), self.splits)

    def estimate(self, network: Network) -> dict[str, Any]:
        """What the untrained network takes (:func:`sizes`), constants and work as far as pruning leaves them. Raises
        ModelError, PlanError: there is no such network for these images, or none in integers."""
        recipe, keep = self.recipe(False, network), network.keep
        cost = cost_of(skeleton("shallow", recipe.overrides))
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
