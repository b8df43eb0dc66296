"""Quantize a trained model: calibrate, search, lower, accept and measure the integers, write the run folder."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.fixed.format import SHIFT_BITS
from caplet.jobs.quantize.accept import QuantizeResult, Shipper, check_ram, finish, footprint
from caplet.jobs.quantize.choose import as_measured, as_promised
from caplet.jobs.quantize.fitting import Fitter, check_request
from caplet.jobs.quantize.promise import Promise, divide
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.quantize.trials import Fits
from caplet.jobs.run import begin, check, correct_images, job_device
from caplet.models.base import CapsNet
from caplet.nn.device import AUTO, computing, placed
from caplet.nn.points import Role
from caplet.progress import Note, Progress, silent
from caplet.quant.choices import Exponents, Part
from caplet.quant.measure.early_decision import EarlyRule
from caplet.quant.measure.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from caplet.quant.measure.log import EvaluationLog, MeasurementCache, images_digest, model_identity
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.plan import output_axis
from caplet.quant.plan.target import find_hardware
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.fitted_noise import FittedNoise
from caplet.quant.reconstruct.scale_search import ChannelFormats
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.quant.search.methods import METHODS
from caplet.quant.search.progressive import UnitSensitivity
from caplet.quant.search.search import Request, SearchResult, Step, Workbench
from caplet.quant.search.simplify_routing import simplify_routing
from caplet.runs.folder import write_record
from caplet.runs.records import SEARCH
from caplet.runtime.engine import Engine
from caplet.workers.settings import WorkerSettings, team_of
from caplet.workers.team import Team

CALIBRATION, TUNING, SENSITIVITIES = "calibration.npz", "tuning.jsonl", "sensitivities.jsonl"
"""What a search measured besides its probes, for a resumed run."""
CALIBRATION_IMAGES = 1024
"""Images whose activations choose the exponents."""
FITTED_NOISE_IMAGES = 640
"""Images on which the noise of fitted weights is measured."""


def calibrated(run: Path, model: CapsNet, images: ImageSet, resume: bool, note: Note) -> tuple[Calibration, int]:
    """The calibration of ``model``, kept in ``run``, and how many images it took: 0 where an interrupted run's is read.

    Args:
        images: the calibration split.
        resume: whether ``run`` may hold one. One of another model or other images is replaced.

    Raises:
        ModelError: a NaN at a point (named). ArtefactError: a damaged file, or it cannot be written.
    """
    chosen, path = images.evenly_spaced(CALIBRATION_IMAGES).images, run / CALIBRATION
    identity = {**model_identity(model), "images": images_digest(chosen)}
    if resume and path.exists() and Calibration.made_of(path) == identity:
        return Calibration.load(path, model), 0
    note(f"calibrating on {len(chosen):,} images")
    calibration = calibrate(model, chosen)
    calibration.save(path, identity)
    return calibration, calibration.images


def full_passes(
    evaluator: Evaluator, calibration_images: int, source: FormatSource, results: Sequence[SearchResult]
) -> dict[str, float]:
    """What this part of a search cost by purpose, each in passes of all the evaluator's images through the whole model.

    What the searches measured is counted; the integers' passes, one for each plan that is fitted or looked at, are not,
    nor is what an interrupted part measured before.
    """
    costs = {
        "calibration": calibration_images / len(evaluator),
        "tuning": source.spent / len(evaluator) if isinstance(source, Tuner) else 0.0,
        "float": evaluator.float_spent,
        "sensitivities": math.fsum(found.cost for found in results),
        "probes": evaluator.spent - evaluator.float_spent,
    }
    return {**costs, "total": sum(costs.values())}


def warn_about(splits: Splits, request: Request, evaluator: Evaluator, note: Note) -> None:
    """Say so where the calibration images cannot resolve the tolerance, or miss a class."""
    allowed = request.acceptance(evaluator.float_result()).allowed
    if 0 < allowed < 1:
        enough = math.ceil(len(evaluator) / allowed)
        note(
            f"warning: {len(evaluator):,} calibration images cannot resolve a tolerance of {request.tolerance:g}: not"
            f" one image may be lost; {enough:,} images would allow one (--calibration-size)"
        )
    counts = splits.calibration.class_counts()
    missing = [name for name, count in zip(splits.calibration.classes, counts, strict=True) if count == 0]
    if missing:
        named = f"no calibration image is of class {', '.join(missing)}"
        told = "" if named in splits.info["note"] else f"{named}: "
        note(f"warning: {told}of classes without calibration images the search cannot see what it loses")


def describe_step(step: Step) -> str:
    """One line about a search step."""
    verdict = "kept" if step.accepted else "rejected"
    found = f"{step.correct:,} correct"
    if step.low < step.high:
        found = f"{step.low:,} to {step.high:,} correct"
    if step.low < step.needed <= step.high:
        verdict = "not settled, rejected"
    return f"step {step.step}: {step.about}: {found}, {step.needed:,} needed: {verdict} ({step.seen:,} images seen)"


PROBES, TRIALS, SIMPLIFIED = "probes.jsonl", "trials.jsonl", "simplified.json"


PAPER_ROUNDINGS = (Rounding.NEAREST, Rounding.TRUNCATE, Rounding.STOCHASTIC)
"""What ``rounding="all"`` tries."""


def request_of(settings: QuantizeSettings) -> Request:
    """What the search is asked for. Raises ConfigError for values out of range, or unknown hardware."""
    return Request(
        settings.tolerance,
        None if settings.budget is None else 8 * settings.budget,
        None if settings.activation_budget is None else 8 * settings.activation_budget,
        settings.ram,
        settings.relative,
        PAPER_ROUNDINGS if settings.rounding == "all" else (Rounding(settings.rounding),),
        FormatRule(Exponents.PAPER if settings.paper_formats else Exponents.BOUND, settings.log2_weights),
        settings.seed,
        settings.granularity,
        find_hardware(settings.hardware),
        settings.explore,
    )


def quantize(
    model: CapsNet,
    splits: Splits,
    out: str | Path,
    settings: QuantizeSettings | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    engine: Engine | str = Engine.AUTO,
    note: Note = silent,
    progress: Progress | None = None,
    promise: Promise | None = None,
    reference: CapsNet | None = None,
    workers: WorkerSettings | Team | None = None,
    device: str = AUTO,
) -> QuantizeResult:
    """Find a plan for ``model``, ship it as a ``.caplet`` file, and measure the shipped integers.

    The search and the calibration see ``splits.calibration`` only, or a part of it where the rest decides (see
    :mod:`caplet.jobs.quantize.promise`). ``splits.test`` is opened once, at the end.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``.
        engine: what runs the Program for the final accept and the report.
        note: called with one line of text at every decision.
        progress: called with (images done, images in all) during every measurement.
        promise: decides instead of images that the settings name; the search then sees all of ``splits.calibration``.
        reference: the network against which losses count in the end; None for ``model``.
        workers: who measures the noise of units at widths, and plans on images; None for this process alone.
        device: where calibration, search and fits are computed; ``auto``: the CPU. Integers are computed on the CPU.

    Raises:
        ModelError: NaN weights, images of another size, a layer without an integer form.
        ConfigError: settings out of range, a budget below the smallest possible one.
        ArtefactError: the run folder cannot be used. WorkerError: a worker cannot be used, or failed.
    """
    settings, engine, there = settings or QuantizeSettings(), Engine(engine), job_device(device, workers)
    splits = check(splits, model, note=note)
    request, method = request_of(settings), METHODS.find(settings.method)
    if Part.PER_CHANNEL in settings.reconstruct and request.weight_bits is not None:  # shifts are stored, too
        weights = (spec for spec in model.points().values() if spec.role is Role.WEIGHT)
        shifts = SHIFT_BITS * sum(spec.shape[output_axis(spec)] for spec in weights)
        request = replace(request, weight_bits=max(1, request.weight_bits - shifts))
    method.check(model, request)
    check_ram(model, request)
    check_request(settings.reconstruct, request)
    if settings.narrow and not settings.reconstruct:
        raise ConfigError("quantize: narrow needs reconstruction; name its parts (--reconstruct bias,rounding)")
    resolved = {**settings.model_dump(mode="json"), "hardware": request.hardware.model_dump(mode="json")}
    other = None if reference is model else reference
    model = placed(model, there)
    reference, searched, fresh = model if other is None else placed(other, there), splits, None
    error = 1 - settings.confidence
    if settings.accept == "confidence" and promise is None:
        searched, fresh = divide(model, splits, settings.validation)
        agree = "" if fresh.held_out is None else f", and {len(fresh.held_out):,} held-out ones must agree"
        seen = len(searched.calibration)
        note(f"the search sees {seen:,} images, {len(fresh.images):,} {fresh.about} decide{agree}")
        Promise(fresh, partial(correct_images, model), request.tolerance, error)  # refuses too few images
    with (
        team_of(workers, note) as team,
        begin("quantize", out, splits, resolved, model, resume=resume, force=force) as run,
        computing(there),
    ):
        began = time.perf_counter()
        team.warm(UnitSensitivity.__module__, team.count)
        if settings.simplify_routing:
            asked, images = request, searched.calibration
            simpler = simplify_routing(model, images, asked.tolerance, relative=asked.relative, note=note)
            model, left = simpler.model, simpler.tolerance - simpler.loss
            request = replace(request, tolerance=left, relative=False)
            write_record(run / SIMPLIFIED, simpler.to_json())
        evaluator = Evaluator(  # first: it refuses the log of another model or other images
            model,
            searched.calibration.images,
            searched.calibration.labels,
            cache_bytes=0 if settings.exact else DEFAULT_CACHE_BYTES,
            log_path=run / PROBES,
            progress=progress,
            early=None if settings.exact else EarlyRule(),
            team=team,
        )
        identity = model_identity(model)
        tuned = MeasurementCache(run / TUNING, "tuning log", identity)
        noises = MeasurementCache(run / SENSITIVITIES, "log of sensitivities", identity)
        calibration, calibrations = calibrated(run, model, searched.calibration, resume, note)
        source: FormatSource = calibration
        if settings.tune and not settings.paper_formats:
            source = Tuner(model, calibration, searched.calibration.evenly_spaced(TUNING_IMAGES).images, tuned)
        formats = source
        if Part.PER_CHANNEL in settings.reconstruct:
            formats = ChannelFormats(folded(model), calibration, source)
        after_fit = None
        if settings.reconstruct:
            chosen = searched.calibration.evenly_spaced(FITTED_NOISE_IMAGES).images
            fitting = ReconstructSettings(settings.reconstruct, seed=settings.seed)
            after_fit = FittedNoise(model, chosen, formats, fitting, noises.answer)
        warn_about(searched, request, evaluator, note)
        size_of, on_step = partial(footprint, model), lambda step: note(describe_step(step))
        perturbers = (source.perturber,) if isinstance(source, Tuner) else ()
        bench = Workbench(evaluator, formats, size_of, on_step, noises, after_fit, team=team, perturbers=perturbers)
        if fresh is not None:  # of the whole loss, that of simpler routing in it
            points = request_of(settings).acceptance(evaluator.float_result()).points
            promise = Promise(fresh, partial(correct_images, reference), points, error, note)
        search = partial(method.run, bench)
        fitter = Fitter(model, searched.calibration, settings.reconstruct, run, note, settings.seed)
        shipper = Shipper(run, model, reference, searched, engine, fitter, request.hardware, formats)
        trial = None if promise is None else promise.fresh.trial
        images = searched.calibration if trial is None else trial
        fits = None
        if settings.reconstruct:
            about = {"fits": fitter.identity, "images": images_digest(images.images, images.labels)}
            answered = EvaluationLog(run / TRIALS, about)
            fits = Fits(shipper, request, settings.narrow, images, note, answered)
        if promise is None:
            results = [search(request)]
            choice = as_measured(shipper, request, results[0], fits, note)
        else:
            choice, results = as_promised(shipper, search, request, promise, fits, note)
        seconds = time.perf_counter() - began
        costs = full_passes(evaluator, calibrations, source, results)
        tighter = {"tighter": [found.record for found in results[1:]]} if results[1:] else {}
        write_record(run / SEARCH, {**results[0].record, **tighter, "full_passes": costs})
        spent = {
            "seconds": round(seconds, 1),
            "probes": evaluator.measured,
            "full_passes": costs["total"],
            "calibration_images": len(searched.calibration),
        }
        return finish(shipper, settings, request, choice, spent, note)
