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

Arithmetic. Codes are integers; ``frac(t)`` is the fraction bits of t's format. Every op that accumulates follows one
pattern, with the shifts of :func:`accumulator_shifts`:

    acc  = sum of products of codes                     (product_frac fraction bits)
    acc  = (acc << shifts.acc) + (bias << shifts.bias)  (the larger of product_frac and frac(bias); both exact)
    code = saturate(rounding_shift(acc, shifts.out))    (frac(output); rounding of the output tensor)

acc is int32, or int64 where ``caplet.program.verify`` proves that int32 can overflow; the sums may be made in any
order. Weights in a LogFormat take part as ``Constant.integers``.

``channel_shifts`` (int32, one per output channel, or None) gives each output channel an exponent of its own: the
weights of channel o have ``frac(weight) + channel_shifts[o]`` fraction bits.

Stochastic rounding of element e (its index in the tensor's own layout) of a tensor written in iteration t (0 outside a
routing) draws element ``t * elements + e`` of ``stochastic_noise(program seed, tensor name)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.program.tensor import Constant, IntArray, TensorSpec

Tensors = Mapping[str, TensorSpec]
Shift = int | NDArray[np.int64]
"""One shift, or one per output channel; negative means left."""
UNWRITTEN = "unwritten"
"""Marks, in a field's metadata, that a ``.caplet`` file leaves the field out where it is None."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """Left shifts of the sum of products and of the bias (never negative), and the rounding shift to the output."""

    acc: Shift
    bias: Shift
    out: Shift


def accumulator_shifts(product_frac: Shift, bias_frac: int | None, out_frac: int) -> Shifts:
    """Shifts that bring products and bias to their common fraction bits, and the sum to the output's.

    >>> accumulator_shifts(10, 12, 5)
    Shifts(acc=2, bias=0, out=7)
    """
    if isinstance(product_frac, int):
        common: Shift = product_frac if bias_frac is None else max(product_frac, bias_frac)
    else:
        common = product_frac if bias_frac is None else np.maximum(product_frac, bias_frac)
    return Shifts(common - product_frac, 0 if bias_frac is None else common - bias_frac, common - out_frac)


def weight_frac(weight: Constant, channel_shifts: IntArray | None) -> Shift:
    """Fraction bits of the weights, per output channel where they differ."""
    if channel_shifts is None:
        return weight.format.frac_bits
    return weight.format.frac_bits + channel_shifts.astype(np.int64)


def _equal(a: object, b: object) -> bool:
    return not isinstance(b, np.ndarray) and a == b


def _bias_frac(bias: Constant | None) -> int | None:
    return None if bias is None else bias.format.frac_bits


class Op:
    """Base of the ops. ``name`` is the layer's name; ``kind`` names the op in files and in C."""

    kind: ClassVar[str]
    name: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors written."""
        raise NotImplementedError

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constants in flash, in a fixed order."""
        return ()

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` is the same op: every field equal, arrays element by element."""
        if type(other) is not type(self):
            return NotImplemented
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else _equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.kind, self.name))


class _Unary(Op):
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)


@dataclass(frozen=True)
class InputQuantize(_Unary):
    """``output[y, x, c] = table[c, input[y, x, c]]``.

    input (H, W, C): raw pixels, format FixedFormat(8, 0, unsigned). table (C, 256): codes of the output's format; see
    :func:`pixel_table`. The table holds one code per pixel value, so rounding to it is never stochastic.
    """

    kind: ClassVar[str] = "input_quantize"

    name: str
    input: str
    output: str
    table: Constant

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.table,)


@dataclass(frozen=True, eq=False)
class Conv2d(_Unary):
    """2-D convolution (cross-correlation) with zero padding, optional bias, optional ReLU.

    input (H, W, I), weight (O, KH, KW, I), bias (O,) -> output (H', W', O), H' = (H + 2 padding - KH) // stride + 1:

        acc[y, x, o] = sum over ky, kx, i of input[y*stride + ky - padding, x*stride + kx - padding, i]
                       * weight[o, ky, kx, i]        (positions outside the input count as 0)

    then the common pattern; product_frac = frac(input) + frac(weight) (+ channel_shifts[o]). With relu, a negative
    code becomes 0 after the rounding shift.
    """

    kind: ClassVar[str] = "conv2d"

    name: str
    input: str
    output: str
    weight: Constant
    bias: Constant | None = None
    stride: int = 1
    padding: int = 0
    relu: bool = False
    channel_shifts: IntArray | None = None

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + weight_frac(self.weight, self.channel_shifts)
        return accumulator_shifts(product, _bias_frac(self.bias), tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class GroupedConv2d(_Unary):
    """2-D convolution in ``groups`` of channels (depthwise where groups = I), with an optional upper limit (ReLU6).

    input (H, W, I), weight (O, KH, KW, I / groups), bias (O,) -> output (H', W', O). Output channel o is the Conv2d of
    the input channels g * I / groups .. (g + 1) * I / groups - 1, g = o // (O / groups); product_frac as there. With
    relu, a negative code becomes 0 after the rounding shift; where high is given, a code above it becomes ``high``.
    """

    kind: ClassVar[str] = "grouped_conv2d"

    name: str
    input: str
    output: str
    weight: Constant
    bias: Constant | None
    groups: int
    stride: int = 1
    padding: int = 0
    relu: bool = False
    high: int | None = None
    channel_shifts: IntArray | None = None

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + weight_frac(self.weight, self.channel_shifts)
        return accumulator_shifts(product, _bias_frac(self.bias), tensors[self.output].format.frac_bits)


@dataclass(frozen=True)
class MaxPool2d(_Unary):
    """Maximum over square windows: input (H, W, C) -> output (H', W', C), H' = (H + 2 padding - kernel) // stride + 1.

    acc is the largest code of the window (positions outside the input do not count), then the common pattern without a
    bias; product_frac = frac(input).
    """

    kind: ClassVar[str] = "max_pool2d"

    name: str
    input: str
    output: str
    kernel: int
    stride: int = 1
    padding: int = 0

    def shifts(self, tensors: Tensors) -> Shifts:
        return accumulator_shifts(tensors[self.input].format.frac_bits, None, tensors[self.output].format.frac_bits)


@dataclass(frozen=True)
class ChannelAffine(_Unary):
    """Per-channel affine (batch norm after a ReLU): ``acc[..., c] = input[..., c] * scale[c]``, with bias offset[c].

    input (H, W, C), scale (C,), offset (C,) -> output (H, W, C); product_frac = frac(input) + frac(scale).
    """

    kind: ClassVar[str] = "channel_affine"

    name: str
    input: str
    output: str
    scale: Constant
    offset: Constant

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.scale, self.offset)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + self.scale.format.frac_bits
        return accumulator_shifts(product, self.offset.format.frac_bits, tensors[self.output].format.frac_bits)


@dataclass(frozen=True)
class Squash(_Unary):
    """``caplet.fixed.squash`` of every capsule of ``dim`` dimensions.

    input and output (H, W, T * dim) or (N, dim). A capsule convolution is a Conv2d followed by this op.
    """

    kind: ClassVar[str] = "squash"

    name: str
    input: str
    output: str
    dim: int


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape: the common pattern with the codes of ``a`` as products and of ``b`` as bias.

    ``output = saturate(rounding_shift((a << shifts.acc) + (b << shifts.bias), shifts.out))``. A ReLU after the sum is
    an unsigned output.
    """

    kind: ClassVar[str] = "add"

    name: str
    a: str
    b: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.a, self.b)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def shifts(self, tensors: Tensors) -> Shifts:
        a, b, out = (tensors[key].format.frac_bits for key in (self.a, self.b, self.output))
        return accumulator_shifts(a, b, out)


@dataclass(frozen=True, eq=False)
class DenseVotes(Op):
    """Votes of a fully connected capsule layer: ``acc[i, g, d] = sum over k of x[i, k] * weight[i, k, g * dim + d]``.

    weight (I, K, G * dim) -> output (I, G, dim). The input capsules x (I, K) are those of ``sources`` one after the
    other: a list (N, K) in its order, a capsule map (H, W, T * K) type by type, row by row, that is, capsule
    ``(type * H + row) * W + column`` of the map. Each source keeps its own format; product_frac = frac(source) +
    frac(weight) (+ channel_shifts[g * dim + d]), hence one set of shifts per source. There is no bias.

    selected: the places in that list of the capsules that vote, ascending, at least one of each source; x then has only
    these. None for all of them.
    """

    kind: ClassVar[str] = "dense_votes"

    name: str
    sources: tuple[str, ...]
    output: str
    weight: Constant
    dim: int
    channel_shifts: IntArray | None = None
    selected: tuple[int, ...] | None = field(default=None, metadata={UNWRITTEN: True})

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.sources

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.weight,)

    def voters(self, tensors: Tensors) -> tuple[NDArray[np.int64], ...]:
        """For every source, which of its capsules vote: their places in its own list, ascending."""
        counts = [tensors[name].elements // self.weight.shape[1] for name in self.sources]
        if self.selected is None:
            return tuple(np.arange(count) for count in counts)
        chosen = np.array(self.selected, dtype=np.int64)
        ends = pairwise(np.cumsum([0, *counts]).tolist())
        return tuple(chosen[(chosen >= first) & (chosen < end)] - first for first, end in ends)

    def shifts(self, tensors: Tensors, source: str) -> Shifts:
        product = tensors[source].format.frac_bits + weight_frac(self.weight, self.channel_shifts)
        return accumulator_shifts(product, None, tensors[self.output].format.frac_bits)


@dataclass(frozen=True, eq=False)
class ConvVotes(_Unary):
    """Votes of a convolutional capsule layer: each input type is convolved with one shared kernel.

    input (H, W, I * K), weight (J * dim, KH, KW, K), bias (J * dim,) added to every vote -> output (I, G, dim) with
    G = H' * W' * J. For input type i this is the Conv2d of the channels i*K .. i*K + K - 1; its result
    (H', W', J * dim) is row i of the votes as it lies in memory.
    product_frac = frac(input) + frac(weight) (+ channel_shifts[o]).
    """

    kind: ClassVar[str] = "conv_votes"

    name: str
    input: str
    output: str
    weight: Constant
    bias: Constant | None
    in_types: int
    dim: int
    stride: int = 1
    padding: int = 0
    channel_shifts: IntArray | None = None

    @property
    def constants(self) -> tuple[Constant, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.input].format.frac_bits + weight_frac(self.weight, self.channel_shifts)
        return accumulator_shifts(product, _bias_frac(self.bias), tensors[self.output].format.frac_bits)


@dataclass(frozen=True)
class Routing(Op):
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

    kind: ClassVar[str] = "routing"

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

    @property
    def constants(self) -> tuple[Constant, ...]:
        return () if self.bias is None else (self.bias,)

    def shifts(self, tensors: Tensors) -> Shifts:
        product = tensors[self.coupling].format.frac_bits + tensors[self.votes].format.frac_bits
        return accumulator_shifts(product, _bias_frac(self.bias), tensors[self.preactivation].format.frac_bits)

    def agreement_shift(self, tensors: Tensors) -> int:
        """The rounding shift of step 4."""
        assert self.logits is not None, "a one-iteration routing has no logits"
        product = tensors[self.activation].format.frac_bits + tensors[self.votes].format.frac_bits
        return product - tensors[self.logits].format.frac_bits


@dataclass(frozen=True)
class Lengths(_Unary):
    """Squared lengths: ``output[g] = sum over d of input[g, d]**2``, input (G, D) -> output (G,), a WideFormat.

    The output has ``2 * frac(input)`` fraction bits; nothing is rounded. The predicted class is the index of the
    largest, the first one on a tie.
    """

    kind: ClassVar[str] = "lengths"

    name: str
    input: str
    output: str


OPS: tuple[type[Op], ...] = (
    InputQuantize,
    Conv2d,
    ChannelAffine,
    Squash,
    Add,
    DenseVotes,
    ConvVotes,
    Routing,
    Lengths,
    GroupedConv2d,
    MaxPool2d,
)
"""Every op; the interpreter, the verifier, the file format and the C emitter each handle all of them."""

PIXEL_FORMAT = FixedFormat(8, 0, False)
"""The format of the raw image: the pixel values 0..255 themselves."""


def pixel_table(
    key: str,
    fmt: FixedFormat,
    mean: tuple[float, ...] = (0.0,),
    scale: tuple[float, ...] = (1.0,),
) -> Constant:
    """The table of InputQuantize: ``table[c, p] = encode((p / 255 - mean[c]) * scale[c])``, nearest, in float64.

    mean, scale: one entry per channel; the defaults are one channel of pixels / 255.

    >>> pixel_table("input.table", FixedFormat(8, 8, False)).codes[0, [0, 1, 128, 255]].tolist()
    [0, 1, 129, 255]
    """
    pixels = np.arange(256, dtype=np.float64) / 255.0
    values = (pixels - np.array(mean)[:, None]) * np.array(scale)[:, None]
    return Constant(key, fmt.encode(values), fmt)


def conv_weight(key: str, oihw: IntArray, fmt: FixedFormat) -> Constant:
    """A convolution's weight from codes in PyTorch's order (out, in, kernel rows, kernel columns)."""
    return Constant(key, np.transpose(oihw, (0, 2, 3, 1)), fmt)
