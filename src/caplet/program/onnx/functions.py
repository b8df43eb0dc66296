"""Softmax and squash of :mod:`caplet.fixed` as ONNX nodes, integer by integer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.fixed.softmax import negative_exponential, sum_bits
from caplet.fixed.squash import MAX_SHIFT
from caplet.program.onnx.graph import Graph, Value

_WORD = 62
"""Bits of the largest integers."""


def softmax(
    graph: Graph,
    logits: Value,
    outputs: int,
    fmt: FixedFormat,
    out: FixedFormat,
    rounding: Rounding,
    noise: NDArray[Any] | None,
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
    if rounding is Rounding.NEAREST:
        product = graph.op("Add", product, graph.constant(1 << (shift - 1), np.int64))
    elif rounding is Rounding.STOCHASTIC:
        assert noise is not None
        bits = noise.astype(np.int64)
        term = (bits >> max(32 - shift, 0)) << max(shift - 32, 0)
        product = graph.op("Add", product, graph.constant(term, np.int64))
    coupling = graph.op("Div", product, graph.constant(1 << shift, np.int64))  # of integers that are not negative
    return graph.saturate(graph.double(coupling), out)


def squash(
    graph: Graph, codes: Value, fmt: FixedFormat, out: FixedFormat, rounding: Rounding, noise: NDArray[Any] | None
) -> Value:
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
