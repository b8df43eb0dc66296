"""The end of a quantization: plans are accepted by their integers, shipped, and measured on the test split."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caplet.acceptance import Acceptance
from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.fixed import FixedFormat
from caplet.jobs.quantize.answers import Correct, PlanAnswers, answers_of
from caplet.jobs.quantize.fitting import Fitter
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import SplitAnswers, open_test_split, ship
from caplet.lower import lower
from caplet.metrics import Accuracy, Paired, accuracy
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.file import save_program
from caplet.program.op import Shift
from caplet.program.ops import Add, ChannelAffine, Convolution, DenseVotes, LeakyRelu, MaxPool2d, Routing
from caplet.program.verify import verify
from caplet.progress import Note
from caplet.quant.choices import Method
from caplet.quant.plan.formats import FormatSource, bits_of
from caplet.quant.plan.memory import FLOAT_BITS, count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Footprint, Hardware
from caplet.quant.plan.units import width_table
from caplet.quant.search.qcapsnets import DEFAULT_COMPRESSION
from caplet.quant.search.search import Candidate, Request, SearchResult
from caplet.runs.folder import remove
from caplet.runs.promised import verdict_of
from caplet.runtime.engine import Engine


def footprint(model: CapsNet, plan: QuantPlan) -> Footprint:
    """The footprint of ``model`` under ``plan``; the RAM is the arena's, with all votes stored.

    Raises:
        PlanError: the plan is not one for this model, or has no integer form.
    """
    return program_footprint(lower(model, plan))


def check_ram(model: CapsNet, request: Request) -> None:
    """Raise ConfigError where the RAM budget is below the arena of the narrowest widths everywhere."""
    if request.ram_bytes is None:
        return
    bits = {key: bits_of(spec, 1, request.rule) for key, spec in model.points().items()}
    narrow = {key: FixedFormat(bits[key], bits[key] - 1, spec.signed) for key, spec in model.points().items()}
    least = footprint(model, QuantPlan(narrow)).ram_bytes
    if request.ram_bytes < least:
        raise ConfigError(
            f"the RAM budget of {request.ram_bytes:,} bytes is below the smallest possible one for this model,"
            f" {least:,} bytes (the narrowest widths everywhere, all votes stored); raise the budget"
        )


def program_footprint(program: Program) -> Footprint:
    """The footprint of a Program."""
    proof = verify(program)
    memory = plan_memory(program, proof=proof)
    widest = max((8 * bound.bytes for bound in proof.accumulators), default=32)
    return Footprint(memory.bytes, memory.peak, widest, dict(_shifts(program)))


def _shifts(program: Program) -> Iterator[tuple[str, tuple[int, int]]]:
    """(tensor written, smallest and largest right shift to it), in order of execution."""
    tensors = program.tensors
    for op in program.ops:
        if isinstance(op, Convolution | MaxPool2d | ChannelAffine | LeakyRelu | Add):
            yield op.output, _range(op.shifts(tensors).out)
        elif isinstance(op, DenseVotes):
            yield op.output, _range(*(op.shifts(tensors, source).out for source in op.sources))
        elif isinstance(op, Routing):
            yield op.preactivation, _range(op.shifts(tensors).out)
            if op.logits is not None:
                yield op.logits, _range(op.agreement_shift(tensors))


def _range(*shifts: Shift) -> tuple[int, int]:
    values = np.concatenate([np.atleast_1d(shift) for shift in shifts])
    return int(values.min()), int(values.max())


ROLES = ("satisfied", "memory", "accuracy")


@dataclass(frozen=True)
class Shipped:
    """One quantized model of a run: what was written and how well its integers do.

    Attributes:
        role: ``satisfied``, ``memory`` or ``accuracy`` (the papers' model_satisfied, model_memory, model_accuracy).
        program: the integer Program.
        path: its ``.caplet`` file.
        calibration: accuracy of the Program on the calibration split.
        test: accuracy of the Program on the test split.
        against_float: the float model and the Program on the test images, paired.
        record: accuracies, pairing, file and the memory counts as JSON values.
    """

    role: str
    program: Program
    path: Path
    calibration: Accuracy
    test: Accuracy
    against_float: Paired
    record: dict[str, Any]


@dataclass(frozen=True)
class QuantizeResult:
    """The outcome of a quantization run.

    Attributes:
        met: whether a model within the budget keeps the target, as integers, on the images that decide.
        models: the shipped models, the one to use first.
        float_test: the float model on the test split.
        search: the search's result.
        folder: the run folder.
        metrics: what ``metrics.json`` holds.
    """

    met: bool
    models: tuple[Shipped, ...]
    float_test: Accuracy
    search: SearchResult
    folder: Path
    metrics: dict[str, Any]

    @property
    def verdict(self) -> str | None:
        """Asked, expected on new images, measured, kept or not, in a sentence; None where nothing was promised."""
        return verdict_of(self.metrics["promise"], self.models[0].against_float.loss)


def artefacts(role: str) -> tuple[str, str]:
    """Names of the files of one shipped model: the Program and its plan.

    >>> artefacts("satisfied")
    ('model_satisfied.caplet', 'plan_satisfied.json')
    """
    return f"model_{role}.caplet", f"plan_{role}.json"


def write_model(run: Path, role: str, program: Program, model: CapsNet, plan: QuantPlan) -> tuple[Path, dict[str, Any]]:
    """Write a Program's ``.caplet`` file and its plan; returns the file, and what a record says of both."""
    path, plan_path = (run / name for name in artefacts(role))
    save_program(program, path)
    plan.save(plan_path)
    memory = count_memory(model, plan)
    return path, {
        "role": role,
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "flash_bytes": program.flash_bytes,
        "memory": memory.to_json(),
        "weight_reduction": memory.total.weight_reduction,
        "activation_reduction": memory.total.activation_reduction,
        "output_reduction": memory.total.output_reduction,
        "plan_digest": plan.digest(),
    }


@dataclass(frozen=True)
class Shipper:
    """Lowers candidates and measures their integers against ``reference``; ``source`` chooses other plans' formats."""

    run: Path
    model: CapsNet
    reference: CapsNet
    splits: Splits
    engine: Engine
    fitter: Fitter
    hardware: Hardware
    source: FormatSource

    def misfit(self, program: Program) -> str | None:
        """Why the hardware cannot run a fitted plan, or None; the search has seen to plans that are not fitted."""
        if self.hardware.is_free or not self.fitter.active:
            return None
        return program_footprint(program).problem(self.hardware)

    def program(self, plan: QuantPlan, draft: bool = False) -> Program:
        """The integers of a plan, fitted where the run fits; a ``draft`` is for looking only."""
        fit = self.fitter.draft(plan) if draft else self.fitter.fit(plan)
        return lower(fit.model, fit.plan, labels=self.splits.test.classes, meta={"family": self.model.family})

    def answers(self, program: Program, images: ImageSet) -> PlanAnswers:
        """What ``program`` answers on images, to be compared with the reference."""
        return self.comparable(answers_of(program, images, self.engine))

    def comparable(self, answers: PlanAnswers) -> PlanAnswers:
        """Answers of a plan's integers without their margins, where the reference is another network than the plan's:
        its answers differ by more than rounding."""
        return answers if self.reference is self.model else PlanAnswers(answers.correct)

    def hits(self, program: Program, images: ImageSet) -> Correct:
        """Which images ``program`` classifies correctly, bool (n,)."""
        return answers_of(program, images, self.engine).correct

    def ship(
        self,
        role: str,
        candidate: Candidate,
        program: Program,
        on_calibration: Correct,
        acceptance: Acceptance,
        answers: SplitAnswers,
    ) -> Shipped:
        """Write the ``.caplet`` file and the plan, and say what is known about them."""
        fit = self.fitter.fit(candidate.plan)
        path, written = write_model(self.run, role, program, self.model, fit.plan)
        calibration = accuracy(int(on_calibration.sum()), len(on_calibration))
        test, against = answers.accuracy(role), answers.against(role)
        record = {
            **written,
            "widths": width_table(self.model, candidate.plan),
            "reconstruction": self.fitter.record(candidate.plan),
            "calibration": asdict(calibration),
            "test": asdict(test),
            "paired": asdict(against),
            "on_calibration": acceptance.to_json(on_calibration),
        }
        return Shipped(role, program, path, calibration, test, against, record)


@dataclass(frozen=True, eq=False)
class Choice:
    """What ships of a search.

    Attributes:
        met: whether the first plan keeps the tolerance within the budgets.
        plans: role, plan, and which calibration images its integers classify correctly, bool (n,); the one to use
            first.
        found: the search that the first plan comes from.
        reason: one sentence on the outcome.
        promise: what fresh images said, JSON values; None where the calibration images decided.
    """

    met: bool
    plans: tuple[tuple[str, Candidate, Correct], ...]
    found: SearchResult
    reason: str
    promise: dict[str, Any] | None = None


def finish(
    shipper: Shipper, settings: QuantizeSettings, request: Request, choice: Choice, search: dict[str, Any], note: Note
) -> QuantizeResult:
    """Open the test split, once, and write everything.

    Args:
        search: what the search took, for the record.
    """
    splits, found, promise = shipper.splits, choice.found, choice.promise
    acceptance = Acceptance(found.reference.correct_images, request.tolerance, request.relative)
    programs = {role: shipper.program(candidate.plan) for role, candidate, _ in choice.plans}
    answers = open_test_split(splits, shipper.reference, programs, note, shipper.engine)
    float_test = answers.accuracy()
    models = tuple(
        shipper.ship(role, candidate, programs[role], correct, acceptance, answers)
        for role, candidate, correct in choice.plans
    )
    weights = count_memory(shipper.model).total.weights
    budget: float | None = settings.budget
    if budget is None and settings.method is Method.QCAPSNETS:
        budget = FLOAT_BITS * weights / DEFAULT_COMPRESSION / 8
    metrics = {
        "method": str(settings.method),
        "met": choice.met,
        "reason": choice.reason,
        "tolerance": settings.tolerance,
        "relative": settings.relative,
        "budget_bytes": budget,
        "rounding": str(found.rounding),
        "float": {
            "test": float_test,
            "calibration": accuracy(found.reference.correct, found.reference.n),
            "weight_bytes": 4 * weights,
        },
        "accept": settings.accept,
        "promise": promise and {**promise, "kept": models[0].against_float.loss <= promise["tolerance"] + 1e-9},
        "models": [model.record for model in models],
        "search": search,
    }
    for role in sorted(set(ROLES) - {model.role for model in models}):  # of an earlier run, overwritten by this one
        for name in artefacts(role):
            remove(shipper.run / name)
    metrics = ship(shipper.run, splits, metrics, answers, programs)
    return QuantizeResult(choice.met, models, float_test, found, shipper.run, metrics)
