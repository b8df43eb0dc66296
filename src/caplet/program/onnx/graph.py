"""An ONNX graph under construction, and the arithmetic that every op of a Program is made of.

Codes are float64 tensors that hold integers: products and sums stay below 2**53 (the verifier's bounds are far below),
so that float64 computes them exactly, in any order. A rounding shift is a multiplication by a power of two, which is
exact, and a floor. :func:`softmax` and :func:`squash` of :mod:`caplet.fixed` divide integers and are made in int64.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ToolMissing
from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.fixed.softmax import negative_exponential, sum_bits
from caplet.fixed.squash import MAX_SHIFT

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 18, 10
INSTALL = "pip install 'caplet[onnx]'"
_LAST = (1 << 31) - 1  # as the end of a slice: all that follow
_WORD = 62
"""Bits of the largest integers."""
Value = str
"""The name of a tensor of the graph."""
Noise = NDArray[Any] | None


def require_onnx() -> None:
    """Raise ToolMissing where the package onnx is not installed."""
    if find_spec("onnx") is None:
        raise ToolMissing(f"ONNX export needs the Python package onnx; install it with {INSTALL}")


class Graph:
    """An ONNX graph under construction. Every method adds nodes and returns the name of their result."""

    def __init__(self) -> None:
        require_onnx()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> Value:
        self._count += 1
        return f"{hint}.{self._count}"

    def op(self, kind: str, *inputs: Value, attributes: Mapping[str, Any] | None = None, to: Value = "") -> Value:
        """One ONNX node with one output, named ``to`` if that is given."""
        from onnx import helper

        output = to or self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **dict(attributes or {})))
        return output

    def constant(self, values: Any, dtype: Any = np.float64, hint: str = "constant") -> Value:
        from onnx import numpy_helper

        name = self.name(hint)
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def weights(self, integers: NDArray[Any], hint: str) -> Value:
        """Integers of at most 32 bits, stored in the smallest type that holds them, as float64."""
        low, high = int(integers.min()), int(integers.max())
        dtypes = (np.int8, np.int16, np.int32)
        dtype = next(d for d in dtypes if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
        return self.double(self.constant(integers, dtype, hint))

    def cast(self, value: Value, dtype: Any, to: Value = "") -> Value:
        from onnx import helper

        return self.op("Cast", value, attributes={"to": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}, to=to)

    def double(self, value: Value) -> Value:
        return self.cast(value, np.float64)

    def integer(self, value: Value) -> Value:
        return self.cast(value, np.int64)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Another shape; one extent may be -1."""
        return self.op("Reshape", value, self.constant(shape, np.int64))

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        return self.op("Transpose", value, attributes={"perm": list(axes)})

    def gather(self, value: Value, indices: Any, axis: int) -> Value:
        """Elements of an axis by constant indices."""
        return self.op("Gather", value, self.constant(indices, np.int64), attributes={"axis": axis})

    def reduce(self, kind: str, value: Value, axis: int, *, keep: bool) -> Value:
        """``ReduceSum`` or ``ReduceMax`` along one axis."""
        axes = self.constant([axis], np.int64)
        return self.op(kind, value, axes, attributes={"keepdims": int(keep)})

    def scaled(self, value: Value, power: Any) -> Value:
        """``value * 2**power``, exactly; power: an integer, or integers that broadcast against the value."""
        power = np.asarray(power)
        if not power.any():
            return value
        return self.op("Mul", value, self.constant(np.exp2(power.astype(np.float64))))

    def rounding_shift(self, value: Value, shift: Any, rounding: Rounding, noise: Noise = None) -> Value:
        """:func:`caplet.fixed.rounding_shift` by a constant shift: an integer, or integers that broadcast.

        noise: 32 random bits for each element of one image, broadcasting against the value.
        """
        shift = np.asarray(shift, dtype=np.int64)
        if (shift <= 0).all():
            return self.scaled(value, -shift)
        right = np.clip(shift, 0, None)
        value = self.scaled(value, np.clip(-shift, 0, None))
        term = _rounding_term(right, rounding, noise)
        value = value if term is None else self.op("Add", value, self.constant(term))
        return self.op("Floor", self.scaled(value, -right))

    def carried(self, value: Value, shift: Any, axis: int) -> Value:
        """:func:`caplet.fixed.carried_shift` along an axis by a constant shift, the same along it."""
        sums = self.op("CumSum", value, self.constant(axis, np.int64))
        codes = self.rounding_shift(sums, shift, Rounding.NEAREST)
        first, last, one, at = (self.constant([place], np.int64) for place in (0, _LAST, 1, axis))
        before = self.op("Slice", codes, first, self.constant([-1], np.int64), at)
        rest = self.op("Sub", self.op("Slice", codes, one, last, at), before)
        return self.op("Concat", self.op("Slice", codes, first, one, at), rest, attributes={"axis": axis})

    def saturate(self, value: Value, fmt: FixedFormat) -> Value:
        return self.clip(value, fmt.min_code, fmt.max_code)

    def clip(self, value: Value, low: float | None, high: float | None, dtype: Any = np.float64) -> Value:
        """Clip to constants; None for no limit."""
        if low is not None:
            value = self.op("Max", value, self.constant(low, dtype))
        return value if high is None else self.op("Min", value, self.constant(high, dtype))


def softmax(
    graph: Graph, logits: Value, outputs: int, fmt: FixedFormat, out: FixedFormat, rounding: Rounding, noise: Noise
) -> Value:
    """:func:`caplet.fixed.softmax` over the last axis, of ``outputs`` elements; codes in, codes out, float64."""
    scale = sum_bits(outputs)
    table = negative_exponential(np.arange(1 << fmt.bits), fmt.frac_bits, scale)
    distance = graph.op("Sub", graph.reduce("ReduceMax", logits, -1, keep=True), logits)
    exponentials = graph.op("Gather", graph.constant(table, np.int64), graph.integer(distance))
    total = graph.reduce("ReduceSum", exponentials, -1, keep=True)
    reciprocal = graph.op("Div", graph.constant(1 << (scale + 31), np.int64), total)
    product = graph.op("Mul", exponentials, reciprocal)
    shift = scale + 31 - out.frac_bits
    term = _rounding_term(np.int64(shift), rounding, noise)
    product = product if term is None else graph.op("Add", product, graph.constant(term, np.int64))
    coupling = graph.op("Div", product, graph.constant(1 << shift, np.int64))  # of integers that are not negative
    return graph.saturate(graph.double(coupling), out)


def _rounding_term(right: Any, rounding: Rounding, noise: Noise) -> Any:
    """What a rounding shift by the int64 constants ``right`` adds before it shifts, or None for nothing."""
    if rounding is Rounding.STOCHASTIC:
        assert noise is not None
        return (noise.astype(np.int64) >> np.clip(32 - right, 0, None)) << np.clip(right - 32, 0, None)
    return (1 << right) >> 1 if rounding is Rounding.NEAREST else None


def squash(graph: Graph, codes: Value, fmt: FixedFormat, out: FixedFormat, rounding: Rounding, noise: Noise) -> Value:
    """:func:`caplet.fixed.squash` of the last axis; codes in, codes out, float64."""
    x = graph.integer(codes)
    q = graph.reduce("ReduceSum", graph.op("Mul", x, x), -1, keep=True)
    up = max(-fmt.frac_bits, 0)
    units = graph.op("Mul", graph.clip(q, 1, None, np.int64), graph.constant(1 << (2 * up), np.int64))
    den = graph.op("Add", units, graph.constant(1 << (2 * max(fmt.frac_bits, 0)), np.int64))
    room = graph.op("Sub", graph.constant(_WORD, np.int64), _bit_length(graph, units))
    k = graph.op("Div", room, graph.constant(2, np.int64))
    root = _isqrt(graph, graph.op("Mul", units, _power(graph, graph.op("Add", k, k))))
    j = graph.op("Sub", _bit_length(graph, den), graph.constant(31, np.int64))
    down, lift = graph.clip(j, 0, None, np.int64), graph.clip(graph.op("Neg", j), 0, None, np.int64)
    normal = graph.op("Mul", graph.op("Div", den, _power(graph, down)), _power(graph, lift))
    factor = graph.op("Div", graph.op("Mul", root, graph.constant(1 << 30, np.int64)), normal)
    shift = graph.op("Add", graph.op("Add", k, j), graph.constant(30 - up - out.frac_bits, np.int64))
    shift = graph.clip(shift, None, MAX_SHIFT, np.int64)
    product = graph.op("Mul", graph.double(x), graph.double(factor))  # below 2**47
    if rounding is Rounding.STOCHASTIC:
        assert noise is not None
        product = graph.op("Add", product, graph.double(_random_term(graph, noise, shift)))
    scaled = graph.op("Div", product, graph.double(_power(graph, shift)))
    if rounding is Rounding.NEAREST:
        scaled = graph.op("Add", scaled, graph.constant(0.5))
    return graph.saturate(graph.op("Floor", scaled), out)


def _power(graph: Graph, exponent: Value) -> Value:
    """2**exponent, int64, for exponents from 0 to 62."""
    return graph.op("Gather", graph.constant([1 << bit for bit in range(_WORD + 1)], np.int64), exponent)


def _bit_length(graph: Graph, n: Value) -> Value:
    """Bit length of int64 (..., 1), 0 < n < 2**62: how many powers of two are not above it."""
    powers = graph.constant([1 << bit for bit in range(_WORD)], np.int64)
    return graph.reduce("ReduceSum", graph.integer(graph.op("GreaterOrEqual", n, powers)), -1, keep=True)


def _isqrt(graph: Graph, n: Value) -> Value:
    """Floor of the square root of int64, 0 < n < 2**62: that of float64, settled by integer comparisons."""
    one = graph.constant(1, np.int64)
    root = graph.integer(graph.op("Floor", graph.op("Sqrt", graph.double(n))))
    root = graph.clip(root, None, (1 << 31) - 1, np.int64)
    root = graph.op("Sub", root, graph.integer(graph.op("Greater", graph.op("Mul", root, root), n)))
    above = graph.op("Add", root, one)
    return graph.op("Add", root, graph.integer(graph.op("LessOrEqual", graph.op("Mul", above, above), n)))


def _random_term(graph: Graph, noise: NDArray[Any], shift: Value) -> Value:
    """The top ``shift`` bits of 32 random bits, or those bits followed by zeros; shift: 5 to 62."""
    word = graph.constant(32, np.int64)
    less = graph.clip(graph.op("Sub", word, shift), 0, None, np.int64)
    more = graph.clip(graph.op("Sub", shift, word), 0, None, np.int64)
    top = graph.op("Div", graph.constant(noise.astype(np.int64), np.int64), _power(graph, less))
    return graph.op("Mul", top, _power(graph, more))
