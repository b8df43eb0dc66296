"""Follow images through float, fake-quant, the Program and the compiled C, and find where two levels part."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ConfigError, choose
from caplet.fixed import FixedFormat
from caplet.models.base import CapsNet
from caplet.nn.points import Handler, PointSpec, Storage
from caplet.program import Program, interpreter
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.simulate.fake_quant import FakeQuant
from caplet.runs.folder import write_record
from caplet.runs.records import TRACE, Row
from caplet.runs.shipped import program_digest

Values = NDArray[np.float64]
Level = Mapping[str, Values]
"""Tensor, or tensor and routing iteration such as ``digit.logits[1]`` -> values (images, elements), device's order."""


class LevelName(StrEnum):
    """What computes."""

    FLOAT = "float"
    FAKE = "fake"
    PROGRAM = "program"
    NATIVE = "native"


@dataclass(frozen=True)
class Parting:
    """How two levels differ at one tensor.

    Attributes:
        tensor: its name, with the routing iteration in brackets.
        differing, elements: values that differ, and in all, of all images.
        largest: the largest difference, in the tensor's own units.
        steps: the same in steps of the tensor's format.
        sqnr: signal-to-noise ratio in dB, the first level being the signal; None where nothing differs.
    """

    tensor: str
    differing: int
    elements: int
    largest: float
    steps: float
    sqnr: float | None


@dataclass(frozen=True)
class Comparison:
    """Two levels, tensor by tensor.

    Attributes:
        levels: the two, such as ``("fake", "program")``.
        first: the first row that differs, or None.
        rows: every tensor, in order of execution.
    """

    levels: tuple[str, str]
    first: Parting | None
    rows: tuple[Parting, ...]


@dataclass(frozen=True)
class Trace:
    """What :func:`trace_levels` found.

    Attributes:
        images: how many were followed.
        comparisons: of each level with the next one.
        noise: of the Program against float: ``tensor``, ``sqnr``, ``saturated`` (fraction of codes at an end of their
            range) and ``elements``; empty where one of the two was not asked for.
    """

    images: int
    comparisons: tuple[Comparison, ...]
    noise: tuple[Row, ...]


def parse_levels(text: str) -> tuple[LevelName, ...]:
    """Levels from a list such as ``"float,program"``. Raises ConfigError for an unknown one, or fewer than two.

    >>> [str(level) for level in parse_levels("fake, program")]
    ['fake', 'program']
    """
    found = [choose(name.strip(), LevelName, "level") for name in text.split(",")]
    if len(set(found)) < max(2, len(found)):
        raise ConfigError(f"levels {text!r}: the rule is at least two, each once, of {', '.join(LevelName)}")
    return tuple(found)


def trace_levels(
    program: Program,
    images: NDArray[np.uint8],
    levels: Sequence[LevelName],
    *,
    model: CapsNet | None = None,
    plan: QuantPlan | None = None,
) -> Trace:
    """Run ``images`` on every level, keep every tensor, and compare each level with the next one.

    Args:
        images: uint8 (N, C, H, W); memory grows with N.
        model: the float model, for ``float`` and ``fake``.
        plan: the Program's plan, for ``fake``.

    Raises:
        ConfigError: a level needs a model or a plan that is not given.
        PlanError: the plan is not one for the model. ToolMissing: ``native`` without a C compiler.
    """
    codes = interpreter.trace(program, images)
    formats = _formats(program, codes)
    exact = {name: _values(codes[name], fmt) for name, fmt in formats.items()}
    found = {
        level: exact if level is LevelName.PROGRAM else _level(level, program, formats, images, model, plan)
        for level in levels
    }
    comparisons = tuple(_compare(formats, (a, b), found[a], found[b]) for a, b in pairwise(levels))
    noise: tuple[Row, ...] = ()
    if LevelName.FLOAT in found:
        against = _compare(formats, (LevelName.FLOAT, LevelName.PROGRAM), found[LevelName.FLOAT], exact)
        noise = tuple(
            {
                "tensor": row.tensor,
                "sqnr": row.sqnr,
                "saturated": _saturated(codes[row.tensor], formats[row.tensor]),
                "elements": row.elements,
            }
            for row in against.rows
        )
    return Trace(len(images), comparisons, noise)


def record_trace(folder: Path, program: Program, trace: Trace) -> None:
    """Write ``trace.json`` into a run folder. Raises ArtefactError when it cannot be written."""
    write_record(folder / TRACE, {"sha256": program_digest(program), **vars(trace)})


def _formats(program: Program, codes: Iterable[str]) -> dict[str, FixedFormat]:
    """By name, in order, of all computed tensors but the squared lengths; a name per iteration inside a routing."""
    iterated = {name.partition("[")[0] for name in codes if name.endswith("]")}
    left_out = {*iterated, program.input, program.lengths}
    found = ((name, program.tensors[name.partition("[")[0]].format) for name in codes if name not in left_out)
    return {name: fmt for name, fmt in found if isinstance(fmt, FixedFormat)}


def _level(
    level: LevelName,
    program: Program,
    formats: Mapping[str, FixedFormat],
    images: NDArray[np.uint8],
    model: CapsNet | None,
    plan: QuantPlan | None,
) -> Level:
    if level is LevelName.NATIVE:
        from caplet.runtime import NativeModel

        last = {name.partition("[")[0]: name for name in formats}  # the C keeps no other iteration, and no coupling
        codes = NativeModel(program).trace(images)
        return {last[name]: _values(found, formats[last[name]]) for name, found in codes.items() if name in last}
    if model is None:
        raise ConfigError(f"the level {level} needs the float model; give it with --model")
    if level is LevelName.FLOAT:
        return _follow(model, images, formats, Handler())
    if plan is None:
        raise ConfigError("the level fake needs the plan beside the .caplet file; give the run folder")
    plan.check(model)
    return _follow(model, images, formats, FakeQuant(plan, model.points()))


def _values(codes: NDArray[Any], fmt: FixedFormat) -> Values:
    return codes.reshape(len(codes), -1) * fmt.step


class TensorRecorder(Handler):
    """A point handler that keeps every computed tensor, in the device's order, and leaves changes to ``inner``."""

    def __init__(self, names: Container[str], inner: Handler) -> None:
        self.names, self.inner = names, inner
        self.kept: dict[str, Tensor] = {}

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        value = self.inner.tap(key, spec, value, iteration)
        each = f"{key}[{iteration}]"
        name = each if each in self.names else key
        if spec.storage is Storage.RAM and name in self.names:
            ordered = value.detach().permute(0, *(1 + axis for axis in spec.device_axes))
            self.kept[name] = ordered.reshape(len(value), -1).double()
        return value

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        return self.inner.softmax(key, logits, dim, iteration)

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        return self.inner.squash(key, capsules, dim, iteration)


def _follow(model: CapsNet, images: NDArray[np.uint8], names: Container[str], inner: Handler) -> Level:
    recorder = TensorRecorder(names, inner)
    model.eval()
    with torch.no_grad(), model.handle(recorder):
        model(to_float(torch.from_numpy(images)))
    return {name: kept.expand(len(images), -1).numpy() for name, kept in recorder.kept.items()}


def _compare(
    formats: Mapping[str, FixedFormat], levels: tuple[LevelName, LevelName], first: Level, second: Level
) -> Comparison:
    rows = []
    for name, fmt in formats.items():
        if name in first and name in second:
            a, b = first[name], second[name]
            gap = np.abs(a - b)
            noise, signal = float((gap**2).sum()), float((a**2).sum())
            ratio = 10 * float(np.log10(signal / noise)) if noise and signal else None
            largest = float(gap.max())
            rows.append(Parting(name, int((gap > 0).sum()), gap.size, largest, largest / fmt.step, ratio))
    parted = next((row for row in rows if row.differing), None)
    return Comparison((str(levels[0]), str(levels[1])), parted, tuple(rows))


def _saturated(codes: NDArray[Any], fmt: FixedFormat) -> float:
    """Fraction of the codes at an end of their range; 0 is no end of an unsigned one."""
    return float(((codes == fmt.max_code) | (fmt.signed & (codes == fmt.min_code))).mean())
