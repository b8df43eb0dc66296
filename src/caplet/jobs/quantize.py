"""Quantize a trained model: calibrate, search, lower, accept and measure the integers, write the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.jobs.engine import Engine, predictions
from caplet.jobs.evaluate import check_data, float_predictions
from caplet.jobs.fitting import Fitter, check_request
from caplet.jobs.footprint import check_ram, footprint, program_footprint
from caplet.jobs.judge import Judge
from caplet.jobs.records import record_details, record_flips, record_predictions
from caplet.lower import lower
from caplet.metrics import Accuracy, Paired, accuracy, paired
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.program import Program
from caplet.program.file import save_program
from caplet.quant.calibrate import Calibration, calibrate
from caplet.quant.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from caplet.quant.formats import Exponents, FormatRule, FormatSource
from caplet.quant.memory import FLOAT_BITS, count_memory
from caplet.quant.plan import QuantPlan
from caplet.quant.probes import FLOAT
from caplet.quant.reconstruct.settings import Part
from caplet.quant.search.methods import DEFAULT_COMPRESSION, Method, find_method
from caplet.quant.search.request import Request, SearchResult, Workbench
from caplet.quant.search.result import Candidate, Step, width_table
from caplet.quant.sequential import EarlyRule
from caplet.quant.simplify import simplify_routing
from caplet.quant.target import Hardware, find_hardware
from caplet.quant.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.tune import Tuner
from caplet.quant.units import Granularity, UnitWidths
from caplet.runs import METRICS, SPLITS, RunFolder, open_run

CALIBRATION_IMAGES = 1024
"""Images whose activations choose the exponents."""
PROBES, SEARCH, SIMPLIFIED = "probes.jsonl", "search.json", "simplified.json"
ROLES = ("satisfied", "memory", "accuracy")

Note = Callable[[str], None]
Progress = Callable[[int, int], None]
Scheme = Literal["nearest", "truncate", "stochastic", "all"]


class QuantizeSettings(BaseModel):
    """Settings of a quantization run, immutable and JSON-able.

    Attributes:
        method: the search.
        tolerance: accepted loss of accuracy in percentage points; with ``relative`` in percent of the float accuracy.
        budget: bytes for all weights; None for a fifth of their size in 32-bit float with the method qcapsnets, and for
            no limit with the others.
        activation_budget: bytes for all computed tensors of one image (elements x bits); None for no limit.
        ram: bytes for the arena with all votes stored; None for no limit.
        granularity: which tensors share a width, with the methods progressive and ilp.
        hardware: what the plan must run on: a name of :data:`caplet.quant.target.HARDWARE` or a .json file.
        rounding: one scheme, or ``all``: try each, keep the smallest result that meets the target.
        log2_weights: weights are signed powers of two.
        paper_formats: one integer bit everywhere, as in the paper, instead of calibrated exponents.
        tune: choose exponents by their effect on the lengths of the class capsules (see :mod:`caplet.quant.tune`),
            instead of by the squared error of the tensor alone.
        reconstruct: parts of reconstruction (:class:`caplet.quant.reconstruct.settings.Part`) that fit every plan which
            the search proposes, before its integers are accepted. A plan within the budgets that missed the target
            with nearest rounding may keep it when fitted.
        narrow: lower the widths of the accepted fit further, as long as its fits keep the target.
        explore: the method ilp looks for plans smaller than the budgets; without it, it proposes the plan of least
            noise within them and no other.
        exact: every decision of the search looks at all calibration images and computes every stage: no early
            decisions, no kept stage outputs. For comparison; it takes several times as long.
        confidence: accept a plan only where the loss on images like the calibration images is at most the tolerance
            with this one-sided confidence (0.5..1, e.g. 0.95); None accepts by the loss on these very images.
        simplify_routing: first try fewer routing iterations and constant couplings (see :mod:`caplet.quant.simplify`);
            what they cost is taken off the tolerance.
        seed: of stochastic rounding, 0 .. 2**32 - 1.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Method.QCAPSNETS
    tolerance: float = 0.2
    relative: bool = False
    budget: PositiveInt | None = None
    activation_budget: PositiveInt | None = None
    ram: PositiveInt | None = None
    granularity: Granularity = Granularity.LAYER
    hardware: str = "portable"
    rounding: Scheme = "nearest"
    log2_weights: bool = False
    paper_formats: bool = False
    tune: bool = True
    simplify_routing: bool = False
    reconstruct: tuple[Part, ...] = ()
    narrow: bool = False
    explore: bool = True
    exact: bool = False
    confidence: float | None = Field(default=None, ge=0.5, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"quantize: {name}: {first['msg']} (found {first['input']!r:.100})") from None

    def request(self) -> Request:
        """What the search is asked for. Raises ConfigError for values out of range, or unknown hardware."""
        schemes = tuple(Rounding) if self.rounding == "all" else (Rounding(self.rounding),)
        return Request(
            self.tolerance,
            None if self.budget is None else 8 * self.budget,
            None if self.activation_budget is None else 8 * self.activation_budget,
            self.ram,
            self.relative,
            schemes,
            FormatRule(Exponents.PAPER if self.paper_formats else Exponents.BOUND, self.log2_weights),
            self.seed,
            self.granularity,
            find_hardware(self.hardware),
            self.explore,
        )


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
        predictions: classes that the Program predicts for the test images, int64 (n,).
        record: accuracies, pairing, file and the memory counts as JSON values.
    """

    role: str
    program: Program
    path: Path
    calibration: Accuracy
    test: Accuracy
    against_float: Paired
    predictions: NDArray[np.int64]
    record: dict[str, Any]


@dataclass(frozen=True)
class QuantizeResult:
    """The outcome of a quantization run.

    Attributes:
        met: whether a model within the budget keeps the target on the calibration split, as integers.
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


def quantize(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: QuantizeSettings | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    engine: Engine | str = Engine.AUTO,
    note: Note = lambda text: None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Find a plan for ``model``, ship it as a ``.caplet`` file, and measure the shipped integers.

    The search, the calibration and the final accept see ``splits.calibration`` only. ``splits.test`` is opened once,
    at the end.

    Args:
        out: the run folder. See :func:`caplet.runs.open_run` for ``resume`` and ``force``.
        engine: what runs the Program for the final accept and the report.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) during every measurement.

    Raises:
        ModelError: NaN weights, images of another size, a layer without an integer form.
        ConfigError: settings out of range, a budget below the smallest possible one.
        ArtefactError: the run folder cannot be used.
    """
    settings, engine = settings or QuantizeSettings(), Engine(engine)
    check_finite(named_tensors(model), f"model {model.family}")
    check_data(model, splits.calibration)
    request, method = settings.request(), find_method(settings.method)
    method.check(model, request)
    check_ram(model, request)
    check_request(settings.reconstruct, request)
    if settings.narrow and not settings.reconstruct:
        raise ConfigError("quantize: narrow needs reconstruction; name its parts (--reconstruct bias,rounding)")
    resolved = {
        **settings.model_dump(mode="json"),
        "hardware": request.hardware.to_json(),
        "family": model.family,
        "config": model.config.model_dump(mode="json"),
        "data": splits.info["name"],
        "data_hashes": splits.info["hashes"],
    }
    with open_run(out, resolved, resume=resume, force=force) as run:
        splits.save_ids(run / SPLITS)
        began = time.perf_counter()
        reference = model
        if settings.simplify_routing:
            asked, images = request, splits.calibration
            simpler = simplify_routing(model, images, asked.tolerance, relative=asked.relative, note=note)
            model, left = simpler.model, simpler.tolerance - simpler.loss
            request = replace(request, tolerance=left, relative=False)
            run.write_json(SIMPLIFIED, simpler.to_json())
        note(f"calibrating on {min(CALIBRATION_IMAGES, len(splits.calibration)):,} images")
        calibration = calibrate(model, spread(splits.calibration, CALIBRATION_IMAGES))
        source: FormatSource = calibration
        if settings.tune and not settings.paper_formats:
            source = Tuner(model, calibration, spread(splits.calibration, TUNING_IMAGES))
        evaluator = Evaluator(
            model,
            splits.calibration.images,
            splits.calibration.labels,
            cache_bytes=0 if settings.exact else DEFAULT_CACHE_BYTES,
            log_path=run / PROBES,
            progress=progress,
            early=None if settings.exact else EarlyRule(),
        )
        earlier = sum(probe.seconds for probe in evaluator.probes.values())  # of the interrupted part, when resumed
        warn_about(splits, request, evaluator, note)
        bench = Workbench(
            evaluator, source, lambda plan: footprint(model, plan), lambda step: note(describe_step(step))
        )
        found = method.run(bench, request)
        seconds = earlier + time.perf_counter() - began  # with calibration, all parts of a resumed run together
        costs = full_passes(evaluator, calibration, source, found)
        run.write_json(SEARCH, {**found.record, "full_passes": costs})
        fitter = Fitter(model, splits.calibration, settings.reconstruct, run.path, note, settings.seed)
        shipper = _Shipper(run, model, reference, splits, engine, fitter, request.hardware)
        narrowed = (lambda plan: fitter.narrowed(plan, source, request)) if settings.narrow else None
        return _finish(shipper, settings, request, found, evaluator, costs, seconds, note, narrowed)


def artefacts(role: str) -> tuple[str, str]:
    """Names of the files of one shipped model: the Program and its plan.

    >>> artefacts("satisfied")
    ('model_satisfied.caplet', 'plan_satisfied.json')
    """
    return f"model_{role}.caplet", f"plan_{role}.json"


def full_passes(
    evaluator: Evaluator, calibration: Calibration, source: FormatSource, found: SearchResult
) -> dict[str, float]:
    """What a search cost by purpose, each in passes of all the evaluator's images through the whole model.

    Everything that chose the plan is counted; the integers' final accept, one pass more for each plan that it looks at,
    is not. Of a search that was interrupted, every probe counts once; calibrating and tuning are repeated and not
    counted twice.
    """
    probes = {digest: probe.cost for digest, probe in evaluator.probes.items()}
    costs = {
        "calibration": calibration.images / len(evaluator),
        "tuning": source.spent / len(evaluator) if isinstance(source, Tuner) else 0.0,
        "float": probes.pop(FLOAT, 0.0),
        "sensitivities": found.cost,
        "probes": sum(probes.values()),
    }
    return {**costs, "total": sum(costs.values())}


def warn_about(splits: Splits, request: Request, evaluator: Evaluator, note: Note) -> None:
    """Say so where the calibration images cannot resolve the tolerance, or miss a class."""
    allowed = request.allowed(evaluator.float_result())
    if 0 < allowed < 1:
        enough = math.ceil(len(evaluator) / allowed)
        note(
            f"warning: {len(evaluator):,} calibration images cannot resolve a tolerance of {request.tolerance:g}: not"
            f" one image may be lost; {enough:,} images would allow one (--calibration-size)"
        )
    counts = splits.calibration.class_counts()
    missing = [name for name, count in zip(splits.calibration.classes, counts, strict=True) if count == 0]
    if missing:
        note(f"warning: no calibration image is of class {', '.join(missing)}; the search cannot see what it loses")


def describe_step(step: Step[Any]) -> str:
    """One line about a search step."""
    verdict = "kept" if step.accepted else "rejected"
    found = f"{step.correct:,} correct"
    if step.low < step.high:
        found = f"{step.low:,} to {step.high:,} correct"
    if step.low < step.needed <= step.high:
        verdict = "not settled, rejected"
    return f"step {step.step}: {step.about}: {found}, {step.needed:,} needed: {verdict} ({step.seen:,} images seen)"


@dataclass(frozen=True)
class _Shipper:
    """Lowers candidates and measures their integers against ``reference``, the float model given."""

    run: RunFolder
    model: CapsNet
    reference: CapsNet
    splits: Splits
    engine: Engine
    fitter: Fitter
    hardware: Hardware

    def misfit(self, candidate: Candidate[Any]) -> str | None:
        """Why the hardware cannot run a fitted plan, or None; the search has seen to plans that are not fitted."""
        if self.hardware.is_free or not self.fitter.active:
            return None
        return program_footprint(self.program(candidate)).problem(self.hardware)

    def program(self, candidate: Candidate[Any]) -> Program:
        fit = self.fitter.fit(candidate.plan)
        return lower(fit.model, fit.plan, labels=self.splits.test.classes, meta={"family": self.model.family})

    def predict(self, program: Program, images: ImageSet) -> NDArray[np.int64]:
        return predictions(program, images.images.numpy(), self.engine)[0]

    def hits(self, program: Program, images: ImageSet) -> NDArray[np.bool_]:
        return self.predict(program, images) == images.labels.numpy()

    def ship(
        self, role: str, candidate: Candidate[Any], kept: NDArray[np.bool_], float_hits: NDArray[np.bool_]
    ) -> Shipped:
        """Write the ``.caplet`` file and the plan, and measure the test split."""
        program = self.program(candidate)
        model_file, plan_file = artefacts(role)
        path = self.run / model_file
        save_program(program, path)
        fit = self.fitter.fit(candidate.plan)
        fit.plan.save(self.run / plan_file)
        memory = count_memory(self.model, fit.plan)
        predicted = self.predict(program, self.splits.test)
        hits = predicted == self.splits.test.labels.numpy()
        calibration, test = (accuracy(int(h.sum()), len(h)) for h in (kept, hits))
        against = paired(float_hits, hits)
        record = {
            "role": role,
            "file": path.name,
            "file_bytes": path.stat().st_size,
            "flash_bytes": program.flash_bytes,
            "widths": width_table(self.model, candidate),
            "memory": memory.to_json(),
            "weight_reduction": memory.total.weight_reduction,
            "activation_reduction": memory.total.activation_reduction,
            "plan_digest": fit.plan.digest(),
            "reconstruction": self.fitter.record(candidate.plan),
            "calibration": calibration.to_json(),
            "test": test.to_json(),
            "paired": against.to_json(),
        }
        return Shipped(role, program, path, calibration, test, against, predicted, record)


def _finish(
    shipper: _Shipper,
    settings: QuantizeSettings,
    request: Request,
    found: SearchResult,
    evaluator: Evaluator,
    costs: dict[str, float],
    seconds: float,
    note: Note,
    narrowed: Callable[[QuantPlan], Sequence[QuantPlan]] | None,
) -> QuantizeResult:
    """Accept by the integers on the calibration split, then open the test split and write everything.

    Fake-quant and integers may differ in single images; where the integers miss the target by one of them, the next
    larger plan that the search had accepted is the answer. With reconstruction, a plan within the budgets that missed
    the target is looked at too: fitted, it may keep it. Where the fit of an accepted plan misses the target, the same
    plan is looked at with weights rounded to nearest.
    """
    splits = shipper.splits
    judge = Judge(found.reference.hits, found.needed, request.allowed(found.reference), settings.confidence)
    chosen: list[tuple[str, Candidate[Any], NDArray[np.bool_]]] = []
    met = False
    if found.satisfied is not None:
        tried: tuple[Candidate[Any], ...] = (found.satisfied, *found.fallbacks)
    else:
        tried = tuple(other for role, other in found.others if role == "memory" and shipper.fitter.active)
    for candidate in tried:
        kept = _kept(shipper, candidate, judge, note)
        if kept is None and shipper.fitter.active and found.satisfied is not None:
            # With nearest rounding the search had accepted it.
            shipper.fitter.leave(candidate.plan)
            note("the same plan with weights rounded to nearest:")
            kept = _kept(shipper, candidate, judge, note)
            if kept is None:
                shipper.fitter.take_up(candidate.plan)
        if kept is not None:
            met = True
            if narrowed is not None:
                candidate, kept = _smaller(shipper, candidate, kept, judge, narrowed, note)
            chosen.append(("satisfied", candidate, kept))
            break
    if not met:
        chosen += [
            (role, other, shipper.hits(shipper.program(other), splits.calibration)) for role, other in found.others
        ]
    if not chosen:  # the integers of every accepted plan miss the target: the first one is as near as it gets
        chosen.append(("accuracy", found.best, shipper.hits(shipper.program(found.best), splits.calibration)))
    on_calibration = [judge.record(kept) for _, _, kept in chosen]
    if met and (warning := judge.warning(chosen[0][2])):
        note(warning)
    note(f"measuring the test split once, {len(splits.test):,} images")
    float_predicted = float_predictions(shipper.reference, splits.test)
    float_hits = float_predicted == splits.test.labels.numpy()
    float_test = accuracy(int(float_hits.sum()), len(float_hits))
    models = tuple(shipper.ship(*item, float_hits) for item in chosen)
    weights = count_memory(shipper.model).total.weights
    budget: float | None = settings.budget
    if budget is None and settings.method is Method.QCAPSNETS:
        budget = FLOAT_BITS * weights / DEFAULT_COMPRESSION / 8
    reason = found.reason
    if met != found.met:
        reason = (
            "the plan of the budget keeps the target once it is reconstructed"
            if met
            else "the integers of every plan that the search accepted miss the target" + judge.condition
        )
    metrics = {
        "method": str(settings.method),
        "met": met,
        "reason": reason,
        "tolerance": settings.tolerance,
        "relative": settings.relative,
        "budget_bytes": budget,
        "rounding": str(found.rounding),
        "float": {
            "test": float_test.to_json(),
            "calibration": accuracy(found.reference.correct, found.reference.n).to_json(),
            "weight_bytes": 4 * weights,
        },
        "confidence": settings.confidence,
        "models": [
            {**model.record, "on_calibration": paired} for model, paired in zip(models, on_calibration, strict=True)
        ],
        "search": {
            "seconds": round(seconds, 1),
            "probes": len(evaluator.probes),
            "full_passes": costs["total"],
            "calibration_images": len(splits.calibration),
        },
    }
    for role in sorted(set(ROLES) - {model.role for model in models}):  # of an earlier run, overwritten by this one
        for name in artefacts(role):
            shipper.run.remove(name)
    record_predictions(shipper.run, splits.test, float_predicted, {model.role: model.predictions for model in models})
    record_flips(shipper.run, splits.test, models[0].role, float_predicted, models[0].predictions)
    record_details(shipper.run, {model.role: model.program for model in models})
    shipper.run.write_json(METRICS, metrics)
    return QuantizeResult(met, models, float_test, found, shipper.run.path, metrics)


def _kept(shipper: _Shipper, candidate: Candidate[Any], judge: Judge, note: Note) -> NDArray[np.bool_] | None:
    """Which calibration images the candidate's integers have right; None where it does not run or misses the target."""
    problem = shipper.misfit(candidate)
    if problem is not None:
        note(f"the reconstructed plan does not run on {shipper.hardware.name}: {problem}")
        return None
    hits = shipper.hits(shipper.program(candidate), shipper.splits.calibration)
    met = judge.accepts(hits)
    note(f"integers on the calibration split: {judge.describe(hits)}: {'accepted' if met else 'rejected'}")
    return hits if met else None


def _smaller(
    shipper: _Shipper,
    candidate: Candidate[Any],
    kept: NDArray[np.bool_],
    judge: Judge,
    narrowed: Callable[[QuantPlan], Sequence[QuantPlan]],
    note: Note,
) -> tuple[Candidate[Any], NDArray[np.bool_]]:
    """The smallest narrowed candidate whose integers keep the target on all calibration images, else the candidate."""
    for plan in narrowed(candidate.plan):
        widths = UnitWidths(tuple(plan.points), tuple(fmt.bits for fmt in plan.points.values()))
        smaller = replace(candidate, widths=widths, plan=plan, memory=count_memory(shipper.model, plan).total)
        problem = shipper.misfit(smaller)
        if problem is not None:
            note(f"a narrowed plan does not run on {shipper.hardware.name}: {problem}")
            continue
        hits = shipper.hits(shipper.program(smaller), shipper.splits.calibration)
        met = judge.accepts(hits)
        note(f"integers of a narrowed plan: {judge.describe(hits)}: {'accepted' if met else 'rejected'}")
        if met:
            return smaller, hits
    return candidate, kept


def spread(images: ImageSet, count: int) -> Tensor:
    """At most ``count`` images at even distances through the set, uint8 (N, C, H, W)."""
    step = max(1, len(images) // count)
    return images.images[::step][:count]
