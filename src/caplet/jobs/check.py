"""Look at a model before any work: what is supported, what it would take on a device, and how long a search takes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from caplet.errors import ModelError
from caplet.lower import lower
from caplet.lower.handlers import HANDLERS
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.models.cost import FLOAT_BYTES, cost_of
from caplet.nn.layer import Layer
from caplet.program import Program
from caplet.program.arena import plan_memory
from caplet.program.verify import verify
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.widths import Widths, make_plan
from caplet.quant.simulate.fake_quant import fake_quantized

WIDTHS = (8, 4)
"""Uniform widths for which a Program is predicted."""
STACK_BYTES = 2_000
"""RAM for the stack, with room to spare (0.5 KB for a small network)."""
PASSES = (9, 14)
"""Full passes over the calibration images that Q-CapsNets searches took in benchmarks/records."""
_NOISE_IMAGES, _TIMED_IMAGES = 16, 32


@dataclass(frozen=True)
class Device:
    """A microcontroller: bytes of flash and of RAM."""

    name: str
    flash: int
    ram: int


DEVICES = (
    Device("STM32F103C8 (Cortex-M3)", 64 * 1024, 20 * 1024),
    Device("STM32G071RB (Cortex-M0+)", 128 * 1024, 36 * 1024),
    Device("nRF52832 (Cortex-M4)", 512 * 1024, 64 * 1024),
    Device("STM32F411RE (Cortex-M4)", 512 * 1024, 128 * 1024),
    Device("nRF52840 (Cortex-M4)", 1024 * 1024, 256 * 1024),
    Device("STM32F767ZI (Cortex-M7)", 2048 * 1024, 512 * 1024),
)
"""Common microcontrollers with their nominal sizes, the smallest first."""


@dataclass(frozen=True)
class LayerCheck:
    """One layer. ``problem`` says why it cannot become integers, and what to do; None where it can."""

    name: str
    type: str
    macs: int
    parameters: int
    problem: str | None


@dataclass(frozen=True)
class Fit:
    """A Program of one width everywhere, or a given Program, on devices.

    Attributes:
        bits: the uniform width, None for a given Program.
        flash_bytes: packed constants, without code.
        ram_bytes, small_ram_bytes: the arena with all votes stored, and with none.
        accumulator_bits: of the widest accumulator.
        device: the smallest device of :data:`DEVICES` that holds it with code and stack, votes recomputed where that
            is needed; None where none does.
    """

    bits: int | None
    flash_bytes: int
    ram_bytes: int
    small_ram_bytes: int
    accumulator_bits: int
    device: str | None


@dataclass(frozen=True)
class Check:
    """What :func:`check_model` found.

    Attributes:
        title: family, image, classes.
        parameters, macs, float_bytes: of the float model, per image; 0 for a Program.
        layers: every layer of a float model.
        fits: predictions by width, empty where a layer is not supported.
        images: calibration images that ``minutes`` is about.
        problems: what stands in the way of integers, and what to do about it; empty where nothing does.
        minutes: least and most minutes that `caplet quantize` is expected to take here; None for a Program, or where
            a layer is not supported.
    """

    title: str
    parameters: int
    macs: int
    float_bytes: int
    layers: tuple[LayerCheck, ...]
    fits: tuple[Fit, ...]
    problems: tuple[str, ...]
    images: int
    minutes: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_model(model: CapsNet | Program, images: int = 5000) -> Check:
    """Check a model without any data; exponents are chosen on noise, which hardly moves sizes.

    Args:
        images: calibration images that the search would see.

    Raises:
        ModelError: a weight is not finite.
    """
    if isinstance(model, Program):
        shape = "x".join(map(str, model.image_shape))
        title = f"Program {model.name}: {shape} images, {model.classes} classes; integers already"
        return Check(title, 0, 0, 0, (), (_fit(model, None),), (), images, None)
    check_finite(named_tensors(model), f"model {model.family}")
    model.eval()
    layers = tuple(_layers(model))
    cost = cost_of(model)
    shape = "x".join(map(str, model.config.image))
    title = f"{model.family}: {shape} images, {model.config.classes} classes"
    problems = tuple(layer.problem for layer in layers if layer.problem is not None)
    fits: tuple[Fit, ...] = ()
    minutes = None
    if not problems:
        source = calibrate(model, _noise(model, _NOISE_IMAGES))
        plans = [make_plan(model, source, Widths.uniform(len(model.groups()), bits)) for bits in WIDTHS]
        try:
            fits = tuple(_fit(lower(model, plan), bits) for plan, bits in zip(plans, WIDTHS, strict=True))
        except ModelError as error:  # a layer of a known type in a form that has no integers
            problems = (str(error),)
        else:
            seconds = _seconds_per_image(model, plans[0])
            minutes = (PASSES[0] * images * seconds / 60, PASSES[1] * images * seconds / 60)
    return Check(
        title, cost.parameters, cost.macs, FLOAT_BYTES * cost.parameters, layers, fits, problems, images, minutes
    )


def _layers(model: CapsNet) -> list[LayerCheck]:
    costs = {layer.layer: layer for layer in cost_of(model).layers}
    return [
        LayerCheck(
            layer.name,
            type(layer).__name__,
            costs[layer.name].macs.total,
            costs[layer.name].parameters,
            _problem(layer),
        )
        for layer in model.layers()
    ]


def _problem(layer: Layer) -> str | None:
    if type(layer) in HANDLERS:
        return None
    known = ", ".join(sorted(kind.__name__ for kind in HANDLERS))
    return (
        f"layer {layer.name}: {type(layer).__name__} has no integer form; use one of {known}, or add a handler"
        " (docs/adding.md)"
    )


def _noise(model: CapsNet, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *model.config.image), dtype=torch.uint8, generator=generator)


def _fit(program: Program, bits: int | None) -> Fit:
    proof = verify(program)
    fast, small = (plan_memory(program, ram, proof=proof).bytes for ram in ("fast", "small"))
    widest = max((8 * bound.bytes for bound in proof.accumulators), default=32)
    flash, ram = program.firmware_bytes, small + STACK_BYTES
    device = next((device.name for device in DEVICES if flash <= device.flash and ram <= device.ram), None)
    return Fit(bits, program.flash_bytes, fast, small, widest, device)


def _seconds_per_image(model: CapsNet, plan: QuantPlan) -> float:
    """Of a fake-quantized forward pass, as the search makes them; the second of two runs."""
    images = _noise(model, _TIMED_IMAGES).float() / 255
    with torch.no_grad(), fake_quantized(model, plan):
        model(images[:4])
        began = time.perf_counter()
        model(images)
        return (time.perf_counter() - began) / len(images)
