"""Every op of a Program as ONNX nodes, and a whole Program as an ONNX model.

The model takes ``images`` (uint8, N x channels x rows x columns) and gives ``prediction`` (int64, N), ``capsules`` (the
class capsules' codes, int32, N x classes x dimensions) and ``lengths`` (their squared lengths, int64, N x classes). All
scales are powers of two; the metadata names every tensor's bits and fraction bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding, stochastic_noise
from caplet.fixed.softmax import softmax as integer_softmax
from caplet.program import ops
from caplet.program.onnx.graph import IR_VERSION, OPSET, Graph, Value, softmax, squash
from caplet.program.op import Op, Shifts
from caplet.program.program import Program
from caplet.program.tensor import Constant
from caplet.program.verify import verify
from caplet.registry import Registry

if TYPE_CHECKING:
    import onnx

Pair = tuple[int, int]
IMAGES, PREDICTION, CAPSULES, LENGTHS = "images", "prediction", "capsules", "lengths"


def to_onnx(program: Program) -> "onnx.ModelProto":
    """The ONNX model of a Program.

    Raises ToolMissing: the package onnx is not installed. PlanError: the Program does not verify.
    """
    verify(program)
    work = Translation(program, Graph())
    work.values[program.input] = work.graph.transpose(IMAGES, (0, 2, 3, 1))
    for op in program.ops:
        TRANSLATIONS[type(op)](op, work)
    return assemble(program, work.graph, work.values[program.output], work.values[program.lengths], OPSET, {})


def assemble(
    program: Program, graph: Graph, capsules: Value, lengths: Value, opset: int, notes: Mapping[str, str]
) -> "onnx.ModelProto":
    """The model of a finished graph, from class capsules' codes and their squared lengths, and with more metadata."""
    import onnx
    from onnx import TensorProto, helper

    graph.cast(capsules, np.int32, to=CAPSULES)
    lengths = graph.cast(lengths, np.int64, to=LENGTHS)
    graph.op("ArgMax", lengths, attributes={"axis": 1, "keepdims": 0, "select_last_index": 0}, to=PREDICTION)
    outputs = (
        (PREDICTION, TensorProto.INT64, ()),
        (CAPSULES, TensorProto.INT32, program.tensors[program.output].shape),
        (LENGTHS, TensorProto.INT64, program.tensors[program.lengths].shape),
    )
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            program.name,
            [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", *program.image_shape])],
            [helper.make_tensor_value_info(name, kind, ["N", *shape]) for name, kind, shape in outputs],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
        producer_name="caplet",
    )
    formats = {name: f"{spec.format.bits},{spec.format.frac_bits}" for name, spec in program.tensors.items()}
    properties = {f"format {name}": text for name, text in formats.items()}
    helper.set_model_props(model, {"labels": "\n".join(program.labels), **properties, **notes})
    onnx.checker.check_model(model)
    return model


@dataclass
class Translation:
    """What the translations share: the graph, and the values of the Program's tensors (N, *shape), float64."""

    program: Program
    graph: Graph
    values: dict[str, Value] = field(default_factory=dict)

    def fixed(self, name: str) -> FixedFormat:
        fmt = self.program.tensors[name].format
        assert isinstance(fmt, FixedFormat)
        return fmt

    def rounding(self, name: str) -> Rounding:
        return self.program.tensors[name].rounding

    def noise(self, name: str, shape: tuple[int, ...], iteration: int = 0) -> NDArray[Any] | None:
        """The random bits of a tensor that is rounded stochastically, in another shape."""
        spec = self.program.tensors[name]
        if spec.rounding is not Rounding.STOCHASTIC:
            return None
        return stochastic_noise(self.program.seed, name, spec.elements, iteration * spec.elements).reshape(shape)

    def requantize(
        self, name: str, acc: Value, shape: tuple[int, ...], bias: Constant | None, shifts: Shifts, iteration: int = 0
    ) -> Value:
        """The common pattern: acc (N, *shape) -> codes of tensor ``name``, same shape."""
        acc = self.graph.scaled(acc, shifts.acc)
        if bias is not None:
            lifted = bias.integers.astype(np.int64) << shifts.bias
            acc = self.graph.op("Add", acc, self.graph.constant(lifted, hint=bias.key))
        noise = self.noise(name, shape, iteration)
        codes = self.graph.rounding_shift(acc, shifts.out, self.rounding(name), noise)
        return self.graph.saturate(codes, self.fixed(name))

    def store(self, name: str, value: Value) -> None:
        """The value of a tensor, in the tensor's shape."""
        self.values[name] = self.graph.reshape(value, (-1, *self.program.tensors[name].shape))

    def squash(self, capsules: Value, source: str, out: str, shape: tuple[int, ...], iteration: int = 0) -> Value:
        """Squash of capsules of codes of tensor ``source`` (N, *shape) to codes of tensor ``out``."""
        noise = self.noise(out, shape, iteration)
        return squash(self.graph, capsules, self.fixed(source), self.fixed(out), self.rounding(out), noise)

    def windows(self, x: Value, size: Pair, kernel: Pair, stride: int, padding: int, extra: Pair = (0, 0)) -> Value:
        """Every window of x (N, H, W, C) -> (N, positions, kernel elements, C); outside are zeros, ``extra`` more after
        the map than before it."""
        graph, (rows, columns) = self.graph, (a + more + 2 * padding for a, more in zip(size, extra, strict=True))
        if padding or any(extra):
            x = self.padded(x, padding, 0.0, extra)
        top = np.arange(0, rows - kernel[0] + 1, stride)[:, None, None, None]
        left = np.arange(0, columns - kernel[1] + 1, stride)[None, :, None, None]
        inside = np.arange(kernel[0])[:, None] * columns + np.arange(kernel[1])
        places = (top * columns + left + inside).reshape(-1, prod(kernel))
        flat = graph.op("Reshape", x, graph.constant((0, rows * columns, -1), np.int64))
        return graph.gather(flat, places, 1)

    def padded(self, x: Value, padding: int, outside: float, extra: Pair = (0, 0)) -> Value:
        pads = self.graph.constant([0, padding, padding, 0, 0, padding + extra[0], padding + extra[1], 0], np.int64)
        return self.graph.op("Pad", x, pads, self.graph.constant(outside))

    def size(self, name: str) -> Pair:
        rows, columns, _ = self.program.tensors[name].shape
        return rows, columns


TRANSLATIONS: Registry[type[Op], Callable[..., None]] = Registry("ONNX form of op")
"""``(op, translation)``: adds the nodes of the op and stores what it writes."""


@TRANSLATIONS.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, work: Translation) -> None:
    graph = work.graph
    first = graph.constant(256 * np.arange(op.table.shape[0]), np.int64)
    index = graph.op("Add", graph.integer(work.values[op.input]), first)
    work.values[op.output] = graph.op("Gather", graph.weights(op.table.codes.reshape(-1), op.table.key), index)


@TRANSLATIONS.of(ops.Conv2d)
def _conv2d(op: ops.Conv2d, work: Translation) -> None:
    graph, groups = work.graph, op.groups
    out, rows, columns, depth = op.weight.shape
    size = rows * columns * depth
    extra, kernel = op.extra(work.program.tensors), (rows, columns)
    windows = work.windows(work.values[op.input], work.size(op.input), kernel, op.stride, op.padding, extra)
    if op.plain:
        flat = graph.op("Reshape", windows, graph.constant((0, 0, size), np.int64))
        acc = graph.op("MatMul", flat, graph.weights(op.weight.integers.reshape(out, -1).T, op.weight.key))
    else:
        parts = graph.op("Reshape", windows, graph.constant((0, 0, rows * columns, groups, depth), np.int64))
        parts = graph.transpose(parts, (0, 3, 1, 2, 4))
        parts = graph.op("Reshape", parts, graph.constant((0, 0, 0, size), np.int64))
        filters = op.weight.integers.reshape(groups, out // groups, -1).swapaxes(1, 2)
        sums = graph.transpose(graph.op("MatMul", parts, graph.weights(filters, op.weight.key)), (0, 2, 1, 3))
        acc = graph.op("Reshape", sums, graph.constant((0, 0, out), np.int64))
    codes = work.requantize(op.output, acc, (-1, out), op.bias, op.shifts(work.program.tensors))
    work.store(op.output, graph.clip(codes, 0 if op.relu else None, op.high))


@TRANSLATIONS.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, work: Translation) -> None:
    x, (rows, columns), p = work.values[op.input], work.size(op.input), op.padding
    if p:
        x = work.padded(x, p, -(2.0**40))
    kernel = (op.kernel, op.kernel)
    windows = work.windows(x, (rows + 2 * p, columns + 2 * p), kernel, op.stride, 0)
    largest = work.graph.reduce("ReduceMax", windows, 2, keep=False)
    channels = work.program.tensors[op.output].shape[-1]
    work.store(op.output, work.requantize(op.output, largest, (-1, channels), None, op.shifts(work.program.tensors)))


@TRANSLATIONS.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, work: Translation) -> None:
    acc = work.graph.op("Mul", work.values[op.input], work.graph.weights(op.scale.integers, op.scale.key))
    shape = work.program.tensors[op.output].shape
    work.store(op.output, work.requantize(op.output, acc, shape, op.offset, op.shifts(work.program.tensors)))


@TRANSLATIONS.of(ops.LeakyRelu)
def _leaky_relu(op: ops.LeakyRelu, work: Translation) -> None:
    graph, x = work.graph, work.values[op.input]
    acc = graph.op("Max", graph.scaled(x, op.frac), graph.op("Mul", x, graph.constant(float(op.slope))))
    shape = work.program.tensors[op.output].shape
    work.values[op.output] = work.requantize(op.output, acc, shape, None, op.shifts(work.program.tensors))


@TRANSLATIONS.of(ops.Listing)
def _listing(op: ops.Listing, work: Translation) -> None:
    work.store(op.output, work.graph.transpose(work.values[op.input], (0, 3, 1, 2)))


@TRANSLATIONS.of(ops.Squash)
def _squash(op: ops.Squash, work: Translation) -> None:
    count = work.program.tensors[op.input].elements // op.dim
    capsules = work.graph.reshape(work.values[op.input], (-1, count, op.dim))
    work.store(op.output, work.squash(capsules, op.input, op.output, (-1, op.dim)))


@TRANSLATIONS.of(ops.Add)
def _add(op: ops.Add, work: Translation) -> None:
    graph, shifts = work.graph, op.shifts(work.program.tensors)
    a, b = graph.scaled(work.values[op.a], shifts.acc), graph.scaled(work.values[op.b], shifts.bias)
    noise = work.noise(op.output, work.program.tensors[op.output].shape)
    total = graph.rounding_shift(graph.op("Add", a, b), shifts.out, work.rounding(op.output), noise)
    work.store(op.output, graph.saturate(total, work.fixed(op.output)))


@TRANSLATIONS.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, work: Translation) -> None:
    graph, tensors = work.graph, work.program.tensors
    _, dim, width = op.weight.shape
    noise = work.noise(op.output, (-1, width))
    parts: list[Value] = []
    start = 0
    for name, voters in zip(op.sources, op.voters(tensors), strict=True):
        x, shape = work.values[name], tensors[name].shape
        if len(shape) == 3:  # a capsule map: type by type, row by row
            x = graph.reshape(x, (-1, shape[0] * shape[1], shape[2] // dim, dim))
            x = graph.transpose(x, (0, 2, 1, 3))
        x = graph.reshape(x, (-1, tensors[name].elements // dim, dim))
        if op.selected is not None:
            x = graph.gather(x, voters, 1)
        end = start + len(voters)
        weight = graph.weights(op.weight.integers[start:end], op.weight.key)
        acc = graph.transpose(graph.op("MatMul", graph.transpose(x, (1, 0, 2)), weight), (1, 0, 2))
        draw, shifts = None if noise is None else noise[start:end], op.shifts(tensors, name)
        rounding = work.rounding(op.output)
        carries = rounding is Rounding.CARRY
        part = graph.scaled(acc, shifts.acc) if carries else graph.rounding_shift(acc, shifts.out, rounding, draw)
        parts.append(part)
        start = end
    votes = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, attributes={"axis": 1})
    votes = graph.carried(votes, shifts.out, 1) if carries else votes
    work.store(op.output, graph.saturate(votes, work.fixed(op.output)))


@TRANSLATIONS.of(ops.ConvVotes)
def _conv_votes(op: ops.ConvVotes, work: Translation) -> None:
    graph = work.graph
    out, kernel_rows, kernel_columns, depth = op.weight.shape
    rows, columns = work.size(op.input)
    types = graph.reshape(work.values[op.input], (-1, rows, columns, op.in_types, depth))
    images = graph.reshape(graph.transpose(types, (0, 3, 1, 2, 4)), (-1, rows, columns, depth))
    windows = work.windows(images, (rows, columns), (kernel_rows, kernel_columns), op.stride, op.padding)
    flat = graph.op("Reshape", windows, graph.constant((0, 0, kernel_rows * kernel_columns * depth), np.int64))
    acc = graph.op("MatMul", flat, graph.weights(op.weight.integers.reshape(out, -1).T, op.weight.key))
    positions = work.program.tensors[op.output].elements // (op.in_types * out)
    acc = graph.reshape(acc, (-1, op.in_types, positions, out))
    shape = (op.in_types, positions, out)
    work.store(op.output, work.requantize(op.output, acc, shape, op.bias, op.shifts(work.program.tensors)))


@TRANSLATIONS.of(ops.Routing)
def _routing(op: ops.Routing, work: Translation) -> None:
    graph, tensors = work.graph, work.program.tensors
    inputs, outputs, dim = tensors[op.votes].shape
    votes = graph.transpose(work.values[op.votes], (0, 2, 1, 3))  # N, G, I, D
    shifts, logits = op.shifts(tensors), ""
    positions = outputs // op.types
    for t in range(op.iterations):
        coupling = _coupling(op, work, logits, t)  # (N or 1), I, G
        weights = graph.transpose(coupling, (0, 2, 1))
        weights = graph.op("Unsqueeze", weights, graph.constant([2], np.int64))
        acc = graph.reshape(graph.op("MatMul", weights, votes), (-1, positions, op.types, dim))
        shape = (positions, op.types, dim)
        preactivation = work.requantize(op.preactivation, acc, shape, op.bias, shifts, t)
        capsules = graph.reshape(preactivation, (-1, outputs, dim))
        activation = work.squash(capsules, op.preactivation, op.activation, (outputs, dim), t)
        if op.logits is not None and t < op.iterations - 1:
            column = graph.op("Unsqueeze", activation, graph.constant([3], np.int64))
            agreement = graph.reshape(graph.op("MatMul", votes, column), (-1, outputs, inputs))
            agreement = graph.transpose(agreement, (0, 2, 1))
            noise = work.noise(op.logits, (inputs, outputs), t)
            update = graph.rounding_shift(agreement, op.agreement_shift(tensors), work.rounding(op.logits), noise)
            logits = graph.saturate(graph.op("Add", logits, update) if logits else update, work.fixed(op.logits))
    work.store(op.activation, activation)


def _coupling(op: ops.Routing, work: Translation, logits: Value, iteration: int) -> Value:
    """Coupling codes; those of the first iteration are constants."""
    inputs, outputs = work.program.tensors[op.coupling].shape
    noise, rounding = work.noise(op.coupling, (inputs, outputs), iteration), work.rounding(op.coupling)
    out = work.fixed(op.coupling)
    if op.logits is None or not logits:
        zeros = np.zeros((1, inputs, outputs), dtype=np.int32)
        draw = None if noise is None else noise[None]
        return work.graph.constant(integer_softmax(zeros, FixedFormat(1, 0, True), out, -1, rounding, draw))
    return softmax(work.graph, logits, outputs, work.fixed(op.logits), out, rounding, noise)


@TRANSLATIONS.of(ops.Lengths)
def _lengths(op: ops.Lengths, work: Translation) -> None:
    x = work.values[op.input]
    work.values[op.output] = work.graph.reduce("ReduceSum", work.graph.op("Mul", x, x), -1, keep=False)
