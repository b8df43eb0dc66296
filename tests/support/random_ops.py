"""Random ops over formats, shapes, roundings and extremes, for cross-checks of the C code."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from caplet.errors import PlanError
from caplet.fixed.format import AnyFormat, FixedFormat, LogFormat
from caplet.fixed.rounding import Rounding
from caplet.program.op import Op
from caplet.program.ops import (
    PIXEL_FORMAT,
    Add,
    ChannelAffine,
    Conv2d,
    ConvVotes,
    DenseVotes,
    InputQuantize,
    LeakyRelu,
    Lengths,
    Listing,
    MaxPool2d,
    Routing,
    Squash,
)
from caplet.program.tensor import Constant, TensorSpec
from caplet.program.verify import lengths_format
from single_op import SingleOp

Tensors = dict[str, TensorSpec]


class RandomOps:
    """Draws ops and inputs for them; the same seed draws the same ones."""

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.bytes = False

    def draw(self, kind: str, portable: bool | None = None) -> SingleOp:
        """A random op of this kind that verifies, on its portable or its host path; every third one mostly of bytes."""
        while True:
            self.bytes = not self.size(0, 2)
            op, tensors = _MAKERS[kind](self)
            seed, drawn = int(self.rng.integers(1 << 32)), bool(self.rng.integers(2))
            try:
                return SingleOp(op, tensors, seed, drawn if portable is None else portable, room=1 << self.size(4, 15))
            except PlanError:
                # Formats too far apart for 64 bits, or outside what squash and softmax take: draw again.
                continue

    def inputs(self, single: SingleOp, batch: int) -> dict[str, NDArray[np.int32]]:
        """Codes for every input of an op: random ones, and images of extremes."""
        result = {}
        for name in single.op.inputs:
            spec = single._tensors[name]
            low, high = spec.format.min_code, spec.format.max_code  # type: ignore[union-attr]
            codes = self.rng.integers(low, high + 1, size=(batch, *spec.shape), dtype=np.int32)
            for image in range(batch):
                kind = self.rng.integers(8)
                if kind < 3:
                    codes[image] = (low, high, 0)[kind]
                elif kind == 3:
                    codes[image] = np.where(codes[image] > (low + high) // 2, high, low)
                elif kind == 4:
                    codes[image] //= max(1, high // 2)
            result[name] = codes
        return result

    # Pieces of ops.

    def size(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def rounding(self) -> Rounding:
        return Rounding.NEAREST if self.bytes else list(Rounding)[self.size(0, 2)]

    def format(self, frac: int | None = None, signed: bool | None = None) -> FixedFormat:
        bits = self.size(1, 8) if self.size(0, 2) else self.size(9, 16)
        if self.bytes and self.size(0, 5):
            bits, signed = 8, signed if signed is not None or not self.size(0, 3) else True
        frac = self.size(-4, 16) if frac is None else frac
        return FixedFormat(bits, int(np.clip(frac, -64, 64)), bool(self.size(0, 1)) if signed is None else signed)

    def spec(self, name: str, shape: tuple[int, ...], frac: int | None = None) -> TensorSpec:
        return TensorSpec(name, shape, self.format(frac), self.rounding())

    def constant(self, key: str, shape: tuple[int, ...], frac: int | None = None, log: bool = False) -> Constant:
        fmt: AnyFormat = self.format(frac, signed=bool(self.size(0, 7)) or None)
        if log and not self.size(0, 3):
            fmt = LogFormat(self.size(2, 5), self.size(-6, 6))
        codes = self.rng.integers(fmt.min_code, fmt.max_code + 1, size=shape, dtype=np.int32)
        kind = self.size(0, 5)
        if kind < 2:
            codes[...] = fmt.min_code if kind else fmt.max_code
        elif kind == 2:  # small ones, as networks have them, with a few large ones among them
            codes = np.where(self.rng.random(shape) < 0.05, codes, codes // max(1, fmt.max_code // 6))
        return Constant(key, codes, fmt)

    def out_frac(self, product_frac: int) -> int:
        """Mostly right shifts, as networks have them; sometimes none, or to the left."""
        return product_frac - self.size(-3, 18)

    def channel_shifts(self, channels: int) -> NDArray[np.int32] | None:
        return None if self.size(0, 2) else self.rng.integers(-4, 5, size=channels).astype(np.int32)


def _input_quantize(draw: RandomOps) -> tuple[Op, Tensors]:
    shape = (draw.size(1, 6), draw.size(1, 6), draw.size(1, 4))
    out = TensorSpec("y", shape, draw.format())
    codes = draw.rng.integers(out.format.min_code, out.format.max_code + 1, size=(shape[2], 256), dtype=np.int32)  # type: ignore[union-attr]
    table = Constant("table", codes, out.format)  # type: ignore[arg-type]
    return InputQuantize("op", "x", "y", table), {"x": TensorSpec("x", shape, PIXEL_FORMAT), "y": out}


def _convolution(draw: RandomOps) -> tuple[tuple[int, int], tuple[int, int], int, int, tuple[int, int]]:
    """Kernel, input rows and columns, stride, padding, output rows and columns."""
    kernel = (draw.size(1, 5), draw.size(1, 5))
    rows, columns = draw.size(kernel[0], kernel[0] + 5), draw.size(kernel[1], kernel[1] + 5)
    stride, padding = draw.size(1, 3), draw.size(0, min(kernel) - 1)
    out = ((rows + 2 * padding - kernel[0]) // stride + 1, (columns + 2 * padding - kernel[1]) // stride + 1)
    return kernel, (rows, columns), stride, padding, out


def _conv2d(draw: RandomOps) -> tuple[Op, Tensors]:
    kernel, size, stride, padding, out = _convolution(draw)
    if draw.size(0, 1):
        groups, depth, outputs = 1, draw.size(1, 20), draw.size(1, 20)
    else:
        groups, depth = draw.size(1, 6), draw.size(1, 4)
        outputs = groups * draw.size(1, 3)
    x = draw.spec("x", (*size, groups * depth))
    weight = draw.constant("w", (outputs, *kernel, depth), log=True)
    product = x.format.frac_bits + weight.format.frac_bits
    bias = draw.constant("b", (outputs,), product + draw.size(-8, 8)) if draw.size(0, 2) else None
    y = draw.spec("y", (*out, outputs), draw.out_frac(product))
    high = None if draw.size(0, 2) else draw.size(0, y.format.max_code)  # type: ignore[union-attr]
    relu, shifts = bool(draw.size(0, 1)), draw.channel_shifts(outputs)
    same = not draw.size(0, 2)
    op = Conv2d("op", "x", "y", weight, bias, stride, padding, relu, shifts, groups, high, same)
    if same:  # other positions, and zeros after the input that the padding before it does not tell
        y = replace(y, shape=(*op.positions({"x": x}), outputs))
    return op, {"x": x, "y": y}


def _conv_votes(draw: RandomOps) -> tuple[Op, Tensors]:
    kernel, size, stride, padding, out = _convolution(draw)
    in_types, in_dim, types, dim = draw.size(1, 4), draw.size(1, 8), draw.size(1, 4), draw.size(1, 8)
    x = draw.spec("x", (*size, in_types * in_dim))
    weight = draw.constant("w", (types * dim, *kernel, in_dim), log=True)
    product = x.format.frac_bits + weight.format.frac_bits
    bias = draw.constant("b", (types * dim,), product + draw.size(-8, 8)) if draw.size(0, 2) else None
    y = draw.spec("y", (in_types, out[0] * out[1] * types, dim), draw.out_frac(product))
    shifts = draw.channel_shifts(types * dim)
    return ConvVotes("op", "x", "y", weight, bias, in_types, dim, stride, padding, shifts), {"x": x, "y": y}


def _max_pool2d(draw: RandomOps) -> tuple[Op, Tensors]:
    kernel = draw.size(1, 4)
    rows, columns, channels = draw.size(kernel, kernel + 5), draw.size(kernel, kernel + 5), draw.size(1, 9)
    stride, padding = draw.size(1, 3), draw.size(0, kernel - 1)
    out = [(size + 2 * padding - kernel) // stride + 1 for size in (rows, columns)]
    x = draw.spec("x", (rows, columns, channels))
    y = draw.spec("y", (out[0], out[1], channels), x.format.frac_bits - draw.size(-4, 6))
    return MaxPool2d("op", "x", "y", kernel, stride, padding), {"x": x, "y": y}


def _channel_affine(draw: RandomOps) -> tuple[Op, Tensors]:
    shape = (draw.size(1, 6), draw.size(1, 6), draw.size(1, 9))
    x = draw.spec("x", shape)
    scale = draw.constant("s", shape[2:], log=True)
    product = x.format.frac_bits + scale.format.frac_bits
    offset = draw.constant("o", shape[2:], product + draw.size(-8, 8))
    y = draw.spec("y", shape, draw.out_frac(product))
    return ChannelAffine("op", "x", "y", scale, offset), {"x": x, "y": y}


def _leaky_relu(draw: RandomOps) -> tuple[Op, Tensors]:
    shape, frac = (draw.size(1, 6), draw.size(1, 6), draw.size(1, 9)), draw.size(1, 15)
    x = draw.spec("x", shape)
    y = draw.spec("y", shape, x.format.frac_bits - draw.size(-4, 6))
    return LeakyRelu("op", "x", "y", draw.size(1, (1 << frac) - 1), frac), {"x": x, "y": y}


def _squash(draw: RandomOps) -> tuple[Op, Tensors]:
    dim = draw.size(1, 64) if not draw.size(0, 3) else draw.size(1, 16)
    shape = (draw.size(1, 8), dim) if draw.size(0, 1) else (draw.size(1, 3), draw.size(1, 3), draw.size(1, 3) * dim)
    x = draw.spec("x", shape, draw.size(-8, 20))
    y = draw.spec("y", shape, draw.size(0, 18))
    return Squash("op", "x", "y", dim), {"x": x, "y": y}


def _add(draw: RandomOps) -> tuple[Op, Tensors]:
    shape = (draw.size(1, 5), draw.size(1, 5), draw.size(1, 9))
    a, b = draw.spec("a", shape), draw.spec("b", shape)
    y = draw.spec("y", shape, draw.out_frac(max(a.format.frac_bits, b.format.frac_bits)))
    return Add("op", "a", "b", "y"), {"a": a, "b": b, "y": y}


def _dense_votes(draw: RandomOps) -> tuple[Op, Tensors]:
    in_dim, outputs, dim = draw.size(1, 8), draw.size(1, 6), draw.size(1, 17)
    if draw.bytes:  # kernels of their own
        in_dim, outputs, dim = 4 * draw.size(1, 2), draw.size(2, 10), (draw.size(2, 17), 6, 16)[draw.size(0, 2)]
    tensors: Tensors = {}
    for number in range(draw.size(1, 3)):
        maps = (draw.size(1, 3), draw.size(1, 3), draw.size(1, 3) * in_dim)
        name = f"x{number}"
        tensors[name] = draw.spec(name, (draw.size(1, 9), in_dim) if draw.size(0, 1) else maps)
    sources = tuple(tensors)
    counts = [spec.elements // in_dim for spec in tensors.values()]
    inputs = sum(counts)
    selected = None
    if not draw.size(0, 1):
        starts = np.cumsum([0, *counts[:-1]])
        voters = [start + draw.rng.permutation(n)[: draw.size(1, n)] for start, n in zip(starts, counts, strict=True)]
        selected = tuple(np.sort(np.concatenate(voters)).tolist())
        inputs = len(selected)
    weight = draw.constant("w", (inputs, in_dim, outputs * dim), log=True)
    product = tensors["x0"].format.frac_bits + weight.format.frac_bits
    tensors["y"] = draw.spec("y", (inputs, outputs, dim), draw.out_frac(product))
    if not draw.size(0, 2):
        tensors["y"] = replace(tensors["y"], rounding=Rounding.CARRY)
    shifts = None if draw.bytes and draw.size(0, 1) else draw.channel_shifts(outputs * dim)
    return DenseVotes("op", sources, "y", weight, dim, shifts, selected), tensors


def _routing(draw: RandomOps) -> tuple[Op, Tensors]:
    inputs, types, dim, iterations = draw.size(1, 12), draw.size(1, 6), draw.size(1, 17), draw.size(1, 4)
    if draw.bytes:  # kernels of their own, several rounds of them
        inputs, dim = draw.size(1, 50), (draw.size(1, 40), 6, 16)[draw.size(0, 2)]
    rows, columns = draw.size(1, 2), draw.size(1, 2)
    outputs = rows * columns * types
    votes = draw.spec("v", (inputs, outputs, dim), draw.size(-4, 14))
    bits = draw.size(1, 16)
    shares = FixedFormat(bits, min(16, max(0, bits + draw.size(-2, 3))), False)
    coupling = TensorSpec("c", (inputs, outputs), shares, draw.rounding())
    length = draw.size(1, 16)
    unit = FixedFormat(length, max(0, length + draw.size(-3, 1)), bool(draw.size(0, 3)))
    product = coupling.format.frac_bits + votes.format.frac_bits
    shape = (outputs, dim) if rows * columns == 1 else (rows, columns, types * dim)
    tensors = {
        "v": votes,
        "c": coupling,
        "b": draw.spec("b", (inputs, outputs), draw.size(-4, 14)),
        "s": draw.spec("s", shape, draw.out_frac(product)),
        "a": TensorSpec("a", shape, unit, draw.rounding()),
    }
    bias = draw.constant("bias", (types, dim), product + draw.size(-8, 8)) if draw.size(0, 1) else None
    logits = "b" if iterations > 1 else None
    return Routing("op", "v", "c", logits, "s", "a", bias, types, iterations), tensors


def _lengths(draw: RandomOps) -> tuple[Op, Tensors]:
    x = draw.spec("x", (draw.size(1, 12), draw.size(1, 64)))
    assert isinstance(x.format, FixedFormat)
    y = TensorSpec("y", x.shape[:1], lengths_format(x.format, x.shape[1]))
    return Lengths("op", "x", "y"), {"x": x, "y": y}


def _listing(draw: RandomOps) -> tuple[Op, Tensors]:
    rows, columns, channels = (draw.size(1, 6) for _ in range(3))
    x = draw.spec("x", (rows, columns, channels))
    y = TensorSpec("y", (1, 1, rows * columns * channels), x.format)
    return Listing("op", "x", "y"), {"x": x, "y": y}


_MAKERS: dict[str, Callable[[RandomOps], tuple[Op, Tensors]]] = {
    InputQuantize.kind: _input_quantize,
    Conv2d.kind: _conv2d,
    ChannelAffine.kind: _channel_affine,
    Squash.kind: _squash,
    Add.kind: _add,
    DenseVotes.kind: _dense_votes,
    ConvVotes.kind: _conv_votes,
    Routing.kind: _routing,
    Lengths.kind: _lengths,
    MaxPool2d.kind: _max_pool2d,
    LeakyRelu.kind: _leaky_relu,
    Listing.kind: _listing,
}
