"""The checks that make a Program safe to run: names, graph, shapes, formats, shifts and accumulators."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat, LogFormat
from caplet.fixed.rounding import Rounding
from caplet.fixed.softmax import MAX_OUTPUTS, check_coupling_formats
from caplet.fixed.squash import check_squash_formats
from caplet.program import ops
from caplet.program.bounds import BOUNDS, AccumulatorBound, Range, code_range
from caplet.program.op import Op, Tensors
from caplet.program.program import Program
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat
from caplet.registry import Registry

MAX_ELEMENTS = 1 << 26
"""Elements of the largest tensor or constant."""
MAX_OPS = 4096
MAX_ITERATIONS = 64
MAX_CHANNEL_SHIFT = 32
MAX_SELECTED = 1 << 16
"""Places of selected input capsules take 16 bits."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Proof:
    """What :func:`verify` proved: the bound of every accumulator, in order of execution."""

    accumulators: tuple[AccumulatorBound, ...]

    def find(self, op: str, what: str) -> AccumulatorBound:
        """The bound of one accumulator of the op named ``op``. Raises KeyError for another one."""
        return {(bound.op, bound.what): bound for bound in self.accumulators}[op, what]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(bound) for bound in self.accumulators]


def verify(program: Program) -> Proof:
    """Check everything that ``run``, the C emitter and the memory plan rely on.

    Names; every tensor written exactly once and before it is read; shapes; formats; constants' shapes; shifts in
    range; every accumulator within int32, or int64 where needed. Raises PlanError saying which op breaks which rule.
    """
    _check_head(program)
    written: dict[str, Op | None] = {program.input: None}
    ranges: dict[str, Range] = {program.input: (0, 255)}
    proof: list[AccumulatorBound] = []
    names: set[str] = set()
    keys: set[str] = set()
    for op in program.ops:
        _check_name("op", op.name)
        _require(op, op.name not in names, "has the name of another op", "names are unique")
        names.add(op.name)
        for constant in op.constants:
            _check_name("constant", constant.key)
            _require(op, constant.key not in keys, f"reuses the constant {constant.key!r}", "constant keys are unique")
            keys.add(constant.key)
        for name in op.inputs:
            _require(op, name in written, f"reads {name!r}", "a tensor is read after an earlier op has written it")
        for name in op.outputs:
            _require(op, name in program.tensors, f"writes {name!r}", "a tensor that is written is declared")
            _require(op, name not in written, f"writes {name!r} again", "each tensor is written once")
            written[name] = op
            carries = program.tensors[name].rounding is Rounding.CARRY
            _require(op, not carries or isinstance(op, ops.DenseVotes), f"{name} carries", "dense votes alone do")
        CHECKS[type(op)](op, program.tensors)
        for name in op.outputs:
            ranges[name] = code_range(op, program.tensors[name])
        proof += BOUNDS[type(op)](op, program.tensors, ranges)
    for name in program.tensors:
        if name not in written:
            raise PlanError(f"tensor {name}: no op writes it; the rule is that every declared tensor is written")
    _check_votes(program, written)
    last = written[program.lengths]
    if not isinstance(last, ops.Lengths) or last.input != program.output:
        raise PlanError(f"lengths {program.lengths}: the rule is a Lengths op that reads the output {program.output!r}")
    if program.labels and len(program.labels) != program.classes:
        raise PlanError(f"labels: {len(program.labels)} for {program.classes} classes; give one per class, or none")
    return Proof(tuple(proof))


def _check_head(program: Program) -> None:
    _check_name("program", program.name)
    if not 0 <= program.seed < 1 << 32:
        raise PlanError(f"program {program.name}: seed {program.seed}; the rule is 0 .. 2**32 - 1")
    if not 1 <= len(program.ops) <= MAX_OPS:
        raise PlanError(f"program {program.name}: {len(program.ops)} ops; the rule is 1..{MAX_OPS}")
    for name in (program.input, program.output, program.lengths):
        if name not in program.tensors:
            raise PlanError(f"program {program.name}: tensor {name!r} is not declared; declare input, output, lengths")
    for key, spec in program.tensors.items():
        _check_name("tensor", key)
        if key != spec.name or not spec.shape or min(spec.shape) < 1 or spec.elements > MAX_ELEMENTS:
            raise PlanError(
                f"tensor {key}: named {spec.name!r} with shape {spec.shape}; the rule is its own key, at least one "
                f"axis, extents of at least 1 and at most {MAX_ELEMENTS} elements"
            )
        if isinstance(spec.format, LogFormat):
            raise PlanError(f"tensor {key}: format {spec.format}; the rule is that only weights are powers of two")
    pixels = program.tensors[program.input]
    if pixels.format != ops.PIXEL_FORMAT or len(pixels.shape) != 3:
        raise PlanError(f"input {pixels.name}: {pixels.format}, shape {pixels.shape}; the rule is raw pixels (H, W, C)")


def _check_name(what: str, name: str) -> None:
    if len(name) > 100 or not _NAME.fullmatch(name):
        raise PlanError(f"{what} {name!r:.120}: the rule is letters, digits, '_' and '.', a letter first, at most 100")


def _check_votes(program: Program, written: dict[str, Op | None]) -> None:
    """Votes may be recomputed on the device, so they come from a votes op and only one routing reads them."""
    read = [op.votes for op in program.ops if isinstance(op, ops.Routing)]
    for op in program.ops:
        for name in op.inputs:
            fits = isinstance(written[name], ops.DenseVotes | ops.ConvVotes) == isinstance(op, ops.Routing)
            _require(op, fits, f"reads {name!r}", "votes are read by a routing and nothing else")
        if isinstance(op, ops.DenseVotes | ops.ConvVotes):
            _require(op, read.count(op.output) == 1, f"writes {op.output!r}", "exactly one routing reads votes")


def _require(op: Op, condition: bool, found: str, rule: str) -> None:
    if not condition:
        raise PlanError(f"{op.kind} {op.name}: {found}; the rule: {rule}")


def _fixed(op: Op, spec: TensorSpec) -> FixedFormat:
    _require(op, isinstance(spec.format, FixedFormat), f"{spec.name} has {spec.format}", "a FixedFormat of 1..16 bits")
    assert isinstance(spec.format, FixedFormat)
    return spec.format


def _shape(op: Op, spec: TensorSpec, *expected: tuple[int, ...]) -> None:
    rule = f"shape {' or '.join(map(str, expected))}"
    _require(op, spec.shape in expected, f"{spec.name} has shape {spec.shape}", rule)
    _fixed(op, spec)


def _constant(op: Op, constant: Constant, shape: tuple[int, ...], log: bool = False) -> None:
    found = f"{constant.key} has shape {constant.shape} and format {constant.format}"
    kind = "a FixedFormat or LogFormat" if log else "a FixedFormat"
    fits = constant.shape == shape and (log or isinstance(constant.format, FixedFormat))
    _require(op, fits, found, f"shape {shape}, {kind}")


def _map(op: Op, spec: TensorSpec) -> tuple[int, int, int]:
    _require(op, len(spec.shape) == 3, f"{spec.name} has shape {spec.shape}", "a map (rows, columns, channels)")
    _fixed(op, spec)
    rows, columns, channels = spec.shape
    return rows, columns, channels


def _channel_shifts(op: Op, shifts: IntArray | None, channels: int) -> None:
    if shifts is not None:
        fits = shifts.shape == (channels,) and int(abs(shifts).max()) <= MAX_CHANNEL_SHIFT
        rule = f"{channels} exponents of magnitude at most {MAX_CHANNEL_SHIFT}"
        _require(op, fits, f"channel_shifts of shape {shifts.shape}", rule)


def _windows(
    op: ops.Convolution | ops.MaxPool2d, size: tuple[int, int], kernel: tuple[int, ...], extra: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    fits = 1 <= op.stride <= 64 and 0 <= op.padding < max(1, min(kernel))
    _require(op, fits, f"stride {op.stride}, padding {op.padding}", "stride 1..64, padding less than the kernel")
    room = [a + more + 2 * op.padding - k for a, more, k in zip(size, extra, kernel, strict=True)]
    _require(op, min(room) >= 0, f"kernel {kernel} on {size[0]} x {size[1]}", "the kernel fits the padded input")
    return room[0] // op.stride + 1, room[1] // op.stride + 1


CHECKS: Registry[type[Op], Callable[..., None]] = Registry("checks of op")
"""``(op, tensors)``: checks of shapes and formats; PlanError where one fails."""


@CHECKS.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, tensors: Tensors) -> None:
    source, out = tensors[op.input], tensors[op.output]
    _require(op, source.format == ops.PIXEL_FORMAT, f"reads {source.format}", "raw pixels")
    _shape(op, out, source.shape)
    _constant(op, op.table, (source.shape[-1], 256))
    _require(op, op.table.format == out.format, f"the table has {op.table.format}", f"the output's {out.format}")
    _require(op, out.rounding is not Rounding.STOCHASTIC, "rounds stochastically", "a table rounds each pixel once")


def _filters(op: ops.Convolution, tensors: Tensors, groups: int) -> tuple[int, ...]:
    """Check the filters of a convolution over ``groups`` equal parts of the channels; its output (H', W', O)."""
    rows, columns, channels = _map(op, tensors[op.input])
    _require(op, len(op.weight.shape) == 4 and min(op.weight.shape) > 0, f"weight {op.weight.shape}", "four axes")
    out, *kernel, depth = op.weight.shape
    rule = f"the weight's depth of {depth} times their number are the input's {channels} channels"
    _require(op, groups >= 1 and groups * depth == channels, f"{groups} groups or capsule types", rule)
    _constant(op, op.weight, op.weight.shape, log=True)
    if op.bias is not None:
        _constant(op, op.bias, (out,))
    _channel_shifts(op, op.channel_shifts, out)
    return (*_windows(op, (rows, columns), tuple(kernel), op.extra(tensors)), out)


@CHECKS.of(ops.Conv2d)
def _conv2d(op: ops.Conv2d, tensors: Tensors) -> None:
    shape, target = _filters(op, tensors, op.groups), tensors[op.output]
    _require(op, shape[2] % op.groups == 0, f"{op.groups} groups", f"a divisor of the {shape[2]} outputs")
    _shape(op, target, shape)
    inside = op.high is None or 0 <= op.high <= _fixed(op, target).max_code
    _require(op, inside, f"high {op.high}", f"0 .. {target.format}'s largest code")


@CHECKS.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, tensors: Tensors) -> None:
    rows, columns, channels = _map(op, tensors[op.input])
    _require(op, op.kernel >= 1, f"kernel {op.kernel}", "at least 1")
    _shape(op, tensors[op.output], (*_windows(op, (rows, columns), (op.kernel, op.kernel)), channels))


@CHECKS.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, tensors: Tensors) -> None:
    shape = _map(op, tensors[op.input])
    _constant(op, op.scale, shape[2:], log=True)
    _constant(op, op.offset, shape[2:])
    _shape(op, tensors[op.output], shape)


@CHECKS.of(ops.LeakyRelu)
def _leaky_relu(op: ops.LeakyRelu, tensors: Tensors) -> None:
    fits = 1 <= op.frac <= 15 and 0 < op.slope < 1 << op.frac
    _require(op, fits, f"slope {op.slope}, frac {op.frac}", "frac 1..15, slope above 0 and below 2**frac")
    _fixed(op, tensors[op.input])
    _shape(op, tensors[op.output], tensors[op.input].shape)


@CHECKS.of(ops.Listing)
def _listing(op: ops.Listing, tensors: Tensors) -> None:
    source, out = tensors[op.input], tensors[op.output]
    fits = len(source.shape) == 3 and (source.elements, _fixed(op, source)) == (out.elements, out.format)
    found = f"{source.shape} {source.format} to {out.shape} {out.format}"
    _require(op, fits, found, "a map (H, W, C) to as many elements of its format")


@CHECKS.of(ops.Squash)
def _squash(op: ops.Squash, tensors: Tensors) -> None:
    source, out = tensors[op.input], tensors[op.output]
    _shape(op, out, source.shape)
    whole = op.dim >= 1 and source.shape[-1] % op.dim == 0
    _require(op, whole, f"dim {op.dim} of {source.shape}", "the last axis is a whole number of capsules")
    check_squash_formats(_fixed(op, source), _fixed(op, out), op.dim)


@CHECKS.of(ops.Add)
def _add(op: ops.Add, tensors: Tensors) -> None:
    for name in (op.a, op.b, op.output):
        _shape(op, tensors[name], tensors[op.a].shape)


@CHECKS.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, tensors: Tensors) -> None:
    _require(op, len(op.weight.shape) == 3 and min(op.weight.shape) > 0, f"weight {op.weight.shape}", "three axes")
    capsules, dim, votes = op.weight.shape
    _require(op, len(set(op.sources)) == len(op.sources) > 0, f"sources {op.sources}", "at least one, each once")
    total = 0
    for name in op.sources:
        spec = tensors[name]
        _fixed(op, spec)
        lists = (len(spec.shape) == 2 and spec.shape[1] == dim) or (len(spec.shape) == 3 and spec.shape[2] % dim == 0)
        _require(op, lists, f"{name} has shape {spec.shape}", f"capsules of {dim} dimensions: (N, K) or (H, W, T * K)")
        total += spec.elements // dim
    if op.selected is None:
        _require(op, total == capsules, f"{total} input capsules", f"the weight's {capsules}")
    else:
        places = op.selected
        fits = len(places) == capsules and places[0] >= 0 and places[-1] < min(total, MAX_SELECTED)
        rising = all(a < b for a, b in pairwise(places))
        rule = f"{capsules} places (the weight's), rising, within 0..{total - 1} and 16 bits"
        _require(op, fits and rising, f"selected capsules {places[:3]}, ..., {places[-1:]}, {len(places)} in all", rule)
        each = all(len(voters) for voters in op.voters(tensors))
        _require(op, each, "a source of which no capsule votes", "at least one of each source")
    _constant(op, op.weight, (capsules, dim, votes), log=True)
    _channel_shifts(op, op.channel_shifts, votes)
    _require(op, op.dim >= 1 and votes % op.dim == 0, f"dim {op.dim} of {votes}", "whole output capsules")
    _shape(op, tensors[op.output], (capsules, votes // op.dim, op.dim))


@CHECKS.of(ops.ConvVotes)
def _conv_votes(op: ops.ConvVotes, tensors: Tensors) -> None:
    rows, columns, out = _filters(op, tensors, op.in_types)
    _require(op, op.dim >= 1 and out % op.dim == 0, f"dim {op.dim} of {out}", "whole output capsules")
    _shape(op, tensors[op.output], (op.in_types, rows * columns * out // op.dim, op.dim))


@CHECKS.of(ops.Routing)
def _routing(op: ops.Routing, tensors: Tensors) -> None:
    votes = tensors[op.votes]
    _require(op, len(votes.shape) == 3, f"votes of shape {votes.shape}", "(I, G, D)")
    inputs, outputs, dim = votes.shape
    rule = f"1..{MAX_ITERATIONS} iterations, with logits exactly when there are several"
    fits = 1 <= op.iterations <= MAX_ITERATIONS and (op.logits is None) == (op.iterations == 1)
    _require(op, fits, f"{op.iterations} iterations, logits {op.logits!r}", rule)
    _require(op, outputs <= MAX_OUTPUTS, f"{outputs} output capsules", f"at most {MAX_OUTPUTS}")
    _require(op, op.types >= 1 and outputs % op.types == 0, f"types {op.types}", f"a divisor of {outputs}")
    if op.bias is not None:
        _constant(op, op.bias, (op.types, dim))
    coupling, preactivation, activation = (tensors[k] for k in (op.coupling, op.preactivation, op.activation))
    _shape(op, coupling, (inputs, outputs))
    logits = coupling if op.logits is None else tensors[op.logits]
    _shape(op, logits, (inputs, outputs))
    check_coupling_formats(_fixed(op, logits), _fixed(op, coupling))
    maps = len(preactivation.shape) == 3 and preactivation.shape[2] == op.types * dim
    _shape(op, preactivation, (outputs, dim), *([preactivation.shape] if maps else []))
    _require(op, preactivation.elements == outputs * dim, f"preactivation {preactivation.shape}", "G * D elements")
    _shape(op, activation, preactivation.shape)
    check_squash_formats(_fixed(op, preactivation), _fixed(op, activation), dim)


@CHECKS.of(ops.Lengths)
def _lengths(op: ops.Lengths, tensors: Tensors) -> None:
    source, out = tensors[op.input], tensors[op.output]
    fmt = _fixed(op, source)
    capsules = len(source.shape) == 2 and source.shape[1] <= 64
    _require(op, capsules, f"{source.name} has shape {source.shape}", "capsules (G, D), D <= 64")
    expected = lengths_format(fmt, source.shape[-1])
    fits = out.shape == source.shape[:1] and out.format == expected
    _require(op, fits, f"{out.name} has {out.format} of shape {out.shape}", f"{expected} of shape {source.shape[:1]}")


def lengths_format(fmt: FixedFormat, dim: int) -> WideFormat:
    """The format of the squared lengths of capsules of ``dim`` codes: 32 bits where every sum of squares fits."""
    largest = dim * max(fmt.min_code**2, fmt.max_code**2)
    return WideFormat(32 if largest < 1 << 32 else 64, 2 * fmt.frac_bits)
