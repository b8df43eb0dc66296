"""The two curves that the choice is made on: accuracy against pruning, and against width, a few points of each."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.jobs.compress.choose import Size, next_fraction
from caplet.jobs.compress.settings import CompressSettings
from caplet.jobs.prune.targets import network_sizes, put_in_order, removals_for
from caplet.jobs.quantize.promise import Promise, divide
from caplet.jobs.run import correct_images, training_notes
from caplet.jobs.train import fit_to_data, resolve_recipe, train_by_recipe
from caplet.lower import lower
from caplet.metrics import paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.cost import cost_of
from caplet.nn.device import AUTO, CPU
from caplet.progress import Note, Progress
from caplet.prune.order import RemovalOrder
from caplet.prune.structure import cut
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runs.folder import METRICS, read_record, write_record
from caplet.runs.records import Pruned, Width
from caplet.runs.stages import Done, Stages
from caplet.train.finetune import FinetuneTask, TeacherAnswers, weights_digest
from caplet.train.loop import train
from caplet.workers.team import Team

TRAIN, FLOAT, POINT = "train", "model.safetensors", "point.json"


@dataclass
class Context:
    """A run's folder, data and settings, and the stages done so far.

    Attributes:
        team: measures what is independent.
        promise: decides about results, on images that nothing else looks at; None where the calibration images do.
        answers: what the float model is known to answer as a teacher, shared by all networks that learn from it.
        done: by stage, in order.
        threads: of the CPU, that everything computes with.
        device: of its stages, by name.
        there: where networks are measured in between.
    """

    run: Path
    splits: Splits
    settings: CompressSettings
    note: Note
    progress: Progress | None
    bars: bool
    team: Team = field(default_factory=Team)
    promise: Promise | None = None
    answers: TeacherAnswers = field(default_factory=TeacherAnswers)
    done: dict[str, Done] = field(default_factory=dict)
    device: str = AUTO
    there: torch.device = CPU

    def __post_init__(self) -> None:
        self.stages = Stages(self.run, self.note)
        self.threads = torch.get_num_threads()
        self.data: dict[str, Any] = {"name": self.splits.info["name"], "hashes": self.splits.info["hashes"]}

    def do(self, name: str, inputs: dict[str, Any], work: Callable[[Path, bool], None], *outputs: str) -> Done:
        done = self.stages.do(name, {**inputs, "data": self.data}, work, outputs)
        self.done[name] = done
        return done

    @property
    def told(self) -> dict[str, Any]:
        """Who is told of what stages do."""
        return {"note": self.note, "progress": self.progress}

    def load(self, folder: Path) -> CapsNet:
        """The float network of a stage, where networks are measured."""
        return load_model(folder / FLOAT).to(self.there)

    def divide(self, model: CapsNet) -> None:
        """Set the images aside that decide about networks made of ``model``, if such images shall."""
        settings = self.settings
        if settings.accept == "confidence":
            self.splits, fresh = divide(model, self.splits, settings.validation, trained=True)
            self.note(
                f"decisions see {len(self.splits.calibration):,} images; {len(fresh.images):,} {fresh.about} accept"
            )
            tolerance, error = settings.limits.max_drop, 1 - settings.confidence
            self.promise = Promise(fresh, partial(correct_images, model), tolerance, error, self.note)
            hashes = {**self.data["hashes"], "calibration": self.splits.calibration.sha256()}
            self.data |= {"hashes": hashes, "fresh": fresh.images.sha256()}

    def trained(self) -> CapsNet:
        """The stage that trains the recipe."""
        settings = self.settings
        recipe = settings.recipe
        assert recipe is not None
        changes = {"calibration_size": len(self.splits.calibration)}

        def work(folder: Path, resume: bool) -> None:
            data = settings.model_dump(include={"root", "data", "size", "channels", "background"})
            how: dict[str, Any] = {"resume": resume, "progress": self.bars, "device": self.device}
            train_by_recipe(recipe, folder, **data, changes=changes, **how)

        resolved = fit_to_data(resolve_recipe(recipe, changes), self.splits)
        done = self.do(TRAIN, {"settings": resolved.model_dump(mode="json")}, work, FLOAT, METRICS)
        return self.load(done.folder)


IMAGES = 2000
"""Calibration images that a point is measured on."""
CALIBRATED, TUNED = 256, 64


@dataclass(frozen=True)
class Curves:
    """Measured points; ``curve`` begins with the model as it was, and goes on with less and less of it."""

    curve: tuple[Pruned, ...]
    widths: tuple[Width, ...]
    size: Callable[[Pruned, Width], Size]


class Measurement:
    """Both curves, measured on calibration images; what several points need is computed once, when first asked for.

    Every point is a stage in ``run``, so that a killed run goes on.
    """

    def __init__(self, context: Context, model: CapsNet, run: Path) -> None:
        self.context, self.model, self.run = context, model, run
        self.splits, self.settings, self.note = context.splits, context.settings, context.note
        self.images = self.splits.calibration.evenly_spaced(IMAGES)
        self._points: Iterator[tuple[float, tuple[CapsNet, Pruned] | ConfigError]] | None = None

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """The images that the model classifies correctly."""
        return correct_images(self.model, self.images)

    @cached_property
    def order(self) -> RemovalOrder:
        """The order in which capsules go, the same for every amount."""
        return put_in_order(self.model, self.splits.calibration, self.settings.pruning(1.0), self.context.progress)

    def all(self) -> Curves:
        """Both curves. A point that would empty a layer is left out, and said so."""
        stages, settings = Stages(self.run, self.note), self.settings
        whole = cost_of(self.model)
        curve = [Pruned(1.0, whole.macs, whole.parameters, 0.0, len(self.images), 0)]
        models = {1.0: self.model}
        common = {"model": weights_digest(self.model), "data": self.context.data, "seed": settings.seed}
        steps = settings.prune.probe_steps
        while settings.prune.use != "no":
            fraction = next_fraction(settings.prune.probes, curve, settings.limits)
            if fraction is None:
                break
            asked = settings.pruning(fraction).model_dump(mode="json")
            name, inputs = _name(fraction), {**common, "steps": steps, "settings": asked}
            try:
                done = stages.do(name, inputs, partial(self.prune, fraction), (FLOAT, POINT))
            except ConfigError as error:
                self.note(f"{name}: left out: {error}")
                break
            point = read_record(done.folder / POINT, Pruned)
            self.note(f"{point.macs_kept:.1%} of the multiply-accumulates: {point.drop:+.2f} points")
            curve.append(point)
            models[point.macs_kept] = self.context.load(done.folder)
        self._points = None  # workers may have begun points that nobody asks for
        base = min((point for point in curve if point.drop <= settings.limits.max_drop), key=lambda point: point.macs)
        network = models[base.macs_kept]
        inputs = {**common, "network": weights_digest(network), "widths": list(settings.quantize.probes)}
        done = stages.do("widths", inputs, partial(self.narrow, network, base), (POINT,))
        widths = tuple(read_record(done.folder / POINT, list[Width]))
        calibrations = {macs_kept: self.calibrated(model) for macs_kept, model in models.items()}

        def size(pruned: Pruned, width: Width) -> Size:
            model = models[pruned.macs_kept]
            program = lower(model, uniform_plan(model, calibrations[pruned.macs_kept], width.bits))
            memory, _ = settings.plan(program)
            return Size(program.firmware_bytes + memory.code_bytes, memory.bytes)

        return Curves(tuple(curve), widths, size)

    def calibrated(self, model: CapsNet) -> Calibration:
        """The calibration of a network, on fewer images than a search takes."""
        return calibrate(model, self.splits.calibration.evenly_spaced(CALIBRATED).images)

    def prune(self, fraction: float, folder: Path, resume: bool) -> None:
        """One point of the pruning curve."""
        self._points = self._points or self.points(fraction)
        found = next(result for asked, result in self._points if asked == fraction)
        if isinstance(found, ConfigError):
            raise found
        folder.mkdir(parents=True, exist_ok=True)
        save_model(found[0], folder / FLOAT, training_notes(self.splits, self.model))
        write_record(folder / POINT, found[1])

    def points(self, first: float) -> Iterator[tuple[float, tuple[CapsNet, Pruned] | ConfigError]]:
        """The fractions that may be asked for from ``first`` on, the largest first, and what pruning to each gives.

        In this process a point is made when it is asked for, in its stage's folder.
        """
        team, whole, macs = self.context.team, cost_of(self.model).macs, self.settings.limits.macs
        ahead = {*self.settings.prune.probes, *([] if macs is None else [macs / whole])}
        fractions = sorted({first, *(fraction for fraction in ahead if fraction < first)}, reverse=True)
        seen = replace(self.splits, calibration=self.images, test=self.splits.test.subset([]))
        answers = None if team.away else self.context.answers
        device = "cpu" if team.away else self.context.device
        parcel = team.parcel(_Pruner, self.model, self.order, seen, self.settings, self.correct, answers, device)
        folders = [None if team.away else self.run / _name(fraction) / "finetune" for fraction in fractions]
        tasks = [(parcel, task) for task in zip(fractions, folders, strict=True)]
        return zip(fractions, team.map(_Pruner.point, tasks, lambda task: _name(task[0])), strict=False)

    def narrow(self, model: CapsNet, base: Pruned, folder: Path, resume: bool) -> None:
        """The width curve, of the smallest network that keeps to the accepted loss: its like will be quantized."""
        images = self.images
        correct = self.correct if model is self.model else correct_images(model, images)
        tuner = Tuner(model, self.calibrated(model), self.splits.calibration.evenly_spaced(TUNED).images)
        folder.mkdir(parents=True, exist_ok=True)
        points, team, widths = [], self.context.team, sorted(self.settings.quantize.probes, reverse=True)
        parcel = team.parcel(_Narrowed, model, tuner, images.images, images.labels)
        tasks = [(parcel, bits) for bits in widths]
        found = team.map(_Narrowed.correct, tasks, lambda bits: f"{bits} bits everywhere")
        for bits, narrowed in zip(widths, found, strict=True):
            points.append(Width(bits, paired(correct, narrowed).loss, len(images), base.macs_kept))
            if self.context.progress is not None:
                self.context.progress(len(points), len(widths))
            self.note(f"{bits} bits everywhere: {points[-1].drop:+.2f} points")
        write_record(folder / POINT, points)


def _name(fraction: float) -> str:
    return f"macs-{fraction:.4g}"


class _Pruner:
    """A network, and what it is pruned, trained and measured with; ``correct`` says which images it has right."""

    def __init__(
        self,
        model: CapsNet,
        order: RemovalOrder,
        splits: Splits,
        settings: CompressSettings,
        correct: NDArray[np.bool_],
        answers: TeacherAnswers | None,
        device: str,
    ) -> None:
        self._model, self._order, self._splits, self._settings = model, order, splits, settings
        self._correct, self._answers, self._device = correct, answers or TeacherAnswers(), device

    def point(self, task: tuple[float, Path | None]) -> tuple[CapsNet, Pruned] | ConfigError:
        """The network pruned to a fraction of the multiply-accumulates, trained in a folder (None: a temporary one);
        an error where that would empty a layer."""
        (fraction, folder), model, order, splits = task, self._model, self._order, self._splits
        settings, images = self._settings.pruning(fraction), splits.calibration
        whole = network_sizes(model, settings.units)
        try:
            count = removals_for(model, order, settings, whole, 1.0)
        except ConfigError as error:
            return error
        smaller = cut(model, order.selection(count), order.structure)
        if steps := self._settings.prune.probe_steps:
            tuning = settings.finetuning(len(splits.train))
            tuning = tuning.model_copy(update={"steps": steps, "epochs": 1 + steps})
            learner = FinetuneTask(tuning, smaller, model, self._answers)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            with nullcontext(folder) if folder else TemporaryDirectory(prefix="caplet-") as place:
                how: dict[str, Any] = {"resume": True, "progress": False, "device": self._device}
                smaller = train(learner, splits, Path(place), **how).model.to(model.device)
        cost = cost_of(smaller)
        drop = paired(self._correct, correct_images(smaller, images)).loss
        return smaller, Pruned(cost.macs / whole["macs"], cost.macs, cost.parameters, drop, len(images), steps)


class _Narrowed:
    """A network, and the images on which it is measured at equal widths."""

    def __init__(self, model: CapsNet, tuner: Tuner, images: Tensor, labels: Tensor) -> None:
        self._model, self._tuner, self._evaluator = model, tuner, Evaluator(model, images, labels)

    def correct(self, bits: int) -> NDArray[np.bool_]:
        """The images that are classified correctly with ``bits`` everywhere."""
        return self._evaluator.evaluate(uniform_plan(self._model, self._tuner, bits)).correct_images
