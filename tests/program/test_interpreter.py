"""The interpreter against every op written out in Python integers, straight from its definition."""

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import floor, isqrt

import numpy as np
import pytest

from caplet.errors import DataError
from caplet.fixed import FixedFormat, Rounding, stochastic_noise
from caplet.fixed.softmax import EXP2_TABLE, sum_bits
from caplet.program import Program, TensorSpec, run, trace
from caplet.program.op import Op
from caplet.program.ops import (
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
from sample_programs import SampleSettings, sample_backbone, sample_deep, sample_shallow

Flat = dict[str, list[int]]

SETTINGS = [
    SampleSettings(),
    SampleSettings(weight_bits=3, activation_bits=4, rounding=Rounding.TRUNCATE, iterations=2),
    SampleSettings(weight_bits=4, activation_bits=5, log_weights=True, channel_shifts=True),
    SampleSettings(weight_bits=5, activation_bits=6, rounding=Rounding.STOCHASTIC, channel_shifts=True),
    SampleSettings(weight_bits=16, activation_bits=16, iterations=1, bias=False),
    SampleSettings(weight_bits=8, activation_bits=1, rounding=Rounding.STOCHASTIC),
    SampleSettings(weight_bits=6, activation_bits=7, rounding=Rounding.STOCHASTIC, selected=True),
    SampleSettings(weight_bits=6, activation_bits=5, rounding=Rounding.CARRY, channel_shifts=True, selected=True),
]


class Naive:
    """All tensors of one image as flat lists of Python integers, in the device's layout."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.integers = {constant.key: constant.integers.tolist() for constant in program.constants()}
        self.t: Flat = {}

    def noise(self, spec: TensorSpec, element: int, iteration: int) -> int:
        if spec.rounding is not Rounding.STOCHASTIC:
            return 0
        first = iteration * spec.elements + element
        return int(stochastic_noise(self.program.seed, spec.name, 1, first)[0])

    def round(self, name: str, element: int, acc: int, shift: int, iteration: int = 0, base: int = 0) -> int:
        spec = self.program.tensors[name]
        if shift <= 0:
            value = acc << -shift
        elif spec.rounding is Rounding.NEAREST:
            value = (acc + (1 << (shift - 1))) >> shift
        elif spec.rounding is Rounding.TRUNCATE:
            value = acc >> shift
        else:
            noise = self.noise(spec, element, iteration)
            value = (acc + (noise >> (32 - shift) if shift <= 32 else noise << (shift - 32))) >> shift
        fmt = spec.format
        assert isinstance(fmt, FixedFormat)
        return min(max(base + value, fmt.min_code), fmt.max_code)

    def run(self, image: np.ndarray) -> Flat:
        self.t[self.program.input] = image.transpose(1, 2, 0).reshape(-1).tolist()
        for op in self.program.ops:
            getattr(self, op.kind)(op)
        return self.t

    def shape(self, name: str) -> tuple[int, ...]:
        return self.program.tensors[name].shape

    def at(self, name: str, *index: int) -> int:
        return self.t[name][int(np.ravel_multi_index(index, self.shape(name)))]

    def input_quantize(self, op: InputQuantize) -> None:
        channels = self.shape(op.input)[-1]
        self.t[op.output] = [int(op.table.codes[i % channels, p]) for i, p in enumerate(self.t[op.input])]

    def window(self, op: Conv2d | ConvVotes, y: int, x: int, o: int, first: int) -> int:
        rows, columns, _ = self.shape(op.input)
        _, kernel_rows, kernel_columns, depth = op.weight.shape
        weight = self.integers[op.weight.key][o]
        total = 0
        for ky, kx, i in product(range(kernel_rows), range(kernel_columns), range(depth)):
            row, column = y * op.stride + ky - op.padding, x * op.stride + kx - op.padding
            if 0 <= row < rows and 0 <= column < columns:
                total += self.at(op.input, row, column, first + i) * weight[ky][kx][i]
        return total

    def pattern(self, op: Op, name: str, element: int, acc: int, channel: int) -> int:
        """Fraction bits spelled out, rather than ``op.shifts``."""
        assert isinstance(op, Conv2d | ConvVotes)
        tensors = self.program.tensors
        frac = tensors[op.input].format.frac_bits + op.weight.format.frac_bits
        if op.channel_shifts is not None:
            frac += int(op.channel_shifts[channel])
        if op.bias is not None:
            common = max(frac, op.bias.format.frac_bits)
            bias = int(op.bias.codes[channel]) << (common - op.bias.format.frac_bits)
            acc, frac = (acc << (common - frac)) + bias, common
        return self.round(name, element, acc, frac - tensors[name].format.frac_bits)

    def conv2d(self, op: Conv2d) -> None:
        rows, columns, channels = self.shape(op.output)
        depth = op.weight.shape[3]
        out = []
        for element, (y, x, o) in enumerate(product(range(rows), range(columns), range(channels))):
            first = o * op.groups // channels * depth
            code = self.pattern(op, op.output, element, self.window(op, y, x, o, first), o)
            code = max(code, 0) if op.relu else code
            out.append(code if op.high is None else min(code, op.high))
        self.t[op.output] = out

    def max_pool2d(self, op: MaxPool2d) -> None:
        in_rows, in_columns, _ = self.shape(op.input)
        shift = self.program.tensors[op.input].format.frac_bits - self.program.tensors[op.output].format.frac_bits
        out: list[int] = []
        for y, x, c in product(*map(range, self.shape(op.output))):
            rows = (y * op.stride + k - op.padding for k in range(op.kernel))
            columns = [x * op.stride + k - op.padding for k in range(op.kernel)]
            inside = [(i, j) for i in rows for j in columns if 0 <= i < in_rows and 0 <= j < in_columns]
            out.append(self.round(op.output, len(out), max(self.at(op.input, i, j, c) for i, j in inside), shift))
        self.t[op.output] = out

    def conv_votes(self, op: ConvVotes) -> None:
        rows, columns, _ = self.shape(op.input)
        kernel, depth = op.weight.shape[1], op.weight.shape[3]
        rows, columns = ((n + 2 * op.padding - kernel) // op.stride + 1 for n in (rows, columns))
        out: list[int] = []
        for i, y, x, o in product(range(op.in_types), range(rows), range(columns), range(op.weight.shape[0])):
            out.append(self.pattern(op, op.output, len(out), self.window(op, y, x, o, i * depth), o))
        self.t[op.output] = out

    def channel_affine(self, op: ChannelAffine) -> None:
        channels = self.shape(op.input)[-1]
        tensors = self.program.tensors
        frac = tensors[op.input].format.frac_bits + op.scale.format.frac_bits
        common = max(frac, op.offset.format.frac_bits)
        out = []
        for element, code in enumerate(self.t[op.input]):
            c = element % channels
            acc = (code * int(op.scale.codes[c])) << (common - frac)
            acc += int(op.offset.codes[c]) << (common - op.offset.format.frac_bits)
            out.append(self.round(op.output, element, acc, common - tensors[op.output].format.frac_bits))
        self.t[op.output] = out

    def leaky_relu(self, op: LeakyRelu) -> None:
        tensors = self.program.tensors
        shift = tensors[op.input].format.frac_bits + op.frac - tensors[op.output].format.frac_bits
        accs = [code * op.slope if code < 0 else code * 2**op.frac for code in self.t[op.input]]
        self.t[op.output] = [self.round(op.output, element, acc, shift) for element, acc in enumerate(accs)]

    def listing(self, op: Listing) -> None:
        rows, columns, channels = self.program.tensors[op.input].shape
        map_ = self.t[op.input]
        self.t[op.output] = [map_[p * channels + c] for c in range(channels) for p in range(rows * columns)]

    def squash_into(self, source: str, target: str, dim: int, iteration: int = 0) -> None:
        f = self.program.tensors[source].format.frac_bits
        f2 = self.program.tensors[target].format.frac_bits
        out: list[int] = []
        for start in range(0, len(self.t[source]), dim):
            capsule = self.t[source][start : start + dim]
            q = sum(x * x for x in capsule)
            if q == 0:
                out += [0] * dim
                continue
            a = max(-f, 0)
            wide = q << (2 * a)
            den = wide + (1 << (2 * max(f, 0)))
            k = (62 - wide.bit_length()) >> 1
            r = isqrt(wide << (2 * k))
            j = den.bit_length() - 31
            dn = den >> j if j >= 0 else den << -j
            shift = min(30 + k + j - a - f2, 62)
            for x in capsule:
                out.append(self.round(target, len(out), x * ((r << 30) // dn), shift, iteration))
        self.t[target] = out

    def squash(self, op: Squash) -> None:
        self.squash_into(op.input, op.output, op.dim)

    def add(self, op: Add) -> None:
        a, b, out = (self.program.tensors[name].format.frac_bits for name in (op.a, op.b, op.output))
        common = max(a, b)
        sums = [(x << (common - a)) + (y << (common - b)) for x, y in zip(self.t[op.a], self.t[op.b], strict=True)]
        self.t[op.output] = [self.round(op.output, e, acc, common - out) for e, acc in enumerate(sums)]

    def dense_votes(self, op: DenseVotes) -> None:
        _, dim, votes = op.weight.shape
        weight = self.integers[op.weight.key]
        out: list[int] = []
        fmt = self.program.tensors[op.output].format
        assert isinstance(fmt, FixedFormat)
        left = [Fraction(0)] * votes  # of what was to be given out, what was not
        i = place = 0
        for source in op.sources:
            spec = self.program.tensors[source]
            frac = spec.format.frac_bits + op.weight.format.frac_bits
            if len(spec.shape) == 2:
                capsules = [self.t[source][s : s + dim] for s in range(0, spec.elements, dim)]
            else:
                rows, columns, channels = spec.shape
                places = product(range(channels // dim), range(rows), range(columns))
                capsules = [[self.at(source, y, x, t * dim + k) for k in range(dim)] for t, y, x in places]
            for capsule in capsules:
                place += 1
                if op.selected is not None and place - 1 not in op.selected:
                    continue
                for v in range(votes):
                    acc = sum(x * weight[i][k][v] for k, x in enumerate(capsule))
                    own = frac + (0 if op.channel_shifts is None else int(op.channel_shifts[v]))
                    shift = own - self.program.tensors[op.output].format.frac_bits
                    if self.program.tensors[op.output].rounding is Rounding.CARRY:
                        left[v] += Fraction(acc) / Fraction(2) ** shift
                        code = floor(left[v] + Fraction(1, 2))
                        left[v] -= code
                        out.append(min(max(code, fmt.min_code), fmt.max_code))
                        continue
                    out.append(self.round(op.output, len(out), acc, shift))
                i += 1
        self.t[op.output] = out

    def exponential(self, d: int, f: int, scale: int) -> int:
        p = d * 47274
        assert p < 1 << 32
        s = min(5 - f, 25)
        t = min(p >> min(f - 5, 31), 1 << 25) if f >= 5 else min(p, (1 << 25) >> s) << s
        n, i, w = t >> 20, (t >> 13) & 127, t & 8191
        y = int(EXP2_TABLE[i]) - (((int(EXP2_TABLE[i]) - int(EXP2_TABLE[i + 1])) * w + 4096) >> 13)
        shift = n + 24 - scale
        return 0 if n == 32 else (y + ((1 << shift) >> 1)) >> shift

    def routing(self, op: Routing) -> None:
        tensors = self.program.tensors
        inputs, outputs, dim = self.shape(op.votes)
        votes = self.t[op.votes]
        scale = sum_bits(outputs)
        fc, fv = tensors[op.coupling].format.frac_bits, tensors[op.votes].format.frac_bits
        logits = [0] * (inputs * outputs)
        for t in range(op.iterations):
            fl = 0 if op.logits is None else tensors[op.logits].format.frac_bits
            coupling: list[int] = []
            for i in range(inputs):
                row = logits[i * outputs : (i + 1) * outputs]
                e = [self.exponential(max(row) - x, fl, scale) for x in row]
                reciprocal = (1 << (scale + 31)) // sum(e)
                coupling += [
                    self.round(op.coupling, i * outputs + g, e[g] * reciprocal, scale + 31 - fc, t)
                    for g in range(outputs)
                ]
            self.t[op.coupling] = self.t[f"{op.coupling}[{t}]"] = coupling
            codes: list[int] = []
            for g, d in product(range(outputs), range(dim)):
                acc = sum(coupling[i * outputs + g] * votes[(i * outputs + g) * dim + d] for i in range(inputs))
                frac = fc + fv
                if op.bias is not None:
                    common = max(frac, op.bias.format.frac_bits)
                    bias = int(op.bias.codes[g % op.types, d]) << (common - op.bias.format.frac_bits)
                    acc, frac = (acc << (common - frac)) + bias, common
                shift = frac - tensors[op.preactivation].format.frac_bits
                codes.append(self.round(op.preactivation, g * dim + d, acc, shift, t))
            self.t[op.preactivation] = self.t[f"{op.preactivation}[{t}]"] = codes
            self.squash_into(op.preactivation, op.activation, dim, t)
            self.t[f"{op.activation}[{t}]"] = self.t[op.activation]
            if op.logits is not None and t < op.iterations - 1:
                shift = tensors[op.activation].format.frac_bits + fv - fl
                new = []
                for i, g in product(range(inputs), range(outputs)):
                    vote = votes[(i * outputs + g) * dim : (i * outputs + g + 1) * dim]
                    own = self.t[op.activation][g * dim : (g + 1) * dim]
                    agreement = sum(a * v for a, v in zip(own, vote, strict=True))
                    new.append(self.round(op.logits, i * outputs + g, agreement, shift, t, logits[i * outputs + g]))
                logits = self.t[op.logits] = self.t[f"{op.logits}[{t}]"] = new

    def lengths(self, op: Lengths) -> None:
        dim = self.shape(op.input)[-1]
        codes = self.t[op.input]
        self.t[op.output] = [sum(x * x for x in codes[s : s + dim]) for s in range(0, len(codes), dim)]


def _samples(settings: SampleSettings, seed: int) -> list[Program]:
    return [
        sample_shallow(seed, settings, image=(2, 7, 8), stem=(3, 3), primary=(2, 3, 2), classes=(3, 4)),
        sample_deep(seed, settings, image=(2, 5, 4), types=2, dim=3, classes=(3, 4)),
        sample_backbone(seed, settings, image=(2, 12, 11), channels=3, classes=(3, 4)),
    ]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_tensor_equals_the_definition(settings: SampleSettings, seed: int) -> None:
    for program in _samples(settings, seed):
        images = np.random.default_rng(seed).integers(0, 256, size=(2, *program.image_shape), dtype=np.uint8)
        found = trace(program, images)
        for index, image in enumerate(images):
            expected = Naive(program).run(image)
            assert expected.keys() == found.keys()
            for name, codes in expected.items():
                assert found[name][index].reshape(-1).tolist() == codes, name


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_float64_products_equal_int64_products(settings: SampleSettings) -> None:
    for program in (sample_shallow(3, settings), sample_deep(3, settings), sample_backbone(3, settings)):
        images = np.random.default_rng(3).integers(0, 256, size=(11, *program.image_shape), dtype=np.uint8)
        fast, slow = trace(program, images), trace(program, images, exact_floats=False)
        assert fast.keys() == slow.keys()
        for name, codes in fast.items():
            np.testing.assert_array_equal(codes, slow[name], err_msg=name)


@pytest.mark.parametrize("make", [sample_deep, sample_backbone])
def test_samples_exercise_rounding_and_saturation(make: Callable[[int], Program]) -> None:
    program = make(0)
    images = np.random.default_rng(0).integers(0, 256, size=(8, *program.image_shape), dtype=np.uint8)
    for name, codes in trace(program, images).items():
        if not name.endswith("coupling[0]"):
            assert np.unique(codes).size >= 12, name


def test_results_do_not_depend_on_the_batch_even_with_stochastic_rounding() -> None:
    program = sample_shallow(2, SampleSettings(rounding=Rounding.STOCHASTIC))
    images = np.random.default_rng(2).integers(0, 256, size=(19, *program.image_shape), dtype=np.uint8)
    whole = run(program, images)
    single = [run(program, image[None]) for image in images]
    np.testing.assert_array_equal(whole.capsules, np.concatenate([one.capsules for one in single]))
    np.testing.assert_array_equal(whole.lengths, np.concatenate([one.lengths for one in single]))


def test_prediction_is_the_first_longest_capsule() -> None:
    program = sample_shallow(0, SampleSettings(weight_bits=2, activation_bits=1))
    images = np.zeros((1, *program.image_shape), dtype=np.uint8)
    outcome = run(program, images)
    lengths = outcome.lengths[0].tolist()
    assert outcome.predictions.tolist() == [lengths.index(max(lengths))]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 1, 12, 12), dtype=np.float32),
        np.zeros((1, 12, 12, 1), dtype=np.uint8),
        np.zeros((1, 12, 12), dtype=np.uint8),
        np.zeros((0, 1, 12, 12), dtype=np.uint8),
    ],
)
def test_images_that_do_not_fit_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8 of shape"):
        run(sample_shallow(), images)


@pytest.mark.slow
def test_full_size_shallowcaps_runs_at_a_useful_speed() -> None:
    program = sample_shallow(image=(1, 28, 28), stem=(256, 9), primary=(32, 8, 9), classes=(10, 16))
    images = np.random.default_rng(0).integers(0, 256, size=(2, 1, 28, 28), dtype=np.uint8)
    fast, slow = run(program, images), run(program, images, exact_floats=False)
    np.testing.assert_array_equal(fast.capsules, slow.capsules)
    np.testing.assert_array_equal(fast.lengths, slow.lengths)
