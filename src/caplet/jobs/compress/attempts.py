"""Attempts: networks pruned and quantized by different amounts, each measured against the limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.jobs.compress.choose import RECOVERED, PairChoice
from caplet.jobs.compress.curves import FLOAT, Context
from caplet.jobs.compress.settings import BATCH
from caplet.jobs.export import find_program
from caplet.jobs.finetune import ROLE, finetune_model, finetune_settings
from caplet.jobs.prune.job import prune
from caplet.jobs.quantize.accept import artefacts
from caplet.jobs.quantize.answers import PlanAnswers
from caplet.jobs.quantize.job import CALIBRATION_IMAGES, quantize
from caplet.jobs.quantize.promise import Promise
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import classify, correct_images
from caplet.lower import lower
from caplet.metrics import paired
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of
from caplet.nn.points import Role
from caplet.program import Program
from caplet.program.file import load_program
from caplet.program.program import CODE_BYTES
from caplet.quant.choices import Method
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.runs.folder import METRICS, read_record
from caplet.runs.promised import Look
from caplet.runs.records import Pruned, QuantizeMetrics
from caplet.runs.stages import Done
from caplet.train.finetune import weights_digest

LARGE = 0.05
"""Fraction of all weights from which a layer's are narrowed by training."""
NARROWEST = 2
"""Bits that no search is asked to go below."""
TABLE_BYTES = 4096
"""Bytes of a flash limit, beside the code, for what is not weights: tables, and rows that end within a byte."""


FIRST = 0.5
"""Of the error that is left, what the next decision on fresh images may spend."""


@dataclass(frozen=True)
class Attempt:
    """One pruned and quantized network, measured against the limits.

    Attributes:
        folders: of its stages, in order.
        model: the float network that was quantized.
        program, path: the integers and their file.
        values: by limit, what was reached: ``max_drop`` in percentage points, ``flash`` and ``ram`` in bytes, ``macs``.
            The loss is the upper limit for new images, or as measured on the calibration split.
        ram: the memory plan by which it does.
        missed: names of the limits that are not kept.
        expected: what fresh images said of it, where they decide.
    """

    folders: tuple[Path, ...]
    model: CapsNet
    program: Program
    path: Path
    values: dict[str, float]
    ram: str | int
    missed: tuple[str, ...]
    expected: Look | None = None

    @property
    def plan(self) -> QuantPlan:
        """The plan, from the file beside the Program's."""
        return QuantPlan.load(self.path.with_name(f"plan_{self.path.stem.removeprefix('model_')}.json"))


class Attempts:
    """The attempts of a run.

    Args:
        model: the float model.
        correct: the calibration images that it classifies correctly, bool (N,).
    """

    def __init__(self, context: Context, model: CapsNet, correct: NDArray[np.bool_]) -> None:
        self.context, self.model, self.correct = context, model, correct
        self.splits, self.settings, self.note = context.splits, context.settings, context.note
        self.promise = context.promise
        self.tried: list[Attempt] = []
        self.skipped: list[tuple[float, Pruned]] = []

    def best(self, curve: Sequence[Pruned], choice: PairChoice) -> Attempt:
        """Try amounts of pruning until a network keeps to all limits; the nearest one where none does.

        More than was chosen is tried first, where full fine-tuning may win back what the short one did not. Where there
        is a limit of multiply-accumulates, the largest network within it is tried in any case, and no larger one.

        Args:
            curve: the amounts that may be tried.
        """
        limits = self.settings.limits
        light = [point.macs for point in curve if limits.macs is not None and point.macs <= limits.macs]
        for point in sorted(curve, key=lambda point: point.macs):
            if light and point.macs > max(light):
                break
            if point.macs >= choice.pair.pruned.macs or point.macs == max(light, default=None):
                self.attempt(point, 1.0)
            elif point.drop <= limits.max_drop + RECOVERED:
                self.attempt(point, 0.5)
            if self.met:
                break
        if not self.met and self.skipped:
            loss, point = min(self.skipped, key=lambda skipped: skipped[0])
            self.note(f"of the networks that lose too much by pruning alone, the best one: {loss:+.2f} points")
            self.attempt(point, math.inf)
        if {"flash", "max_drop"} <= set(self.nearest.missed):
            self.note("what keeping to the loss alone would take:")
            model, folders = self.nearest.model, self.nearest.folders
            pruning = [folder for folder in folders if folder.name.startswith("prune-")]
            self.quantize(model, pruning, self.remaining(model), None, self.hardware[-1])
        return self.nearest

    @property
    def hardware(self) -> tuple[str, ...]:
        """What is tried in turn: limits are bytes, not bits, and kernels are fastest for one byte."""
        return ("portable",) if self.settings.quantize.method is Method.QCAPSNETS else ("byte", "bytes")

    @property
    def nearest(self) -> Attempt:
        """The network nearest to the limits, the smallest of several that are."""
        limits = self.settings.limits
        return min(self.tried, key=lambda attempt: (limits.distance(attempt.values), attempt.values["flash"]))

    @property
    def met(self) -> bool:
        """Whether a network keeps to all limits."""
        return any(not attempt.missed for attempt in self.tried)

    def attempt(self, point: Pruned, fraction: float) -> None:
        """One amount of pruning, quantized within what remains of the accepted loss.

        Args:
            fraction: of the accepted loss that pruning may take.
        """
        limits = self.settings.limits
        model, folders = self.model, []
        name = f"{100 * point.macs_kept:.3g}"
        if point.macs_kept < 1:
            done = self.pruned(point, f"prune-{name}")
            model, folders = self.context.load(done.folder), [done.folder]
        remaining = self.remaining(model)
        loss = limits.max_drop - remaining
        if model is not self.model:
            self.note(f"pruning to {name} % of the multiply-accumulates: {loss:+.2f} points, {remaining:.2f} remain")
        if loss > fraction * limits.max_drop:
            self.note(f"pruning alone takes more than {fraction:.0%} of the accepted loss")
            self.skipped.append((loss, point))
            return
        use, budget, (first, *others) = self.settings.quantize.finetune, self.budget(model), self.hardware
        found = self.quantize(model, folders, remaining, budget, first)
        for hardware in others if found.missed else ():
            self.quantize(model, folders, remaining, budget, hardware)
        if use == "yes" or (use == "auto" and not self.met and set(found.missed) <= {"flash", "max_drop"}):
            self.finetuned(found, name)

    def remaining(self, model: CapsNet) -> float:
        """What a float model leaves of the accepted loss, in percentage points; more than all of it if it gained."""
        correct = correct_images(model, self.splits.calibration)
        return self.settings.limits.max_drop - paired(self.correct, correct).loss

    def pruned(self, point: Pruned, name: str) -> Done:
        """The stage that prunes."""
        context = self.context
        epochs = self.settings.finetuned(len(self.splits.train))
        settings = self.settings.pruning(min(1.0, point.macs_kept * (1 + 1e-6)), epochs)

        def work(folder: Path, resume: bool) -> None:
            how: dict[str, Any] = {"resume": resume, "taught": context.answers, "bars": context.bars, **context.told}
            prune(self.model, self.splits, folder, settings, device=context.device, **how)

        inputs = {"model": weights_digest(self.model), "settings": settings.model_dump(mode="json")}
        return context.do(name, inputs, work, FLOAT, METRICS)

    def quantize(
        self, model: CapsNet, pruning: Sequence[Path], remaining: float, budget: int | None, hardware: str
    ) -> Attempt:
        """An attempt without any training, for one of :attr:`hardware`; its stage finds widths.

        Args:
            pruning: folder of the stage that made ``model``, if one did.
            remaining: of the accepted loss, in percentage points.
            budget: bytes for all weights.
        """
        chosen, limit, context = self.settings.quantize, self.settings.limits.flash, self.context
        kept = cost_of(model).macs / cost_of(self.model).macs
        name = f"quantize-{100 * kept:.3g}{'-byte' * (hardware == 'byte')}"
        name += "-any-size" * (budget is None and limit is not None)
        promise = self.next_promise()
        settings = QuantizeSettings(
            method=chosen.method,
            rounding="carry" if hardware == "bytes" else "nearest",  # votes of 8 bits have nothing to carry
            hardware=hardware,
            accept="measured" if self.promise is None else "confidence",
            confidence=0.95 if promise is None else 1 - promise.error,
            tolerance=round(max(0.0, remaining), 6),
            budget=budget,
            reconstruct=chosen.reconstruct,
            narrow=chosen.narrow and bool(chosen.reconstruct),
            seed=self.settings.seed,
        )

        def work(folder: Path, resume: bool) -> None:
            how: dict[str, Any] = {"resume": resume, "workers": context.team, "device": context.device, **context.told}
            quantize(model, self.splits, folder, settings, promise=promise, reference=self.model, **how)

        digests = {"model": weights_digest(model), "reference": weights_digest(self.model)}
        folder = context.do(name, {**digests, "settings": settings.model_dump(mode="json")}, work, METRICS).folder
        found = read_record(folder / METRICS, QuantizeMetrics).promise
        return self.measured((*pruning, folder), find_program(folder), model, None if found is None else found.expected)

    def next_promise(self) -> Promise | None:
        """For the next decision, half of the error that is left; None where the calibration images decide."""
        if self.promise is None:
            return None
        promise = self.promise.with_error(FIRST * self.promise.error)
        self.promise = promise
        return promise

    def calibrated(self, model: CapsNet) -> Calibration:
        """The calibration of a float model, as the search for widths makes it."""
        return calibrate(model, self.splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images)

    def budget(self, model: CapsNet) -> int | None:
        """Bytes of weights that a limit of flash leaves, but no fewer than a search can reach."""
        limit = self.settings.limits.flash
        if limit is None:
            return None
        plan = uniform_plan(model, self.calibrated(model), NARROWEST)
        least = math.ceil(count_memory(model, plan).total.weight_bits / 8)
        return max(least, limit - CODE_BYTES - TABLE_BYTES)

    def finetuned(self, found: Attempt, name: str) -> None:
        """Quantization-aware training with narrower weights than the search's; it wins back what bytes cost, too."""
        model = found.model
        plan = self.narrower(model, found.plan)
        if plan is None:
            self.note("no width remains to narrow by training")
            return
        chosen, splits, context = self.settings.quantize, self.splits, self.context
        steps = round(self.settings.finetuned(len(splits.train)) * (len(splits.train) // BATCH))
        changes = {"lr": chosen.finetune_lr, "batch_size": BATCH, "seed": self.settings.seed, "steps": steps}
        settings = finetune_settings(changes, under_plan=True)

        def work(folder: Path, resume: bool) -> None:
            how: dict[str, Any] = {"resume": resume, "note": self.note, "progress": context.bars}
            finetune_model(model, splits, folder, plan, settings, teacher=self.model, device=context.device, **how)

        inputs = {
            "model": weights_digest(model),
            "teacher": weights_digest(self.model),
            "plan": plan.digest(),
            "settings": settings.model_dump(mode="json"),
        }
        done = self.context.do(f"finetune-{name}", inputs, work, METRICS, artefacts(ROLE)[0])
        self.measured((*found.folders, done.folder), done.folder / artefacts(ROLE)[0], model)

    def narrower(self, model: CapsNet, plan: QuantPlan) -> QuantPlan | None:
        """``plan`` with large weights a bit narrower than their mean, or as flash asks; None below 2 bits.

        Weights that are few keep their widths: narrowing them costs accuracy and saves next to nothing.
        """
        calibration, limit = self.calibrated(model), self.settings.limits.flash
        elements = {key: spec.elements for key, spec in model.points().items() if spec.role is Role.WEIGHT}
        large = {key: count for key, count in elements.items() if count >= LARGE * sum(elements.values())}
        mean = sum(plan.points[key].bits * count for key, count in large.items()) / sum(large.values())
        for width in range(math.ceil(mean) - 1, NARROWEST - 1, -1):
            wide = [key for key in large if plan.points[key].bits > width]
            tried = plan.with_formats({key: calibration.format(key, width) for key in wide})
            if limit is None or self.firmware(lower(model, tried))[0]["flash"] <= limit:
                return tried
        return None

    def firmware(self, program: Program) -> tuple[dict[str, float], str | int]:
        """Bytes of flash and of RAM that an export takes, and the ``ram`` that it is made with."""
        plan, ram = self.settings.plan(program)
        return {"flash": program.firmware_bytes + plan.code_bytes, "ram": plan.bytes}, ram

    def measured(self, folders: tuple[Path, ...], path: Path, model: CapsNet, expected: Look | None = None) -> Attempt:
        """The attempt whose integers are in ``path``: what it reached, and which limits it misses.

        Args:
            expected: what fresh images said of it already.
        """
        program, limits = load_program(path), self.settings.limits

        def correct(images: ImageSet) -> NDArray[np.bool_]:
            return np.asarray(classify(program, images) == images.labels.numpy())

        if expected is None and (promise := self.next_promise()) is not None:
            expected = promise.look(lambda images: PlanAnswers(correct(images)), promise.error)
        loss, (sizes, ram) = paired(self.correct, correct(self.splits.calibration)).loss, self.firmware(program)
        values: dict[str, float] = {
            "max_drop": loss if expected is None else expected.limit,
            **sizes,
            "macs": cost_of(model).macs,
        }
        missed = tuple(limits.excess(values))
        told = f"at most {values['max_drop']:+.2f} points" if expected else f"{loss:+.2f} points"
        told += f", {values['flash']:,} bytes of flash, {values['ram']:,} of RAM (--ram {ram})"
        self.note(f"{folders[-1].name}: {told}: " + (f"misses {', '.join(missed)}" if missed else "within all limits"))
        self.tried.append(Attempt(folders, model, program, path, values, ram, missed, expected))
        return self.tried[-1]
