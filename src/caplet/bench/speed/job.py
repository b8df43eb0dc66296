"""Training, search, interpreter, compiled C and PyTorch on one model, measured in turns within one call."""

import copy
import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from caplet.bench.settings import SpeedSettings
from caplet.bench.speed.apart import apart
from caplet.bench.speed.plain import plain_form
from caplet.bench.speed.works import inference, noise, training
from caplet.data.imageset import to_float
from caplet.errors import ModelError, PlanError, ToolMissing
from caplet.jobs.timing import Timed, in_turns, middle_and_ends
from caplet.lower import lower
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of
from caplet.program import interpreter
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.runs.folder import environment
from caplet.runtime import NativeModel

PLAIN, OURS, HALF = "PyTorch, plain form", "PyTorch, caplet", "the same, bfloat16"
FAKE, COMPILED, INTERPRETER = "fake-quant", "compiled C", "interpreter"
_CALIBRATED, _LEAST = 16, 0.3


def bench_speed(model: CapsNet, settings: SpeedSettings | None = None) -> dict[str, Any]:
    """Images per second of everything that runs ``model``, side by side; the model is not changed.

    ``training`` is a step (forward, margin loss, backward, Adam), ``search`` a probe of a search (a fake-quantized
    forward pass), ``inference`` a forward pass of the float network or of its integers. The plain broadcast form is the
    same network as it is usually written, in a process of its own with the allocator's defaults. Images are noise.

    Returns:
        JSON values: ``settings``; ``sides``, each with ``what``, ``side``, ``images`` (a call), ``images_per_second``
        (median, low, high); ``left_out`` by side, with the reason; ``cost``; ``load``, the machine's before; versions.

    Raises:
        ConfigError: the process of the plain form ended.
    """
    settings = settings or SpeedSettings()
    load = os.getloadavg()[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with ExitStack() as stack:
            works, left_out = _works(copy.deepcopy(model), settings, stack)
            speeds: dict[tuple[str, str], list[float]] = {}
            for what in ("training", "search", "inference"):
                chosen = {side: timed for (kind, side), timed in works.items() if kind == what}
                for side, values in in_turns(chosen, settings.turns, _LEAST).items():
                    speeds[what, side] = values
    finally:
        torch.set_num_threads(threads)
    sides = [
        {"what": what, "side": side, "images": works[what, side].images, "images_per_second": middle_and_ends(values)}
        for (what, side), values in speeds.items()
    ]
    return {
        "settings": settings.model_dump(),
        "family": model.family,
        "image": list(model.config.image),
        "sides": sides,
        "left_out": left_out,
        "cost": cost_of(model).to_json(),
        "load": round(load, 2),
        "environment": asdict(environment()),
    }


def _works(
    model: CapsNet, settings: SpeedSettings, stack: ExitStack
) -> tuple[dict[tuple[str, str], Timed], dict[str, str]]:
    """What is measured, by kind and side, and why a side is not."""
    count, left_out = settings.batch, {}
    codes = noise(model, count)
    images, labels = to_float(codes), torch.arange(count) % model.config.classes
    works: dict[tuple[str, str], Timed] = {}
    plain = plain_form(model)
    if plain is None:
        left_out[PLAIN] = "only whole ShallowCaps and DeepCaps have one here"
    else:
        ask = stack.enter_context(apart(plain, images.contiguous(), labels, settings.threads))
        works["training", PLAIN] = Timed(count, lambda: ask("training"))
        works["inference", PLAIN] = Timed(count, lambda: ask("inference"))
    works["training", OURS] = Timed(count, training(copy.deepcopy(model), images, labels))
    works["training", HALF] = Timed(count, training(copy.deepcopy(model), images, labels, "bfloat16"))
    works["inference", OURS] = Timed(count, inference(model, images))
    try:
        plan = uniform_plan(model, calibrate(model, codes[:_CALIBRATED]), settings.bits)
        program = lower(model, plan)
    except (ModelError, PlanError) as error:
        left_out |= dict.fromkeys((FAKE, COMPILED, INTERPRETER), str(error))
        return works, left_out
    works["search", FAKE] = Timed(count, _probe(copy.deepcopy(model), plan, images))
    few = codes[: settings.interpreted].numpy()
    works["inference", INTERPRETER] = Timed(len(few), lambda: interpreter.run(program, few))
    try:
        native = NativeModel(program, threads=settings.threads)
    except ToolMissing as error:
        left_out[COMPILED] = str(error)
    else:
        works["inference", COMPILED] = Timed(count, lambda: native.run(codes.numpy()))
    return works, left_out


def _probe(model: CapsNet, plan: QuantPlan, images: torch.Tensor) -> Any:
    """A fake-quantized forward pass, as searches make them."""

    def work() -> None:
        with torch.inference_mode(), fake_quantized(model, plan):
            model(images)

    return work
