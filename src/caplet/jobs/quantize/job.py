"""Quantize a trained model: calibrate, search, lower, accept and measure the integers, write the run folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.jobs.evaluate import check_data
from caplet.jobs.quantize.accept import QuantizeResult, Shipper, finish
from caplet.jobs.quantize.fitting import Fitter, check_request
from caplet.jobs.quantize.footprint import check_ram, footprint
from caplet.jobs.quantize.searching import (
    SENSITIVITIES,
    TUNING,
    calibrated,
    describe_step,
    full_passes,
    spread,
    warn_about,
)
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.progress import Note, Progress, silent
from caplet.quant.measure.early_decision import EarlyRule
from caplet.quant.measure.evaluator import DEFAULT_CACHE_BYTES, Evaluator
from caplet.quant.measure.log import MeasurementCache, model_identity
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.formats import FormatSource
from caplet.quant.search.methods import find_method
from caplet.quant.search.request import Workbench
from caplet.quant.search.simplify_routing import simplify_routing
from caplet.runs.folder import SPLITS, open_run
from caplet.runs.records import SEARCH
from caplet.runtime.engine import Engine

PROBES, SIMPLIFIED = "probes.jsonl", "simplified.json"


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
) -> QuantizeResult:
    """Find a plan for ``model``, ship it as a ``.caplet`` file, and measure the shipped integers.

    The search, the calibration and the final accept see ``splits.calibration`` only. ``splits.test`` is opened once,
    at the end.

    Args:
        out: the run folder. See :func:`caplet.runs.folder.open_run` for ``resume`` and ``force``.
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
        evaluator = Evaluator(  # first: it refuses the log of another model or other images
            model,
            splits.calibration.images,
            splits.calibration.labels,
            cache_bytes=0 if settings.exact else DEFAULT_CACHE_BYTES,
            log_path=run / PROBES,
            progress=progress,
            early=None if settings.exact else EarlyRule(),
        )
        identity = model_identity(model)
        tuned = MeasurementCache(run / TUNING, "tuning log", identity)
        noises = MeasurementCache(run / SENSITIVITIES, "log of sensitivities", identity)
        calibration, calibrations = calibrated(run, model, splits.calibration, resume, note)
        source: FormatSource = calibration
        if settings.tune and not settings.paper_formats:
            source = Tuner(model, calibration, spread(splits.calibration, TUNING_IMAGES), tuned)
        warn_about(splits, request, evaluator, note)
        bench = Workbench(
            evaluator,
            source,
            lambda plan: footprint(model, plan),
            lambda step: note(describe_step(step)),
            noises,
        )
        found = method.run(bench, request)
        seconds = time.perf_counter() - began
        costs = full_passes(evaluator, calibrations, source, found)
        run.write_json(SEARCH, {**found.record, "full_passes": costs})
        fitter = Fitter(model, splits.calibration, settings.reconstruct, run.path, note, settings.seed)
        shipper = Shipper(run, model, reference, splits, engine, fitter, request.hardware)
        narrowed = (lambda plan: fitter.narrowed(plan, source, request)) if settings.narrow else None
        return finish(shipper, settings, request, found, evaluator, costs, seconds, note, narrowed)
