"""Look at a model before any work: what it consists of, what is supported, what it takes on a device."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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
from caplet.program.cycles import DeviceTime, device_times
from caplet.program.verify import verify
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.runs.records import TensorRecord
from caplet.runs.shipped import program_tensors, tensor_record
from caplet.train.finetune import FinetuneTask
from caplet.train.memory import Fit, fit, usable_memory
from caplet.train.settings import FinetuneSettings

FLOAT_BITS = 32
TABLE = "table"
"""Role of a constant that is no trained weight."""


def inspect_model(model: CapsNet | Program, path: Path | None = None) -> dict[str, Any]:
    """A description as JSON values: ``title``, ``groups``, ``points``, ``file_bytes``, ``notes``; of
    an imported model what was ``assumed`` and ``stated``, and ``read``, a line on each thing left out or converted.

    Groups are layer groups; a point is one tensor that the device stores, its ``format`` as in a ``.caplet`` file:
    ``s8.5`` is signed, 8 bits, 5 of them after the point. ``bytes`` of a point is its count in bits
    over 8 (as packed), the shifts of output channels (``shift_bits``) included; widths are 32 bits for a float model.
    Groups count what the papers count: not the input's table.
    """
    origin: Mapping[str, Any] = {} if isinstance(model, Program) else model.notes
    if isinstance(model, Program):
        kind, title, notes, points = "program", _title(model), _notes(model), [*program_tensors(model)]
    else:
        kind, title = "float", f"{_title(model)}, {model.parameter_count():,} parameters"
        notes = {"float weights": f"{4 * model.parameter_count():,} bytes"}
        if model.assumed:
            notes["assumed"] = model.assumed
        points = [
            tensor_record(key, spec.shape, str(spec.storage), "float32", FLOAT_BITS, str(spec.role))
            for key, spec in model.points().items()
        ]
    counted = [row for row in points if row.role != TABLE]
    names = dict.fromkeys(row.point.split(".")[0] for row in counted)
    groups = [_group(name, [row for row in counted if row.point.split(".")[0] == name]) for name in names]
    return {
        "title": title,
        "kind": kind,
        "groups": [*groups, {**_group("total", counted), "weight_widths": "", "activation_widths": ""}],
        "points": [*map(asdict, points)],
        "file_bytes": None if path is None else path.stat().st_size,
        "notes": notes,
        "assumed": dict(origin.get("assumed", {})),
        "stated": dict(origin.get("stated", {})),
        "read": list(origin.get("read", [])),
    }


def _group(name: str, rows: Sequence[TensorRecord]) -> dict[str, Any]:
    """What some tensors take together: elements, bits, and the range of their widths."""
    found: dict[str, Any] = {"group": name}
    for kind, part in (
        ("weight", [row for row in rows if row.storage == "flash"]),
        ("activation", [row for row in rows if row.storage != "flash"]),
    ):
        widths = sorted(row.bits for row in part)
        found[f"{kind}s"] = sum(row.elements for row in part)
        found[f"{kind}_bits"] = sum(row.elements * row.bits + row.shift_bits for row in part)
        found[f"{kind}_widths"] = "-".join(map(str, dict.fromkeys(widths[:1] + widths[-1:])))
    return found


def _title(model: CapsNet | Program) -> str:
    if isinstance(model, Program):
        return f"Program {model.name}: {'x'.join(map(str, model.image_shape))} images, {model.classes} classes"
    image = "x".join(map(str, model.config.image))
    return f"{model.family}: {image} images, {model.config.classes} classes"


def _notes(model: Program) -> dict[str, str]:
    memory = plan_memory(model)
    wide = [f"{bound.op} {bound.what}" for bound in verify(model).accumulators if bound.c_type.endswith("64_t")]
    largest = ", ".join(f"{name} {size:,}" for name, size in memory.peak[:3])
    return {
        "flash": f"{model.flash_bytes:,} bytes of packed constants; about {model.firmware_bytes:,} with code, in C",
        "peak RAM": f"{memory.bytes:,} bytes during {memory.peak_op} ({largest})",
        "64-bit accumulators": ", ".join(wide) or "none",
    }


WIDTHS = (8, 4)
"""Uniform widths for which a Program is predicted."""
PASSES = (9, 14)
"""Full passes over the calibration images that Q-CapsNets searches took in benchmarks/records."""
_NOISE_IMAGES, _TIMED_IMAGES = 16, 32


@dataclass(frozen=True)
class LayerCheck:
    """One layer. ``problem`` says why it cannot become integers, and what to do; None where it can."""

    name: str
    type: str
    macs: int
    parameters: int
    problem: str | None


@dataclass(frozen=True)
class DeviceFit:
    """A Program of one width everywhere, or a given Program, on devices.

    Attributes:
        bits: the uniform width, None for a given Program.
        flash_bytes: packed constants, without code.
        ram_bytes, small_ram_bytes: the arena with all votes stored, and with none.
        banded: the small one has maps in bands of rows, which are never whole.
        accumulator_bits: of the widest accumulator.
        device: the first of :data:`caplet.program.cycles.DEVICES` that holds it with code and stack, votes recomputed
            where that is needed; None where none does.
        times: how long an image takes on each of them, an estimate.
    """

    bits: int | None
    flash_bytes: int
    ram_bytes: int
    small_ram_bytes: int
    banded: bool
    accumulator_bits: int
    device: str | None
    times: tuple[DeviceTime, ...]


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
        training: what a training step takes of memory; None for a Program.
        minutes: least and most minutes that a search of `caplet quantize` is expected to take here; None for a Program,
            or where a layer is not supported.
    """

    title: str
    parameters: int
    macs: int
    float_bytes: int
    layers: tuple[LayerCheck, ...]
    fits: tuple[DeviceFit, ...]
    problems: tuple[str, ...]
    images: int
    minutes: tuple[float, float] | None
    training: Fit | None = None


def check_model(model: CapsNet | Program, images: int = 5000, batch_size: int = 64, memory: int | None = None) -> Check:
    """Check a model without any data; exponents are chosen on noise, which hardly moves sizes.

    Args:
        images: calibration images that the search would see.
        batch_size: of training. memory: bytes that it should keep to; None for most of this machine's.

    Raises:
        ModelError: a weight is not finite.
    """
    if isinstance(model, Program):
        return Check(f"{_title(model)}; integers already", 0, 0, 0, (), (_fit(model, None),), (), images, None)
    check_finite(named_tensors(model), f"model {model.family}")
    model.eval()
    cost = cost_of(model)
    found = zip(model.layers(), cost.layers, strict=True)
    layers = tuple(LayerCheck(a.name, type(a).__name__, b.macs.total, b.parameters, _problem(a)) for a, b in found)
    problems = tuple(layer.problem for layer in layers if layer.problem is not None)
    fits: tuple[DeviceFit, ...] = ()
    minutes = None
    if not problems:
        source = calibrate(model, _noise(model, _NOISE_IMAGES))
        plans = [uniform_plan(model, source, bits) for bits in WIDTHS]
        try:
            fits = tuple(_fit(lower(model, plan), bits) for plan, bits in zip(plans, WIDTHS, strict=True))
        except ModelError as error:  # a layer of a known type in a form that has no integers
            problems = (str(error),)
        else:
            each = images * _seconds_per_image(model, plans[0]) / 60
            minutes = PASSES[0] * each, PASSES[1] * each
    size = FLOAT_BYTES * cost.parameters
    task = FinetuneTask(FinetuneSettings(epochs=1, batch_size=batch_size), model)
    limit = usable_memory(torch.device("cpu")) if memory is None else memory
    training = fit(task, model.config.image, batch_size, limit)
    return Check(_title(model), cost.parameters, cost.macs, size, layers, fits, problems, images, minutes, training)


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


def _fit(program: Program, bits: int | None) -> DeviceFit:
    proof = verify(program)
    fast, small = (plan_memory(program, ram, proof=proof) for ram in ("fast", "small"))
    widest = max((8 * bound.bytes for bound in proof.accumulators), default=32)
    times = device_times(program, proof)
    device = next((time.device.name for time in times if not time.lacks), None)
    sizes = (program.flash_bytes, fast.bytes, small.bytes, bool(small.bands))
    return DeviceFit(bits, *sizes, widest, device, times)


def _seconds_per_image(model: CapsNet, plan: QuantPlan) -> float:
    """Of a fake-quantized forward pass, as the search makes them; the second of two runs."""
    images = _noise(model, _TIMED_IMAGES).float() / 255
    with torch.no_grad(), fake_quantized(model, plan):
        model(images[:4])
        began = time.perf_counter()
        model(images)
        return (time.perf_counter() - began) / len(images)
