"""Worst cases of every accumulator of a Program, from the integers of its weights; the overflow proof.

A sum of products x_j * w_j with lo <= x_j <= hi (lo <= 0 <= hi) stays, for every order of summation and every image,
within ``[P*lo - N*hi, P*hi - N*lo]``, P and N being the sums of the positive and of the negated negative weights: the
L1 norm split by sign. The bound then follows the accumulator through its left shift, the bias and the rounding term.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import PlanError
from caplet.fixed.rounding import Rounding
from caplet.program import ops
from caplet.program.op import Op, Shifts, Tensors
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat
from caplet.registry import Registry

Range = tuple[int, int]
Ranges = Mapping[str, Range]
Wide = NDArray[np.int64]


@dataclass(frozen=True)
class AccumulatorBound:
    """The proof for one accumulator.

    op: name of the op; what: which of its accumulators (``acc``, ``agreement``, ``sum_of_squares``, with the source's
    name for dense votes).
    low, high: every intermediate value lies within, rounding term included.
    products: the largest magnitude that a partial sum of products can have, before any shift.
    c_type: the narrowest C type that suffices: int32_t or int64_t (uint32_t or uint64_t for sums of squares).
    """

    op: str
    what: str
    low: int
    high: int
    products: int
    c_type: str

    @property
    def bytes(self) -> int:
        return 8 if "64" in self.c_type else 4


def code_range(op: Op, spec: TensorSpec) -> Range:
    """The codes that ``op`` can write into ``spec``: its format's range, or less where the op says so."""
    if isinstance(spec.format, WideFormat):
        return 0, (1 << spec.format.bits) - 1
    low, high = spec.format.min_code, spec.format.max_code
    if isinstance(op, ops.InputQuantize):
        return min(0, int(op.table.codes.min())), max(0, int(op.table.codes.max()))
    if isinstance(op, ops.Conv2d):
        return 0 if op.relu else low, high if op.high is None else min(high, op.high)
    if isinstance(op, ops.Squash) or (isinstance(op, ops.Routing) and spec.name in (op.coupling, op.activation)):
        one = 1 << max(spec.format.frac_bits, 0)  # squash and softmax stay within [-1, 1]
        return max(low, -one), min(high, one)
    return low, high


BOUNDS: Registry[type[Op], Callable[..., list[AccumulatorBound]]] = Registry("accumulator bounds of op")
"""``(op, tensors, ranges)`` -> its accumulators; PlanError where int64 does not suffice or a shift is too long."""


@BOUNDS.of(ops.InputQuantize)
@BOUNDS.of(ops.Listing)
def _no_sums(op: ops.InputQuantize | ops.Listing, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    return []


@BOUNDS.of(ops.MaxPool2d)
@BOUNDS.of(ops.LeakyRelu)
def _one_code(op: ops.MaxPool2d | ops.LeakyRelu, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    factors = (op.slope, 1 << op.frac) if isinstance(op, ops.LeakyRelu) else (1, 1)
    low, high = (np.array([end * by], dtype=np.int64) for end, by in zip(ranges[op.input], factors, strict=True))
    return [_through(op, "acc", low, high, None, op.shifts(tensors), tensors[op.output].rounding)]


@BOUNDS.of(ops.Conv2d)
@BOUNDS.of(ops.ConvVotes)
@BOUNDS.of(ops.ChannelAffine)
def _products_and_bias(
    op: ops.Convolution | ops.ChannelAffine, tensors: Tensors, ranges: Ranges
) -> list[AccumulatorBound]:
    weight, bias = (op.scale, op.offset) if isinstance(op, ops.ChannelAffine) else (op.weight, op.bias)
    low, high = _products(weight.integers.reshape(weight.shape[0], -1), 1, ranges[op.input])
    return [_through(op, "acc", low, high, bias, op.shifts(tensors), tensors[op.output].rounding)]


@BOUNDS.of(ops.Squash)
@BOUNDS.of(ops.Lengths)
def _squares(op: ops.Squash | ops.Lengths, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    dim = op.dim if isinstance(op, ops.Squash) else tensors[op.input].shape[-1]
    return [_sum_of_squares(op, dim, ranges[op.input])]


@BOUNDS.of(ops.Add)
def _add(op: ops.Add, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    shifts = op.shifts(tensors)
    assert isinstance(shifts.bias, int)
    low, high = (np.array([end], dtype=np.int64) for end in ranges[op.a])
    addend = (ranges[op.b][0] << _left(op, shifts.bias), ranges[op.b][1] << _left(op, shifts.bias))
    return [_finish(op, "acc", low, high, ([addend[0]], [addend[1]]), shifts, tensors[op.output].rounding)]


@BOUNDS.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    result = []
    weight = op.weight.integers
    start = 0
    for source, voters in zip(op.sources, op.voters(tensors), strict=True):
        count = len(voters)
        low, high = _products(weight[start : start + count], 1, ranges[source])
        shifts = op.shifts(tensors, source)
        rounding = tensors[op.output].rounding
        result.append(_through(op, f"acc:{source}", low.min(axis=0), high.max(axis=0), None, shifts, rounding))
        start += count
    if tensors[op.output].rounding is Rounding.CARRY:  # one row of remainders serves all sources
        most = max(max(-bound.low, bound.high) for bound in result)
        if most * weight.shape[0] >= 1 << 62:
            raise PlanError(f"{op.kind} {op.name}: running sums can reach 2**62; bring the formats closer")
        result = [replace(bound, c_type=max(each.c_type for each in result)) for bound in result]
    return result


@BOUNDS.of(ops.Routing)
def _routing(op: ops.Routing, tensors: Tensors, ranges: Ranges) -> list[AccumulatorBound]:
    inputs, _, dim = tensors[op.votes].shape
    vote_low, vote_high = ranges[op.votes]
    coupling = ranges[op.coupling][1]
    low, high = (np.array([inputs * coupling * end], dtype=np.int64) for end in (vote_low, vote_high))
    shifts = op.shifts(tensors)
    result = [_through(op, "acc", low, high, op.bias, shifts, tensors[op.preactivation].rounding)]
    result.append(_sum_of_squares(op, dim, ranges[op.preactivation]))
    if op.logits is not None:
        ends = [a * v for a in ranges[op.activation] for v in (vote_low, vote_high)]
        low, high = (np.array([dim * end], dtype=np.int64) for end in (min(ends), max(ends)))
        shift = op.agreement_shift(tensors)
        bound = _finish(op, "agreement", low, high, ([0], [0]), Shifts(0, 0, shift), tensors[op.logits].rounding)
        least, most = bound.low - (1 << 16), bound.high + (1 << 16)  # a logit is added before saturating
        result.append(_typed(op, "agreement", least, most, bound.products, bound.bytes))
    return result


def _products(weight: IntArray, axis: int, codes: Range) -> tuple[Wide, Wide]:
    """Lowest and highest sums of products over ``axis`` (0 included), int64: below 2**31 terms of 2**32 cannot wrap."""
    total = weight.sum(axis=axis, dtype=np.int64)
    norm = np.abs(weight).sum(axis=axis, dtype=np.int64)
    positive, negative = (norm + total) // 2, (norm - total) // 2
    return positive * codes[0] - negative * codes[1], positive * codes[1] - negative * codes[0]


def _left(op: Op, shift: int) -> int:
    if not 0 <= shift <= 62:
        raise PlanError(f"{op.kind} {op.name}: a left shift of {shift}; the rule is 0..62: bring the formats closer")
    return shift


def _objects(values: Any, count: int) -> list[int]:
    return [int(value) for value in np.broadcast_to(np.asarray(values), (count,)).tolist()]


def _through(
    op: Op, what: str, low: Wide, high: Wide, bias: Constant | None, shifts: Shifts, rounding: Rounding
) -> AccumulatorBound:
    """Bound of the common pattern; low, high and the shifts are per output channel (or of length 1)."""
    if bias is None:
        return _finish(op, what, low, high, ([0], [0]), shifts, rounding)
    values = bias.integers.reshape(-1)
    left = [_left(op, shift) for shift in _objects(shifts.bias, values.size)]
    shifted = [value << shift for value, shift in zip(values.tolist(), left, strict=True)]
    return _finish(op, what, low, high, (shifted, shifted), shifts, rounding)


def _finish(
    op: Op, what: str, low: Wide, high: Wide, addend: tuple[list[int], list[int]], shifts: Shifts, rounding: Rounding
) -> AccumulatorBound:
    """Follow [low, high] through left shift, addend, rounding term and a possible left shift, in Python integers."""
    count = max(low.size, len(addend[0]))
    least = most = longest = 0
    acc, out = _objects(shifts.acc, count), _objects(shifts.out, count)
    lows, highs = _objects(low, count), _objects(high, count)
    adds = [end * (count if len(end) == 1 else 1) for end in addend]
    for o in range(count):
        down, up = lows[o] << _left(op, acc[o]), highs[o] << _left(op, acc[o])
        down, up = min(down, down + adds[0][o], adds[0][o]), max(up, up + adds[1][o], adds[1][o])
        if out[o] > 0:
            up += {Rounding.NEAREST: 1 << out[o] - 1, Rounding.TRUNCATE: 0}.get(rounding, 1 << out[o])
        else:
            down, up = down << _left(op, -out[o]), up << _left(op, -out[o])
        least, most, longest = min(least, down), max(most, up), max(longest, acc[o], abs(out[o]))
    products = max(-int(low.min()), int(high.max()))
    if longest > 62:
        raise PlanError(f"{op.kind} {op.name}: {what} is shifted by {longest} bits, at most 62 are; use closer formats")
    return _typed(op, what, least, most, products, 8 if longest > 31 else 4)


def _typed(op: Op, what: str, low: int, high: int, products: int, least_bytes: int) -> AccumulatorBound:
    for bits in (32, 64):
        if bits // 8 >= least_bytes and -(1 << (bits - 1)) <= low and high < 1 << (bits - 1):
            return AccumulatorBound(op.name, what, low, high, products, f"int{bits}_t")
    raise PlanError(f"{op.kind} {op.name}: {what} can reach {low}..{high}, beyond 64 bits; bring the formats closer")


def _sum_of_squares(op: Op, dim: int, codes: Range) -> AccumulatorBound:
    high = dim * max(codes[0] ** 2, codes[1] ** 2)
    return AccumulatorBound(op.name, "sum_of_squares", 0, high, high, "uint32_t" if high < 1 << 32 else "uint64_t")
