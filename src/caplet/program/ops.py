"""The ops of a Program: what each computes, to the last integer.

Layouts (all shapes are those of one image; everything is C order):

* Images and capsule maps are ``(rows, columns, channels)``; the channels of a capsule map are ``types x dim`` with the
  dimension fastest, so a capsule is contiguous. A convolution then reads runs of ``kernel columns x channels``
  contiguous elements, in the activation and in the weights alike.
* Convolution weights are ``(out, kernel rows, kernel columns, in)``: one output channel's filter is one contiguous row.
* Lists of capsules are ``(capsules, dim)``.
* Votes are ``(I, G, D)``, coupling and logits ``(I, G)``: everything of one input capsule is contiguous, so a routing
  streams over input capsules, and a softmax reads one row. For convolutional votes the output capsules are counted
  position by position, ``g = (row * columns + column) * types + type``: ``(G, D)`` is then, in memory, the capsule map
  ``(rows, columns, types * D)``.

Arithmetic and rounding follow the common pattern of :mod:`caplet.program.op`.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.rounding import Rounding
from caplet.program.op import ALWAYS, LEFT_OUT, Op, Shifts, Tensors, UnaryOp, accumulator_shifts, bias_frac, weight_frac
from caplet.program.tensor import Constant, IntArray


@dataclass(frozen=True, eq=False)
class InputQuantize(UnaryOp, kind="input_quantize"):
    """``output[y, x, c] = table[c, input[y, x, c]]``.

    input (H, W, C): raw pixels, format FixedFormat(8, 0, unsigned). table (C, 256): codes of the output's format; see
    :func:`pixel_table`. The table holds one code per pixel value, so rounding to it is never stochastic.
    """

    table: Constant


class Convolution(UnaryOp):
    """What plain convolutions and convolutional votes have in common."""

    weight: Constant
    bias: Constant | None
    stride: int
    padding: int
    channel_shifts: IntArray | None

    def extra(self, tensors: Tensors) -> tuple[int, int]:
        """How many more rows and columns of zeros lie after the input than before it."""
        return 0, 0

    def positions(self, tensors: Tensors) -> tuple[int, int]:
        sizes = zip(tensors[self.input].shape[:2], self.extra(tensors), self.weight.shape[1:3], strict=True)
        rows, columns = ((size + more + 2 * self.padding - k) // self.stride + 1 for size, more, k in sizes)
        return rows, columns

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + weight_frac(self.weight, self.channel_shifts)
        return accumulator_shifts(product, bias_frac(self.bias), tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class Conv2d(Convolution, kind="conv2d"):
    """2-D convolution (cross-correlation) with zero padding: optional bias, groups of channels, ReLU and upper limit.

    input (H, W, I), weight (O, KH, KW, I / groups), bias (O,) -> output (H', W', O) with
    H' = (H + 2 padding - KH) // stride + 1, or H' = ceil(H / stride) with ``same``: then as many zeros as that takes
    lie after the input, be they fewer or more than the ``padding`` before it. Output channel o reads the channels of
    group g = o // (O / groups), from g * I / groups on (depthwise where groups = I):

        acc[y, x, o] = sum over ky, kx, i of
            input[y*stride + ky - padding, x*stride + kx - padding, g * I / groups + i] * weight[o, ky, kx, i]

    where positions outside the input count as 0; then the common pattern with product_frac = frac(input) +
    frac(weight) (+ channel_shifts[o]). With relu, a negative code becomes 0 after the rounding shift; where high is
    given (ReLU6), a code above it becomes ``high``.
    """

    weight: Constant
    bias: Constant | None = None
    stride: int = 1
    padding: int = 0
    relu: bool = False
    channel_shifts: IntArray | None = None
    groups: int = field(default=1, metadata={LEFT_OUT: True})
    high: int | None = field(default=None, metadata={LEFT_OUT: True})
    same: bool = field(default=False, metadata={LEFT_OUT: ALWAYS})

    def extra(self, tensors: Tensors) -> tuple[int, int]:
        if not self.same:
            return 0, 0
        sizes = zip(tensors[self.input].shape[:2], self.weight.shape[1:3], strict=True)
        after = ((-(-size // self.stride) - 1) * self.stride + k - size - self.padding for size, k in sizes)
        rows, columns = (max(zeros, 0) - self.padding for zeros in after)
        return rows, columns

    @property
    def plain(self) -> bool:
        """One group and no upper limit: such convolutions have a form of their own in ``.caplet`` files."""
        return self.groups == 1 and self.high is None


@dataclass(frozen=True, eq=False)
class MaxPool2d(UnaryOp, kind="max_pool2d"):
    """Maximum over square windows: input (H, W, C) -> output (H', W', C), H' = (H + 2 padding - kernel) // stride + 1.

    acc is the largest code of the window (positions outside the input do not count), then the common pattern without a
    bias; product_frac = frac(input).
    """

    kernel: int
    stride: int = 1
    padding: int = 0

    def shifts(self, tensors: Tensors) -> Shifts:
        return accumulator_shifts(tensors[self.input].format.frac_bits, None, tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class ChannelAffine(UnaryOp, kind="channel_affine"):
    """Per-channel affine (batch norm after a ReLU): ``acc[..., c] = input[..., c] * scale[c]``, with bias offset[c].

    input (H, W, C), scale (C,), offset (C,) -> output (H, W, C); product_frac = frac(input) + frac(scale).
    """

    scale: Constant
    offset: Constant

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + self.scale.format.frac_bits
        return accumulator_shifts(product, self.offset.format.frac_bits, tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class LeakyRelu(UnaryOp, kind="leaky_relu"):
    """LeakyReLU of every element: ``acc = input << frac``, or ``input * slope`` where the input is negative.

    input and output of one shape; slope: a positive code with ``frac`` fraction bits, below ``1 << frac``; then the
    common pattern without a bias; product_frac = frac(input) + frac.
    """

    slope: int
    frac: int

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + self.frac
        return accumulator_shifts(product, None, tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class Listing(UnaryOp, kind="listing"):
    """A map (H, W, C) as a list, channel by channel, row by row: ``output[(c * H + y) * W + x] = input[y, x, c]``.

    output: as many elements of the same format; nothing is rounded.
    """


@dataclass(frozen=True, eq=False)
class Squash(UnaryOp, kind="squash"):
    """``caplet.fixed.squash`` of every capsule of ``dim`` dimensions.

    input and output (H, W, T * dim) or (N, dim). A capsule convolution is a Conv2d followed by this op.
    """

    dim: int


@dataclass(frozen=True, eq=False)
class Add(Op, kind="add"):
    """Sum of two tensors of one shape: the common pattern with the codes of ``a`` as products and of ``b`` as bias.

    ``output = saturate(rounding_shift((a << shifts.acc) + (b << shifts.bias), shifts.out))``. A ReLU after the sum is
    an unsigned output.
    """

    name: str
    a: str
    b: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.a, self.b)

    def shifts(self, tensors: Tensors) -> Shifts:
        a, b, out = (tensors[key].format.frac_bits for key in (self.a, self.b, self.output))
        return accumulator_shifts(a, b, out)


@dataclass(frozen=True, eq=False)
class DenseVotes(Op, kind="dense_votes"):
    """Votes of a fully connected capsule layer: ``acc[i, g, d] = sum over k of x[i, k] * weight[i, k, g * dim + d]``.

    weight (I, K, G * dim) -> output (I, G, dim). The input capsules x (I, K) are those of ``sources`` one after the
    other: a list (N, K) in its order, a capsule map (H, W, T * K) type by type, row by row, that is, capsule
    ``(type * H + row) * W + column`` of the map. Each source keeps its own format; product_frac = frac(source) +
    frac(weight) (+ channel_shifts[g * dim + d]), hence one set of shifts per source. There is no bias.

    Where the output carries (``Rounding.CARRY``), codes are those of :func:`caplet.fixed.carried_shift` along all I
    input capsules, saturated; sums of sources with fewer fraction bits are shifted left first (shifts.acc).

    selected: the places in that list of the capsules that vote, ascending, at least one of each source; x then has only
    these. None for all of them.
    """

    name: str
    sources: tuple[str, ...]
    output: str
    weight: Constant
    dim: int
    channel_shifts: IntArray | None = None
    selected: tuple[int, ...] | None = field(default=None, metadata={LEFT_OUT: True})

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.sources

    def voters(self, tensors: Tensors) -> tuple[NDArray[np.int64], ...]:
        """For every source, which of its capsules vote: their places in its own list, ascending."""
        counts = [tensors[name].elements // self.weight.shape[1] for name in self.sources]
        if self.selected is None:
            return tuple(np.arange(count) for count in counts)
        chosen = np.array(self.selected, dtype=np.int64)
        ends = pairwise(np.cumsum([0, *counts]).tolist())
        return tuple(chosen[(chosen >= first) & (chosen < end)] - first for first, end in ends)

    def shifts(self, tensors: Tensors, source: str) -> Shifts:
        own, weight = tensors[source].format.frac_bits, weight_frac(self.weight, self.channel_shifts)
        out, common = tensors[self.output], own
        if out.rounding is Rounding.CARRY:
            common = max(tensors[name].format.frac_bits for name in self.sources)
        shifts = accumulator_shifts(common + weight, None, out.format.frac_bits)
        return replace(shifts, acc=common - own)


@dataclass(frozen=True, eq=False)
class ConvVotes(Convolution, kind="conv_votes"):
    """Votes of a convolutional capsule layer: each input type is convolved with one shared kernel.

    input (H, W, I * K), weight (J * dim, KH, KW, K), bias (J * dim,) added to every vote -> output (I, G, dim) with
    G = H' * W' * J. For input type i this is the Conv2d of the channels i*K .. i*K + K - 1; its result
    (H', W', J * dim) is row i of the votes as it lies in memory.
    product_frac = frac(input) + frac(weight) (+ channel_shifts[o]).
    """

    weight: Constant
    bias: Constant | None
    in_types: int
    dim: int
    stride: int = 1
    padding: int = 0
    channel_shifts: IntArray | None = None


@dataclass(frozen=True, eq=False)
class Routing(Op, kind="routing"):
    """Dynamic routing by agreement of votes v (I, G, D); all constants and codes as named.

    With logits b = 0 (I, G) and for t = 0 .. iterations - 1:

    1. ``c[i, :] = softmax(b[i, :])`` (``caplet.fixed.softmax`` over all G outputs, logits format in, coupling format
       out). In iteration 0 the logits are zero, so their format does not matter, and unless coupling is rounded
       stochastically every code is ``uniform_coupling(G, coupling format, rounding)``.
    2. ``acc[g, d] = sum over i of c[i, g] * v[i, g, d]`` with product_frac = frac(coupling) + frac(votes);
       ``preactivation[g, d]`` by the common pattern with bias[g % types, d].
    3. ``activation[g, :] = squash(preactivation[g, :])``.
    4. Unless this is the last iteration: ``agreement[i, g] = sum over d of activation[g, d] * v[i, g, d]``;
       ``b[i, g] = saturate(b[i, g] + rounding_shift(agreement, frac(activation) + frac(votes) - frac(logits)))``.

    coupling, logits: (I, G); logits is None exactly when iterations = 1. preactivation, activation: (G, D), or for
    convolutional votes the capsule map (H', W', types * D), the same memory. bias (types, D) or None; types = G for
    dense votes. A device need not store coupling: one row of G codes at a time is enough.
    """

    name: str
    votes: str
    coupling: str
    logits: str | None
    preactivation: str
    activation: str
    bias: Constant | None
    types: int
    iterations: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.votes,)

    @property
    def outputs(self) -> tuple[str, ...]:
        logits = () if self.logits is None else (self.logits,)
        return (self.coupling, *logits, self.preactivation, self.activation)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.coupling].format.frac_bits + tensors[self.votes].format.frac_bits
        return accumulator_shifts(product, bias_frac(self.bias), tensors[self.preactivation].format.frac_bits)

    def agreement_shift(self, tensors: Tensors) -> int:
        """The rounding shift of step 4."""
        assert self.logits is not None, "a one-iteration routing has no logits"
        product = tensors[self.activation].format.frac_bits + tensors[self.votes].format.frac_bits
        return product - tensors[self.logits].format.frac_bits


@dataclass(frozen=True, eq=False)
class Lengths(UnaryOp, kind="lengths"):
    """Squared lengths: ``output[g] = sum over d of input[g, d]**2``, input (G, D) -> output (G,), a WideFormat.

    The output has ``2 * frac(input)`` fraction bits; nothing is rounded. The predicted class is the index of the
    largest, the first one on a tie.
    """


PIXEL_FORMAT = FixedFormat(8, 0, False)
"""The format of the raw image: the pixel values 0..255 themselves."""


def pixel_table(
    key: str, fmt: FixedFormat, mean: tuple[float, ...] = (0.0,), scale: tuple[float, ...] = (1.0,)
) -> Constant:
    """The table of InputQuantize: ``table[c, p] = encode((p / 255 - mean[c]) * scale[c])``, nearest, in float64.

    mean, scale: one entry per channel; the defaults are one channel of pixels / 255.

    >>> pixel_table("input.table", FixedFormat(8, 8, False)).codes[0, [0, 1, 128, 255]].tolist()
    [0, 1, 129, 255]
    """
    pixels = np.arange(256, dtype=np.float64) / 255.0
    values = (pixels - np.array(mean)[:, None]) * np.array(scale)[:, None]
    return Constant(key, fmt.encode(values), fmt)
