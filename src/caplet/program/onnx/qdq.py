"""A Program as an ONNX graph of floats between QuantizeLinear and DequantizeLinear, for kernels of int8.

Runtimes replace a float Conv or MatMul between such pairs by integers. Input and outputs are those of the exact graph;
codes are close to the Program's, not equal: QuantizeLinear rounds halves to even codes, squash and softmax are floats,
a bias has the fraction bits of its products, and stochastic rounding becomes the nearest code. Scales are powers of
two, zero points are 0. Codes of up to 8 bits are int8 or uint8. Wider ones are int16 or uint16 of opset 21, which
kernels of int8 do not read: what computes them stays float.

Maps are (N, channels, rows, columns), lists of capsules (N, capsules, dim), votes (N, outputs, inputs, dim), float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.fixed.softmax import uniform_coupling
from caplet.program import ops
from caplet.program.onnx.graph import OPSET, Graph, Value
from caplet.program.onnx.translate import IMAGES, assemble
from caplet.program.op import Op, Shift, weight_frac
from caplet.program.program import Program
from caplet.program.verify import verify
from caplet.registry import Registry

if TYPE_CHECKING:
    import onnx

WIDE_OPSET = 21
"""The first one that quantizes to 16 bits."""
_SUM = 2**30
"""Sums of int32 stay below."""


def to_qdq(program: Program) -> "onnx.ModelProto":
    """The ONNX model of a Program in QDQ form.

    Raises ToolMissing: the package onnx is not installed. PlanError: the Program does not verify.
    """
    verify(program)
    work = Floats(program, Graph())
    for op in program.ops:
        QDQ[type(op)](op, work)
    opset = WIDE_OPSET if program.wide else OPSET
    outputs = work.codes[program.output], work.values[program.lengths]
    return assemble(program, work.graph, *outputs, opset, {"form": "qdq"})


@dataclass
class Floats:
    """What the translations share: the graph, the values of the Program's tensors, and their codes."""

    program: Program
    graph: Graph
    values: dict[str, Value] = field(default_factory=dict)
    codes: dict[str, Value] = field(default_factory=dict)

    def fixed(self, name: str) -> FixedFormat:
        fmt = self.program.tensors[name].format
        assert isinstance(fmt, FixedFormat)
        return fmt

    def constant(self, values: Any, hint: str = "constant") -> Value:
        return self.graph.constant(values, np.float32, hint)

    def dequantized(self, integers: NDArray[Any], frac: Shift, hint: str) -> Value:
        """Constant integers of ``frac`` fraction bits, for each of their first axis if there are several."""
        scale = self.constant(np.exp2(-np.asarray(frac, dtype=np.float64)))
        codes = self.graph.constant(integers, integers.dtype, hint)
        zero = self.graph.constant(np.zeros(np.shape(frac)), integers.dtype, "zero")
        return self.graph.op("DequantizeLinear", codes, scale, zero, attributes={"axis": 0} if np.ndim(frac) else None)

    def pair(self, name: str, value: Value) -> Value:
        """``value`` through QuantizeLinear and DequantizeLinear, with step and type of tensor ``name``."""
        fmt = self.fixed(name)
        parameters = self.constant(fmt.step), self.graph.constant(0, _type(fmt), "zero")
        self.codes[name] = self.graph.op("QuantizeLinear", value, *parameters)
        return self.graph.op("DequantizeLinear", self.codes[name], *parameters)

    def quantize(self, name: str, value: Value, high: int | None = None, fused: bool = False) -> Value:
        """``value`` as codes of tensor ``name``, at most ``high``; ``fused``: right behind its kernel is a pair."""
        fmt = self.fixed(name)
        limits, top = np.iinfo(_type(fmt)), fmt.max_code if high is None else high
        if (fmt.min_code, top) != (limits.min, limits.max):
            value = self.pair(name, value) if fused else value
            value = self.graph.op("Clip", value, *map(self.constant, (fmt.min_code * fmt.step, top * fmt.step)))
        return self.pair(name, value)

    def floors(self, name: str) -> bool:
        """Whether tensor ``name`` is rounded down."""
        return self.program.tensors[name].rounding is Rounding.TRUNCATE

    def offset(self, name: str, right: Shift) -> Any:
        """What sums of ``right`` more bits than tensor ``name`` need so that QuantizeLinear rounds as the Program."""
        right = np.asarray(right, dtype=np.float64)
        return np.where(right > 0, np.exp2(-right - 1) - 0.5 * self.floors(name), 0) * self.fixed(name).step

    def rounded(self, name: str, value: Value, right: Shift) -> Value:
        """Sums of ``right`` more bits than tensor ``name``, as its codes."""
        offset = self.offset(name, right)
        return self.quantize(name, self.graph.op("Add", value, self.constant(offset)) if offset.any() else value)

    def real(self, name: str, value: Value) -> Value:
        """Numbers of any bits, as codes of tensor ``name``."""
        return self.rounded(name, value, 20) if self.floors(name) else self.quantize(name, value)

    def squash(self, name: str, value: Value) -> Value:
        """Capsules along axis 2 as codes of tensor ``name``."""
        graph = self.graph
        squares = graph.reduce("ReduceSum", graph.op("Mul", value, value), 2, keep=True)
        factor = graph.op("Div", graph.op("Sqrt", squares), graph.op("Add", squares, self.constant(1)))
        return self.real(name, graph.op("Mul", value, factor))

    def convolve(self, op: ops.Convolution, x: Value, extra: tuple[int, int], groups: int, relu: bool) -> Value:
        """Sums of a convolution of x (N, channels, rows, columns).

        Filters of small integers are shifted left, each with a scale of its own, up to 6 bits and the sign: two
        products with bytes then fit 16 bits, in which some processors add them. The int32 bias has room for more bits,
        and for the one that makes halves round up.
        """
        fmt, out, integers = self.fixed(op.input), self.fixed(op.output), op.weight.integers.transpose(0, 3, 1, 2)
        frac = np.broadcast_to(weight_frac(op.weight, op.channel_shifts), len(integers)).astype(np.int64)
        biases = np.zeros(len(integers)) if op.bias is None else op.bias.format.decode(op.bias.codes)
        largest = np.abs(integers).reshape(len(integers), -1).max(axis=1)
        bound = np.abs(biases) * np.exp2(fmt.frac_bits + frac) + 255.0 * largest * integers[0].size
        right = fmt.frac_bits + frac - out.frac_bits
        wide = max(fmt.bits, out.bits) > 8 or _storage(integers) != np.int8 or bound.max() >= _SUM or right.min() < 0
        bias: tuple[Value, ...] = ()
        if not wide:
            room = np.minimum(63 / np.maximum(largest, 1), _SUM / np.maximum(bound, 1))
            more = np.floor(np.log2(np.maximum(room, 1))).astype(np.int64)
            integers, frac, right = integers << more[:, None, None, None], frac + more, right + more
            down = np.where(right > 0, np.exp2(right - 1), 0) if self.floors(op.output) else 0
            sums = biases * np.exp2(fmt.frac_bits + frac) - down + (right > np.maximum(more, 1))
            whole = np.floor(sums + 0.5).astype(np.int32)
            bias = (self.dequantized(whole, fmt.frac_bits + frac, f"{op.name}.bias"),)
        weight = self.dequantized(integers.astype(_storage(integers)), frac, op.weight.key)
        pads = [op.padding, op.padding, op.padding + extra[0], op.padding + extra[1]]
        attributes = {"strides": [op.stride] * 2, "pads": pads, "group": groups, "kernel_shape": op.weight.shape[1:3]}
        result = self.graph.op("Conv", x, weight, *bias, attributes=attributes)
        if wide:  # not an input of Conv: onnxruntime would round it to the products' bits
            lifted = (biases + self.offset(op.output, right))[:, None, None]
            result = self.graph.op("Add", result, self.constant(lifted, f"{op.name}.bias"))
        return self.graph.op("Relu", result) if relu else result


def _type(fmt: FixedFormat) -> Any:
    narrow, wide = (np.int8, np.int16) if fmt.signed else (np.uint8, np.uint16)
    return narrow if fmt.bits <= 8 else wide


def _storage(integers: NDArray[Any]) -> Any:
    """The smallest type that holds the integers of a weight."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    return next(d for d in (np.int8, np.int16, np.uint16) if np.iinfo(d).min <= low and high <= np.iinfo(d).max)


QDQ: Registry[type[Op], Callable[..., None]] = Registry("QDQ form of op")
"""``(op, translation)``: adds the nodes of the op and stores what it writes."""


@QDQ.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, work: Floats) -> None:
    graph, channels = work.graph, op.table.shape[0]
    first = graph.constant(256 * np.arange(channels).reshape(-1, 1, 1), np.int32)
    index = graph.op("Add", graph.cast(IMAGES, np.int32), first)
    table = work.constant(op.table.format.decode(op.table.codes).reshape(-1), op.table.key)
    work.values[op.output] = work.pair(op.output, graph.op("Gather", table, index))


@QDQ.of(ops.Conv2d)
def _conv2d(op: ops.Conv2d, work: Floats) -> None:
    x, extra = work.values[op.input], op.extra(work.program.tensors)
    sums = work.convolve(op, x, extra, op.groups, op.relu)
    work.values[op.output] = work.quantize(op.output, sums, op.high, fused=True)


@QDQ.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, work: Floats) -> None:
    attributes = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2, "pads": [op.padding] * 4}
    largest = work.graph.op("MaxPool", work.values[op.input], attributes=attributes)
    work.values[op.output] = work.rounded(op.output, largest, op.shifts(work.program.tensors).out)


@QDQ.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, work: Floats) -> None:
    scale, offset = (work.constant(part.format.decode(part.codes)[:, None, None]) for part in (op.scale, op.offset))
    sums = work.graph.op("Add", work.graph.op("Mul", work.values[op.input], scale), offset)
    work.values[op.output] = work.rounded(op.output, sums, op.shifts(work.program.tensors).out)


@QDQ.of(ops.LeakyRelu)
def _leaky_relu(op: ops.LeakyRelu, work: Floats) -> None:
    sums = work.graph.op("LeakyRelu", work.values[op.input], attributes={"alpha": op.slope / 2.0**op.frac})
    work.values[op.output] = work.rounded(op.output, sums, op.shifts(work.program.tensors).out)


@QDQ.of(ops.Listing)
def _listing(op: ops.Listing, work: Floats) -> None:
    elements = work.program.tensors[op.output].elements
    work.values[op.output] = work.graph.reshape(work.values[op.input], (-1, elements, 1, 1))


@QDQ.of(ops.Squash)
def _squash(op: ops.Squash, work: Floats) -> None:
    shape = work.program.tensors[op.input].shape
    grouped = (-1, shape[2] // op.dim, op.dim, shape[0] * shape[1]) if len(shape) == 3 else (-1, shape[0], op.dim, 1)
    whole = (-1, shape[2], *shape[:2]) if len(shape) == 3 else (-1, *shape)
    capsules = work.squash(op.output, work.graph.reshape(work.values[op.input], grouped))
    work.values[op.output] = work.graph.reshape(capsules, whole)


@QDQ.of(ops.Add)
def _add(op: ops.Add, work: Floats) -> None:
    total = work.graph.op("Add", work.values[op.a], work.values[op.b])
    work.values[op.output] = work.rounded(op.output, total, op.shifts(work.program.tensors).out)


@QDQ.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, work: Floats) -> None:
    graph, tensors = work.graph, work.program.tensors
    inputs, dim, width = op.weight.shape
    carries = tensors[op.output].rounding is Rounding.CARRY
    parts: list[Value] = []
    start = 0
    for name, voters in zip(op.sources, op.voters(tensors), strict=True):
        x, shape = work.values[name], tensors[name].shape
        if len(shape) == 3:  # type by type, row by row
            x = graph.reshape(x, (-1, shape[2] // dim, dim, shape[0] * shape[1]))
            x = graph.transpose(x, (0, 1, 3, 2))
        x = graph.reshape(x, (-1, tensors[name].elements // dim, dim))
        x = x if op.selected is None else graph.gather(x, voters, 1)
        integers = op.weight.integers[start : start + len(voters)]
        start += len(voters)
        frac = op.weight.format.frac_bits
        weight = work.dequantized(integers.astype(_storage(integers)), frac, op.weight.key)
        sums = graph.op("MatMul", graph.transpose(x, (1, 0, 2)), weight)
        if op.channel_shifts is not None:
            sums = graph.op("Mul", sums, work.constant(np.exp2(-op.channel_shifts.astype(np.float64))))
        parts.append(sums if carries else work.rounded(op.output, sums, op.shifts(tensors, name).out))
    votes = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, attributes={"axis": 0})
    if carries:
        frac = work.fixed(op.output).frac_bits
        codes = graph.carried(graph.scaled(graph.double(votes), frac + 1), 1, 0)
        votes = work.quantize(op.output, graph.cast(graph.scaled(codes, -frac), np.float32))
    votes = graph.reshape(votes, (inputs, -1, width // op.dim, op.dim))
    work.values[op.output] = graph.transpose(votes, (1, 2, 0, 3))


@QDQ.of(ops.ConvVotes)
def _conv_votes(op: ops.ConvVotes, work: Floats) -> None:
    graph, (rows, columns, _) = work.graph, work.program.tensors[op.input].shape
    out, _, _, depth = op.weight.shape
    images = graph.reshape(work.values[op.input], (-1, depth, rows, columns))
    votes = work.quantize(op.output, work.convolve(op, images, (0, 0), 1, False), fused=True)
    outputs = work.program.tensors[op.output].shape[1]
    types = out // op.dim
    votes = graph.reshape(votes, (-1, op.in_types, types, op.dim, outputs // types))
    votes = graph.transpose(votes, (0, 4, 2, 1, 3))
    work.values[op.output] = graph.reshape(votes, (-1, outputs, op.in_types, op.dim))


@QDQ.of(ops.Routing)
def _routing(op: ops.Routing, work: Floats) -> None:
    graph, tensors, votes = work.graph, work.program.tensors, work.values[op.votes]
    inputs, outputs, dim = tensors[op.votes].shape
    out, rounding = work.fixed(op.coupling), Rounding.TRUNCATE if work.floors(op.coupling) else Rounding.NEAREST
    first = out.step * uniform_coupling(outputs, out, rounding)
    bias = np.zeros((op.types, dim)) if op.bias is None else op.bias.format.decode(op.bias.codes)
    bias = np.tile(bias + work.offset(op.preactivation, op.shifts(tensors).out), (outputs // op.types, 1))
    logits = ""
    for t in range(op.iterations):
        if logits:
            coupling = work.real(op.coupling, graph.op("Softmax", logits, attributes={"axis": -1}))
            rows = graph.reshape(graph.transpose(coupling, (0, 2, 1)), (-1, outputs, 1, inputs))
            sums = graph.reshape(graph.op("MatMul", rows, votes), (-1, outputs, dim))
        else:
            sums = graph.reduce("ReduceSum", votes, 2, keep=False)
            sums = graph.op("Mul", sums, work.constant(first))
        preactivation = work.quantize(op.preactivation, graph.op("Add", sums, work.constant(bias)))
        activation = work.squash(op.activation, preactivation)
        if t < op.iterations - 1 and op.logits is not None:
            column = graph.reshape(activation, (-1, outputs, dim, 1))
            agreement = graph.reshape(graph.op("MatMul", votes, column), (-1, outputs, inputs))
            agreement = graph.transpose(agreement, (0, 2, 1))
            total = graph.op("Add", logits, agreement) if logits else agreement
            logits = work.rounded(op.logits, total, op.agreement_shift(tensors))
    if len(shape := tensors[op.activation].shape) == 3:
        activation = graph.reshape(activation, (-1, outputs // op.types, op.types * dim))
        activation = graph.reshape(graph.transpose(activation, (0, 2, 1)), (-1, shape[2], *shape[:2]))
    work.values[op.activation] = activation


@QDQ.of(ops.Lengths)
def _lengths(op: ops.Lengths, work: Floats) -> None:
    codes = work.graph.integer(work.codes[op.input])
    work.values[op.output] = work.graph.reduce("ReduceSum", work.graph.op("Mul", codes, codes), -1, keep=False)
