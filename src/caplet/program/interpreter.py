"""The reference interpreter: every op as its definition reads, in numpy integers, over a batch of images.

Sums of products are made by BLAS in float64 where the proof of ``verify`` keeps every partial sum below 2**53: all
products and sums are then integers that float64 holds exactly, in any order of summation, so the result is the
integer one. Elsewhere, and with ``exact_floats=False``, they are made in int64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.fixed.format import FixedFormat
from caplet.fixed.integer import squared_length
from caplet.fixed.rounding import Rounding, carried_shift, rounding_shift, stochastic_noise
from caplet.fixed.softmax import softmax
from caplet.fixed.squash import squash
from caplet.program import ops
from caplet.program.op import Op, Shifts
from caplet.program.program import Program
from caplet.program.tensor import Constant, TensorSpec
from caplet.program.verify import Proof, verify
from caplet.registry import Registry

Codes = NDArray[Any]
_BATCH = 8
_WINDOW_BYTES = 1 << 26


@dataclass(frozen=True)
class RunResult:
    """What a Program computes of a batch of B images, by whatever engine.

    capsules: class capsules, codes of the output's format, int32 (B, classes, D).
    lengths: squared lengths in codes, int64 (B, classes).
    """

    capsules: NDArray[np.int32]
    lengths: NDArray[np.int64]

    @property
    def predictions(self) -> NDArray[np.int64]:
        """The class of the longest capsule, the first one on a tie, int64 (B,)."""
        longest: NDArray[np.int64] = self.lengths.argmax(axis=1)
        return longest


def run(program: Program, images: NDArray[np.uint8], *, exact_floats: bool = True) -> RunResult:
    """Run a Program on images.

    images: uint8 (B, channels, rows, columns). exact_floats: allow exact float64 products; the integers are the same.
    Raises PlanError when the Program does not verify, DataError when the images do not fit it.
    """
    machine = _Machine(program, verify(program), exact_floats)
    parts = [machine.execute(chunk) for chunk in _chunks(program, images)]
    capsules = np.concatenate([part[program.output] for part in parts]).astype(np.int32)
    lengths = np.concatenate([part[program.lengths] for part in parts]).astype(np.int64)
    return RunResult(capsules, lengths)


def trace(program: Program, images: NDArray[np.uint8], *, exact_floats: bool = True) -> dict[str, Codes]:
    """As :func:`run`, but returns every tensor: name -> codes of shape (B, *shape of the tensor), int32 or int64.

    A tensor inside a routing also appears once per iteration as ``"name[0]"``, ``"name[1]"``, ...; its plain name
    holds the last one. Memory grows with the batch.
    """
    machine = _Machine(program, verify(program), exact_floats)
    parts = [machine.execute(chunk, keep=True) for chunk in _chunks(program, images)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunks(program: Program, images: NDArray[np.uint8]) -> list[Codes]:
    """The images in the device's layout (B, rows, columns, channels), in small batches."""
    program.check_images(images)
    whole = images.transpose(0, 2, 3, 1)
    return [whole[start : start + _BATCH] for start in range(0, len(whole), _BATCH)]


class _Machine:
    """What the ops share: specs, rounding with the right noise, and exact products."""

    def __init__(self, program: Program, proof: Proof, exact_floats: bool) -> None:
        self.program = program
        self.tensors = program.tensors
        self._products = {(b.op, b.what): b.products for b in proof.accumulators}
        self._exact_floats = exact_floats
        self._weights: dict[tuple[str, type], Codes] = {}

    def execute(self, images: Codes, keep: bool = False) -> dict[str, Codes]:
        """All tensors of one batch; without ``keep`` only those that a later op, or the caller, still reads."""
        live: dict[str, Codes] = {self.program.input: images.astype(np.int32)}
        last = {name: index for index, op in enumerate(self.program.ops) for name in op.inputs}
        ends = (self.program.output, self.program.lengths)
        for index, op in enumerate(self.program.ops):
            live.update(INTERPRET[type(op)](op, self, *(live[name] for name in op.inputs)))
            if not keep:
                live = {name: x for name, x in live.items() if last.get(name, -1) > index or name in ends}
        return live

    def fixed(self, name: str) -> FixedFormat:
        fmt = self.tensors[name].format
        assert isinstance(fmt, FixedFormat)
        return fmt

    def noise(self, spec: TensorSpec, shape: tuple[int, ...], iteration: int = 0) -> Codes | None:
        """The random bits of a tensor that is rounded stochastically, in another shape."""
        if spec.rounding is not Rounding.STOCHASTIC:
            return None
        return stochastic_noise(self.program.seed, spec.name, spec.elements, iteration * spec.elements).reshape(shape)

    def requantize(self, name: str, acc: Codes, bias: Constant | None, shifts: Shifts, iteration: int = 0) -> Codes:
        """The common pattern: acc (B, ..., bias's shape) -> codes (B, *shape of the tensor)."""
        acc = acc << shifts.acc
        if bias is not None:
            acc = acc + (bias.integers.astype(np.int64) << shifts.bias)
        return self.rounded(name, acc, shifts.out, iteration)

    def rounded(self, name: str, acc: Codes, shift: Any, iteration: int = 0, base: Codes | int = 0) -> Codes:
        """``saturate(base + rounding_shift(acc, shift))`` in the tensor's shape."""
        spec = self.tensors[name]
        noise = self.noise(spec, acc.shape[1:], iteration)
        codes = self.fixed(name).saturate(base + rounding_shift(acc, shift, spec.rounding, noise))
        shaped: Codes = codes.astype(np.int32).reshape(len(acc), *spec.shape)
        return shaped

    def squash(self, capsules: Codes, source: str, out: str, iteration: int = 0) -> Codes:
        """Squash of capsules (B, ..., D) of codes of tensor ``source`` to codes of tensor ``out``."""
        spec = self.tensors[out]
        noise = self.noise(spec, capsules.shape[1:], iteration)
        codes: Codes = squash(capsules, self.fixed(source), self.fixed(out), spec.rounding, noise)
        return codes

    def operands(self, op: Op, what: str) -> type:
        """The dtype in which the products of an accumulator are exact: float64 below 2**53, else int64."""
        return np.float64 if self._exact_floats and self._products[op.name, what] < 1 << 53 else np.int64

    def weights(self, weight: Constant, kind: type, arrange: Callable[[Codes], Codes]) -> Codes:
        if (weight.key, kind) not in self._weights:
            self._weights[weight.key, kind] = np.ascontiguousarray(arrange(weight.integers.astype(kind)))
        return self._weights[weight.key, kind]

    def convolve(self, op: ops.Convolution, x: Codes, groups: int = 1) -> Codes:
        """Sums of products of a convolution: x (B, H, W, I) -> int64 (B, H', W', O)."""
        kind = self.operands(op, "acc")
        out, rows, columns, depth = op.weight.shape
        extra = op.extra(self.tensors)
        windows = _windows(x.astype(kind), (rows, columns), op.stride, op.padding, 0, extra)  # B, H', W', I, KH, KW
        batch, *positions = windows.shape[:3]
        windows = windows.reshape(batch, *positions, groups, depth, rows, columns).transpose(3, 0, 1, 2, 5, 6, 4)
        filters = self.weights(op.weight, kind, lambda w: w.reshape(groups, out // groups, -1).swapaxes(1, 2))
        # Few large products (not one per row), each with at most _WINDOW_BYTES of windows.
        step = max(1, _WINDOW_BYTES * batch // windows.nbytes)
        parts = [windows[:, start : start + step] for start in range(0, batch, step)]
        sums = [part.reshape(groups, -1, filters.shape[1]) @ filters for part in parts]  # G, B * H' * W', O / G
        return np.concatenate(sums, axis=1).swapaxes(0, 1).astype(np.int64).reshape(batch, *positions, out)


def _windows(
    x: Codes, kernel: tuple[int, int], stride: int, padding: int, outside: int, extra: tuple[int, int] = (0, 0)
) -> Codes:
    """Every window of x (B, H, W, C), padded with ``outside``: a view (B, H', W', C, KH, KW)."""
    rows, columns = ((padding, padding + more) for more in extra)
    padded: Codes = np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    return windows[:, ::stride, ::stride]


INTERPRET: Registry[type[Op], Callable[..., dict[str, Codes]]] = Registry("interpretation of op")
"""``(op, machine, *inputs)`` -> the tensors that the op writes; inputs have a leading batch axis."""


@INTERPRET.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, machine: _Machine, x: Codes) -> dict[str, Codes]:
    return {op.output: op.table.codes[np.arange(x.shape[-1]), x]}


@INTERPRET.of(ops.Conv2d)
def _conv2d(op: ops.Conv2d, machine: _Machine, x: Codes) -> dict[str, Codes]:
    codes = machine.requantize(op.output, machine.convolve(op, x, op.groups), op.bias, op.shifts(machine.tensors))
    low = 0 if op.relu else None
    return {op.output: codes if low is None and op.high is None else np.clip(codes, low, op.high)}


@INTERPRET.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, machine: _Machine, x: Codes) -> dict[str, Codes]:
    outside = np.iinfo(x.dtype).min
    largest = _windows(x, (op.kernel, op.kernel), op.stride, op.padding, outside).max(axis=(-2, -1))
    return {op.output: machine.rounded(op.output, largest.astype(np.int64), op.shifts(machine.tensors).out)}


@INTERPRET.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, machine: _Machine, x: Codes) -> dict[str, Codes]:
    acc = x.astype(np.int64) * op.scale.integers
    return {op.output: machine.requantize(op.output, acc, op.offset, op.shifts(machine.tensors))}


@INTERPRET.of(ops.LeakyRelu)
def _leaky_relu(op: ops.LeakyRelu, machine: _Machine, x: Codes) -> dict[str, Codes]:
    acc = x.astype(np.int64) * np.where(x < 0, op.slope, 1 << op.frac)
    return {op.output: machine.rounded(op.output, acc, op.shifts(machine.tensors).out)}


@INTERPRET.of(ops.Listing)
def _listing(op: ops.Listing, machine: _Machine, x: Codes) -> dict[str, Codes]:
    return {op.output: x.transpose(0, 3, 1, 2).reshape(len(x), *machine.tensors[op.output].shape)}


@INTERPRET.of(ops.Squash)
def _squash(op: ops.Squash, machine: _Machine, x: Codes) -> dict[str, Codes]:
    return {op.output: machine.squash(x.reshape(len(x), -1, op.dim), op.input, op.output).reshape(x.shape)}


@INTERPRET.of(ops.Add)
def _add(op: ops.Add, machine: _Machine, a: Codes, b: Codes) -> dict[str, Codes]:
    shifts = op.shifts(machine.tensors)
    acc = (a.astype(np.int64) << shifts.acc) + (b.astype(np.int64) << shifts.bias)
    return {op.output: machine.rounded(op.output, acc, shifts.out)}


@INTERPRET.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, machine: _Machine, *sources: Codes) -> dict[str, Codes]:
    _, dim, width = op.weight.shape
    spec = machine.tensors[op.output]
    noise = machine.noise(spec, (-1, width))
    parts: list[Codes] = []
    start = 0
    for name, x, voters in zip(op.sources, sources, op.voters(machine.tensors), strict=True):
        kind = machine.operands(op, f"acc:{name}")
        if x.ndim == 4:  # a capsule map: type by type, row by row
            x = x.reshape(*x.shape[:3], -1, dim).transpose(0, 3, 1, 2, 4)
        capsules: Codes = x.reshape(len(x), -1, dim)[:, voters].astype(kind)
        weight = machine.weights(op.weight, kind, lambda w: w)[start : start + capsules.shape[1]]
        acc = (capsules.swapaxes(0, 1) @ weight).swapaxes(0, 1).astype(np.int64)  # B, I, G * D
        shifts = op.shifts(machine.tensors, name)
        draw = None if noise is None else noise[start : start + acc.shape[1]]
        carries = spec.rounding is Rounding.CARRY
        parts.append(acc << shifts.acc if carries else rounding_shift(acc, shifts.out, spec.rounding, draw))
        start += acc.shape[1]
    codes = np.concatenate(parts, axis=1)
    if spec.rounding is Rounding.CARRY:
        codes = carried_shift(codes, shifts.out, 1)
    votes = machine.fixed(op.output).saturate(codes).astype(np.int32)
    return {op.output: votes.reshape(len(votes), *spec.shape)}


@INTERPRET.of(ops.ConvVotes)
def _conv_votes(op: ops.ConvVotes, machine: _Machine, x: Codes) -> dict[str, Codes]:
    rows = [machine.convolve(op, x_i) for x_i in np.split(x, op.in_types, axis=-1)]
    acc = np.stack(rows, axis=1)  # B, I, H', W', J * D
    return {op.output: machine.requantize(op.output, acc, op.bias, op.shifts(machine.tensors))}


@INTERPRET.of(ops.Routing)
def _routing(op: ops.Routing, machine: _Machine, votes: Codes) -> dict[str, Codes]:
    tensors = machine.tensors
    batch, inputs, outputs, dim = votes.shape
    coupling_spec = tensors[op.coupling]
    logits_format = FixedFormat(1, 0, True) if op.logits is None else machine.fixed(op.logits)
    logits = np.zeros((batch, inputs, outputs), dtype=np.int32)
    shifts = op.shifts(tensors)
    kind = machine.operands(op, "acc")
    by_output: Codes = np.ascontiguousarray(votes.swapaxes(1, 2), dtype=kind)  # B, G, I, D
    result: dict[str, Codes] = {}
    for t in range(op.iterations):
        noise = machine.noise(coupling_spec, coupling_spec.shape, t)
        coupling = softmax(logits, logits_format, machine.fixed(op.coupling), -1, coupling_spec.rounding, noise)
        weights = coupling.swapaxes(1, 2)[:, :, None].astype(kind)  # B, G, 1, I
        acc = (weights @ by_output).astype(np.int64).reshape(batch, -1, op.types, dim)
        preactivation = machine.requantize(op.preactivation, acc, op.bias, shifts, t)
        capsules = preactivation.reshape(batch, outputs, dim)
        activation = machine.squash(capsules, op.preactivation, op.activation, t)
        step = {op.coupling: coupling, op.preactivation: preactivation}
        step[op.activation] = activation.reshape(preactivation.shape)
        if op.logits is not None and t < op.iterations - 1:
            exact = machine.operands(op, "agreement")
            products: Codes = by_output.astype(exact, copy=False) @ activation[..., None].astype(exact)  # B, G, I, 1
            agreement: Codes = products[..., 0].swapaxes(1, 2).astype(np.int64)
            logits = machine.rounded(op.logits, agreement, op.agreement_shift(tensors), t, base=logits)
            step[op.logits] = logits
        result |= step | {f"{name}[{t}]": codes for name, codes in step.items()}
    return result


@INTERPRET.of(ops.Lengths)
def _lengths(op: ops.Lengths, machine: _Machine, x: Codes) -> dict[str, Codes]:
    return {op.output: squared_length(x)}
