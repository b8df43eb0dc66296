"""Random Programs of every kind of op: what interpreters, runtimes, memory plans and files are tested with.

The weights are random integers, but the formats are chosen so that codes spread over their range, with some
saturation.
"""

from dataclasses import dataclass, field, replace
from math import ceil, log2, sqrt

import numpy as np

from caplet.errors import PlanError
from caplet.fixed.format import AnyFormat, FixedFormat, LogFormat
from caplet.fixed.rounding import Rounding
from caplet.program.arena import MemoryMap, Planner, plan_memory
from caplet.program.bands import OpChain, segments
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
    pixel_table,
)
from caplet.program.program import Program
from caplet.program.tensor import Constant, IntArray, TensorSpec
from caplet.program.verify import lengths_format, verify


@dataclass(frozen=True)
class SampleSettings:
    """Widths of a sample: of weights and of activations; rounding of every tensor; kinds of weights.

    log_weights: weights are powers of two (then weight_bits is 2..5). channel_shifts: exponents per output channel.
    selected: only every other input capsule of dense votes votes.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    rounding: Rounding = Rounding.NEAREST
    log_weights: bool = False
    channel_shifts: bool = False
    iterations: int = 3
    bias: bool = True
    selected: bool = False


@dataclass
class _Builder:
    settings: SampleSettings
    rng: np.random.Generator
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def tensor(self, name: str, shape: tuple[int, ...], frac: int, signed: bool = True, bits: int | None = None) -> str:
        fmt = FixedFormat(bits or self.settings.activation_bits, frac, signed)
        self.tensors[name] = TensorSpec(name, shape, fmt, self.settings.rounding.alone)
        return name

    def constant(self, key: str, shape: tuple[int, ...], fmt: AnyFormat) -> Constant:
        codes = self.rng.integers(fmt.min_code, fmt.max_code + 1, size=shape)
        return Constant(key, codes.astype(np.int32), fmt)

    def bias(self, key: str, shape: tuple[int, ...], frac: int) -> Constant | None:
        if not self.settings.bias:
            return None
        return self.constant(key, shape, FixedFormat(self.settings.weight_bits, frac, True))

    def weight(self, key: str, shape: tuple[int, ...], fan_in: int, source: str) -> tuple[Constant, int]:
        """Weights, and the fraction bits with which sums of ``fan_in`` products fill the activations' range.

        The weights' exponent is such that these sums are of magnitude about 2.
        """
        bits, width = self.settings.activation_bits, self.settings.weight_bits
        frac = bits - 2 + int(self.rng.integers(-1, 2))
        fmt = self.tensors[source].format
        mean = 2.0 ** (width - 2) if not self.settings.log_weights else (1 << ((1 << (width - 1)) - 1)) / (1 << width)
        shift = ceil(log2(sqrt(fan_in) * max(1.0, mean) * 2.0 ** (fmt.bits - 2.5))) - (bits - 2)
        weight_frac = frac - fmt.frac_bits + shift
        if self.settings.log_weights:
            return self.constant(key, shape, LogFormat(width, (1 << (width - 1)) - 2 - weight_frac)), frac
        return self.constant(key, shape, FixedFormat(width, weight_frac, True)), frac

    def shifts(self, channels: int) -> IntArray | None:
        if not self.settings.channel_shifts:
            return None
        return self.rng.integers(-2, 3, size=channels).astype(np.int32)

    def conv(self, name: str, source: str, channels: int, window: tuple[int, int, int], relu: bool, point: str) -> str:
        kernel, stride, padding = window
        rows, columns, depth = self.tensors[source].shape
        shape = (channels, kernel, kernel, depth)
        weight, frac = self.weight(f"{name}.weight", shape, kernel * kernel * depth, source)
        out = [(size + 2 * padding - kernel) // stride + 1 for size in (rows, columns)]
        output = self.tensor(f"{name}.{point}", (out[0], out[1], channels), frac, not relu)
        bias = self.bias(f"{name}.bias", (channels,), frac + int(self.rng.integers(-2, 9)))
        self.ops.append(Conv2d(name, source, output, weight, bias, stride, padding, relu, self.shifts(channels)))
        return output

    def grouped(self, name: str, source: str, window: tuple[int, int, int], outputs: int = 1) -> str:
        """A depthwise convolution (``outputs`` per input channel) + ReLU with an upper limit."""
        kernel, stride, padding = window
        rows, columns, channels = self.tensors[source].shape
        shape = (channels * outputs, kernel, kernel, 1)
        weight, frac = self.weight(f"{name}.weight", shape, kernel * kernel, source)
        out = [(size + 2 * padding - kernel) // stride + 1 for size in (rows, columns)]
        output = self.tensor(f"{name}.activation", (out[0], out[1], shape[0]), frac, False)
        fmt = self.tensors[output].format
        assert isinstance(fmt, FixedFormat)
        bias, high = self.bias(f"{name}.bias", shape[:1], frac), fmt.max_code - fmt.max_code // 4
        shifts = self.shifts(shape[0])
        self.ops.append(Conv2d(name, source, output, weight, bias, stride, padding, True, shifts, channels, high))
        return output

    def max_pool(self, name: str, source: str, window: tuple[int, int, int]) -> str:
        kernel, stride, padding = window
        spec = self.tensors[source]
        assert isinstance(spec.format, FixedFormat)
        rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in spec.shape[:2])
        frac = spec.format.frac_bits - 1
        output = self.tensor(f"{name}.activation", (rows, columns, spec.shape[2]), frac, spec.format.signed)
        self.ops.append(MaxPool2d(name, source, output, kernel, stride, padding))
        return output

    def conv_caps(
        self, name: str, source: str, types: int, dim: int, window: tuple[int, int, int], flat: bool = False
    ) -> str:
        preactivation = self.conv(name, source, types * dim, window, False, "preactivation")
        shape = self.tensors[preactivation].shape
        if flat:
            spec = self.tensors[preactivation]
            shape, preactivation = (1, 1, spec.elements), f"{name}.list"
            self.tensors[preactivation] = TensorSpec(preactivation, shape, spec.format)
            self.ops.append(Listing(preactivation, spec.name, preactivation))
        output = self.tensor(f"{name}.activation", shape, self.settings.activation_bits - 1)
        self.ops.append(Squash(f"{name}.squash", preactivation, output, dim))
        return output

    def affine(self, name: str, source: str) -> str:
        spec, width = self.tensors[source], self.settings.weight_bits
        channels, frac = spec.shape[2:], spec.format.frac_bits
        scale = self.constant(f"{name}.scale", channels, FixedFormat(width, width - 2, True))
        offset = self.constant(f"{name}.offset", channels, FixedFormat(width, frac + 2, True))
        output = self.tensor(f"{name}.activation", spec.shape, frac)
        self.ops.append(ChannelAffine(f"{name}.norm", source, output, scale, offset))
        return output

    def add(self, name: str, a: str, b: str) -> str:
        output = self.tensor(f"{name}.sum", self.tensors[a].shape, self.settings.activation_bits - 2)
        self.ops.append(Add(name, a, b, output))
        return output

    def route(self, name: str, votes: str, types: int, shape: tuple[int, ...]) -> str:
        inputs, outputs, dim = self.tensors[votes].shape
        bits = self.settings.activation_bits
        vote_frac = self.tensors[votes].format.frac_bits
        coupling = self.tensor(f"{name}.coupling", (inputs, outputs), min(16, bits + outputs.bit_length() // 2), False)
        logits = self.tensor(f"{name}.logits", (inputs, outputs), bits - 3) if self.settings.iterations > 1 else None
        preactivation = self.tensor(f"{name}.preactivation", shape, max(-8, min(vote_frac, 28)))
        activation = self.tensor(f"{name}.activation", shape, bits - 1)
        bias = self.bias(f"{name}.bias", (types, dim), vote_frac + 1)
        self.ops.append(
            Routing(name, votes, coupling, logits, preactivation, activation, bias, types, self.settings.iterations)
        )
        return activation

    def dense(self, name: str, sources: tuple[str, ...], in_dim: int, outputs: int, dim: int) -> str:
        inputs = sum(self.tensors[source].elements // in_dim for source in sources)
        selected = tuple(range(inputs % 2, inputs, 2)) if self.settings.selected else None
        inputs = inputs if selected is None else len(selected)
        weight, frac = self.weight(f"{name}.weight", (inputs, in_dim, outputs * dim), in_dim, sources[0])
        votes = self.tensor(f"{name}.votes", (inputs, outputs, dim), frac)
        self.tensors[votes] = replace(self.tensors[votes], rounding=self.settings.rounding)
        shifts = self.shifts(outputs * dim)
        self.ops.append(DenseVotes(f"{name}.vote", sources, votes, weight, dim, shifts, selected))
        return self.route(name, votes, outputs, (outputs, dim))

    def conv_routed(self, name: str, source: str, in_types: int, types: int, dim: int) -> str:
        rows, columns, channels = self.tensors[source].shape
        in_dim = channels // in_types
        weight, frac = self.weight(f"{name}.weight", (types * dim, 3, 3, in_dim), 9 * in_dim, source)
        votes = self.tensor(f"{name}.votes", (in_types, rows * columns * types, dim), frac)
        bias = self.bias(f"{name}.vote_bias", (types * dim,), frac)
        shifts = self.shifts(types * dim)
        self.ops.append(ConvVotes(f"{name}.vote", source, votes, weight, bias, in_types, dim, 1, 1, shifts))
        return self.route(name, votes, types, (rows, columns, types * dim))

    def start(self, image: tuple[int, int, int]) -> str:
        channels, rows, columns = image
        self.tensors["input.pixels"] = TensorSpec("input.pixels", (rows, columns, channels), PIXEL_FORMAT)
        output = self.tensor("input.image", (rows, columns, channels), min(self.settings.activation_bits, 12), False)
        if self.settings.rounding is Rounding.STOCHASTIC:
            self.tensors[output] = TensorSpec(output, (rows, columns, channels), self.tensors[output].format)
        fmt = self.tensors[output].format
        assert isinstance(fmt, FixedFormat)
        table = pixel_table("input.table", fmt, tuple(0.1 * c for c in range(channels)), (1.0,) * channels)
        self.ops.append(InputQuantize("input", "input.pixels", output, table))
        return output

    def finish(self, name: str, output: str, seed: int) -> Program:
        spec = self.tensors[output]
        assert isinstance(spec.format, FixedFormat)
        lengths = f"{name}.lengths"
        self.tensors[lengths] = TensorSpec(lengths, spec.shape[:1], lengths_format(spec.format, spec.shape[1]))
        self.ops.append(Lengths(lengths, output, lengths))
        return Program(name, self.tensors, tuple(self.ops), "input.pixels", output, lengths, seed)


def sample_shallow(
    seed: int = 0,
    settings: SampleSettings | None = None,
    image: tuple[int, int, int] = (1, 12, 12),
    stem: tuple[int, int] = (8, 3),
    primary: tuple[int, int, int] = (4, 4, 3),
    classes: tuple[int, int] = (5, 6),
) -> Program:
    """A ShallowCaps: stem (channels, kernel), primary (types, dim, kernel; stride 2), classes (classes, dim).

    >>> sample_shallow(image=(1, 28, 28), stem=(256, 9), primary=(32, 8, 9), classes=(10, 16)).flash_bytes
    6804640
    """
    build = _Builder(settings or SampleSettings(), np.random.default_rng(seed))
    x = build.conv("conv1", build.start(image), stem[0], (stem[1], 1, 0), True, "activation")
    x = build.conv_caps("primary", x, primary[0], primary[1], (primary[2], 2, 0))
    return build.finish("sample_shallow", build.dense("digit", (x,), primary[1], *classes), seed)


def sample_deep(
    seed: int = 0,
    settings: SampleSettings | None = None,
    image: tuple[int, int, int] = (3, 9, 8),
    types: int = 3,
    dim: int = 4,
    classes: tuple[int, int] = (5, 6),
) -> Program:
    """A DeepCaps with two blocks: convolution, affine, capsule blocks with residuals, the last one's skip routed."""
    build = _Builder(settings or SampleSettings(), np.random.default_rng(seed))
    x = build.affine("conv1", build.conv("conv1", build.start(image), 6, (3, 1, 1), True, "preactivation"))
    sums: list[str] = []
    for block in ("block1", "block2"):
        first = build.conv_caps(f"{block}.l1", x, types, dim, (3, 2, 1))
        if block == "block1":
            skip = build.conv_caps(f"{block}.skip", first, types, dim, (3, 1, 1))
        else:
            skip = build.conv_routed(f"{block}.skip", first, types, types, dim)
        second = build.conv_caps(f"{block}.l2", first, types, dim, (3, 1, 1))
        third = build.conv_caps(f"{block}.l3", second, types, dim, (3, 1, 1))
        x = build.add(block, third, skip)
        sums.append(x)
    return build.finish("sample_deep", build.dense("digit", tuple(sums), dim, *classes), seed)


def sample_backbone(
    seed: int = 0,
    settings: SampleSettings | None = None,
    image: tuple[int, int, int] = (3, 11, 9),
    channels: int = 6,
    classes: tuple[int, int] = (4, 5),
) -> Program:
    """A small CNN with capsules on it: convolution, max pool, a residual block, depthwise convolution, capsules."""
    build = _Builder(settings or SampleSettings(), np.random.default_rng(seed))
    x = build.conv("stem", build.start(image), channels, (3, 1, 1), True, "activation")
    x = build.max_pool("pool", x, (3, 2, 1))
    linear = build.conv("block1.conv1", x, channels, (3, 1, 1), False, "linear")
    first = build.tensor("block1.conv1.activation", build.tensors[linear].shape, build.tensors[linear].format.frac_bits)
    build.ops.append(LeakyRelu("block1.conv1.leaky", linear, first, 4915, 14))
    second = build.conv("block1.conv2", first, channels, (3, 1, 1), False, "activation")
    rectified = build.tensor("block1.sum", build.tensors[x].shape, build.tensors[second].format.frac_bits, False)
    build.ops.append(Add("block1", second, x, rectified))
    x = build.grouped("block2.depthwise", rectified, (3, 2, 1), 2)
    x = build.conv_caps("primary", x, 3, 4, (3, 1, 0), flat=True)
    return build.finish("sample_backbone", build.dense("digit", (x,), 4, *classes), seed)


def sample_chain(seed: int, settings: SampleSettings | None = None) -> Program:
    """Convolutions of all kinds and pools, one after the other, of random sizes; then capsules."""
    build = _Builder(settings or SampleSettings(), np.random.default_rng(seed))
    rng = build.rng
    depth, high, wide = (int(rng.integers(low, end)) for low, end in ((1, 4), (12, 20), (12, 20)))
    x = build.start((depth, high, wide))
    for number in range(6):
        rows, columns, _ = build.tensors[x].shape
        kernel = int(rng.integers(1, min(rows, columns, 5) + 1))
        stride = int(rng.integers(1, 3)) if min(rows, columns) > 6 else 1
        window = (kernel, stride, int(rng.integers(0, kernel // 2 + 1)))
        kind = rng.integers(5) if number else 4
        if kind == 0:
            x = build.max_pool(f"pool{number}", x, window)
        elif kind == 1:
            x = build.grouped(f"depthwise{number}", x, window, int(rng.integers(1, 3)))
        else:
            x = build.conv(f"conv{number}", x, int(rng.integers(1, 14)), window, bool(rng.integers(2)), "activation")
        if kind > 0 and rng.integers(3) == 0:  # more zeros after the input than before it, or fewer
            last = build.ops[-1]
            assert isinstance(last, Conv2d)
            build.ops[-1] = replace(last, same=True)
            shape = (-(-rows // stride), -(-columns // stride), build.tensors[x].shape[2])
            build.tensors[x] = replace(build.tensors[x], shape=shape)
    x = build.conv_caps("primary", x, 2, 4, (1, 1, 0))
    return build.finish("sample_chain", build.dense("digit", (x,), 4, 3, 4), seed)


def sample_trunk(seed: int, settings: SampleSettings | None = None) -> Program:
    """Blocks as of trunks, of random sizes: expand, depthwise, project, often added to their input; ops that work in
    place and pools between them; then capsules."""
    build = _Builder(settings or SampleSettings(), np.random.default_rng(seed))
    rng = build.rng
    depth, high, wide = (int(rng.integers(low, end)) for low, end in ((1, 4), (14, 22), (14, 22)))
    x = build.conv("stem", build.start((depth, high, wide)), 4, (3, int(rng.integers(1, 3)), 1), True, "activation")
    for number in range(3):
        start, channels = x, build.tensors[x].shape[2]
        stride = int(rng.integers(1, 3)) if min(build.tensors[x].shape[:2]) > 5 else 1
        kernel = int(rng.choice([3, 5]))
        x = build.conv(f"expand{number}", x, 2 * channels + int(rng.integers(3)), (1, 1, 0), True, "activation")
        if rng.integers(3) == 0:
            x = build.max_pool(f"pool{number}", x, (3, 1, 1))
        x = build.grouped(f"depthwise{number}", x, (kernel, stride, kernel // 2))
        if rng.integers(2):
            x = build.affine(f"affine{number}", x)
        x = build.conv(f"project{number}", x, channels, (1, 1, 0), False, "linear")
        if rng.integers(2):
            linear = build.tensors[x]
            x = build.tensor(f"leaky{number}.activation", linear.shape, linear.format.frac_bits)
            build.ops.append(LeakyRelu(f"leaky{number}", linear.name, x, 4915, 14))
        if stride == 1 and rng.integers(3):
            x = build.add(f"add{number}", x, start)
        elif rng.integers(2):
            x = build.conv_caps(f"caps{number}", x, 2, channels // 2, (3, 1, 1))
    x = build.conv_caps("primary", x, 2, 4, (3, 2, 1))
    return build.finish("sample_trunk", build.dense("digit", (x,), 4, 3, 4), seed)


def least_ram(program: Program) -> int:
    """Bytes of RAM that :func:`plan_memory` says it needs where there are too few."""
    try:
        plan_memory(program, 1)
    except PlanError as error:
        return int(str(error).split("needs ")[1].split(",")[0])
    raise AssertionError("a network in a byte of RAM")


def plan_in_bands(program: Program, seed: int) -> MemoryMap:
    """A memory plan with chains that are drawn at random, long ones above all, whether they are worth it or not."""
    rng, found = np.random.default_rng(seed), list[OpChain]()
    every = sorted(segments(program), key=lambda chain: (len(chain.indices) * rng.random(), chain.rows), reverse=True)
    for chain in every:
        if not any(set(chain.indices) & set(other.indices) for other in found):
            found.append(chain)
    planner = Planner(program, verify(program), True)
    stored = {op.votes: 0 for op in program.ops if isinstance(op, Routing)}
    chains = tuple(sorted(found[: 1 + int(rng.integers(3))], key=lambda chain: chain.first))
    return planner.grown(stored, planner.place(stored, chains=chains).bytes * int(rng.integers(8, 13)) // 8, 0, chains)
