"""Every op of a Program as the descriptor that the C runtime takes: one function per op.

The same descriptors become C text in an exported model and memory in the host runtime.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from caplet.errors import PlanError
from caplet.fixed.format import FixedFormat, LogFormat
from caplet.fixed.packing import pack_bits
from caplet.fixed.rounding import Rounding, noise_keys
from caplet.fixed.softmax import sum_bits
from caplet.program import ops
from caplet.program.arena import filters_together, routing_rows
from caplet.program.bounds import AccumulatorBound
from caplet.program.c.sources import constants
from caplet.program.c.structure import Array, Identifiers, Ref, Struct, StructArray
from caplet.program.op import Op
from caplet.program.program import Program
from caplet.program.tensor import Constant, IntArray, TensorSpec, WideFormat
from caplet.program.verify import Proof
from caplet.registry import Registry

_SIGNED, _UNSIGNED, _POWERS = (constants()[f"CAPLET_{kind}"] for kind in ("SIGNED", "UNSIGNED", "POWERS"))


@dataclass
class Descriptions:
    """Descriptors of the ops of one Program, and the arrays that they refer to.

    unpacked: constants are arrays of int8 or int16 instead of bit-packed; for the host, which has memory for them.
    """

    program: Program
    proof: Proof
    unpacked: bool = False
    arrays: dict[str, Array] = field(default_factory=dict)
    structs: dict[str, StructArray] = field(default_factory=dict)
    names: Identifiers = field(default_factory=Identifiers)

    def of(self, op: Op) -> Struct:
        """The descriptor of ``op``; its constants are added to ``arrays``. Raises PlanError where C has no type."""
        return DESCRIPTORS[type(op)](op, self)

    def array(self, key: str, values: np.ndarray) -> Ref:
        name = self.names.of(f"table {key}")
        self.arrays[name] = Array(name, np.ascontiguousarray(values).reshape(-1))
        return Ref(name)

    def constant(self, constant: Constant | None) -> Struct:
        if constant is None:
            return Struct("caplet_constant", {"data": Ref(), "bits": 0, "kind": _SIGNED})
        values, bits, kind = _unpacked(constant) if self.unpacked else _packed(constant)
        return Struct("caplet_constant", {"data": self.array(constant.key, values), "bits": bits, "kind": kind})

    def format(self, name: str, relu: bool = False, high: int | None = None) -> Struct:
        """How tensor ``name`` is written; ``high``: the largest code, where it is not the format's."""
        spec = self.program.tensors[name]
        fmt = fixed(spec)
        keys = noise_keys(self.program.seed, name) if spec.rounding is Rounding.STOCHASTIC else (0, 0)
        return Struct(
            "caplet_format",
            {
                "low": max(fmt.min_code, 0) if relu else fmt.min_code,
                "high": fmt.max_code if high is None else high,
                "noise_a": keys[0],
                "noise_b": keys[1],
                "type": element_type(spec),
                "rounding": constants()[f"CAPLET_{spec.rounding.name}"],
                "frac": fmt.frac_bits,
            },
        )

    def accumulator(
        self,
        op: Op,
        bound: AccumulatorBound,
        product_frac: int,
        bias: Constant | None,
        channel_shifts: IntArray | None = None,
    ) -> Struct:
        shifts = Ref()
        if channel_shifts is not None:
            shifts = self.array(f"{op.name}/channel_shifts", channel_shifts.astype(np.int8))
        return Struct(
            "caplet_accumulator",
            {
                "channel_shifts": shifts,
                "bias": self.constant(bias),
                "product_frac": product_frac,
                "bias_frac": 0 if bias is None else bias.format.frac_bits,
                "wide": int(bound.bytes == 8),
                "wide_products": int(bound.products >= 1 << 31),
            },
        )

    def spec(self, name: str) -> TensorSpec:
        return self.program.tensors[name]


def fixed(spec: TensorSpec) -> FixedFormat:
    """The format of a tensor of codes."""
    if isinstance(spec.format, WideFormat):
        raise PlanError(f"tensor {spec.name}: {spec.format}; the rule is that ops read codes of at most 16 bits")
    return spec.format


def element_type(spec: TensorSpec) -> int:
    """CAPLET_INT8 .. CAPLET_UINT16 of a tensor of codes."""
    fixed(spec)
    return constants()[f"CAPLET_{spec.c_type.removesuffix('_t').upper()}"]


def _kind(constant: Constant) -> int:
    if isinstance(constant.format, LogFormat):
        return _POWERS
    return _SIGNED if constant.format.signed else _UNSIGNED


def _packed(constant: Constant) -> tuple[np.ndarray, int, int]:
    bits, kind = constant.format.bits, _kind(constant)
    if bits == 16 and kind == _SIGNED:
        return constant.codes.astype(np.int16), bits, kind
    return pack_bits(constant.codes, bits, constant.format.signed), bits, kind


def _unpacked(constant: Constant) -> tuple[np.ndarray, int, int]:
    low, high = _extent(constant)
    if low >= -128 and high <= 127:
        return constant.integers.astype(np.int8), 8, _SIGNED
    if high <= 32767:
        return constant.integers.astype(np.int16), 16, _SIGNED
    return _packed(constant)


def _extent(constant: Constant) -> tuple[int, int]:
    """The range of the integers that the constant's format allows."""
    if isinstance(constant.format, LogFormat):
        largest = 1 << (constant.format.max_code - 1)
        return -largest, largest
    return constant.format.min_code, constant.format.max_code


DESCRIPTORS: Registry[type[Op], Callable[..., Struct]] = Registry("C descriptor of op")
"""``(op, descriptions)`` -> the descriptor of the op."""


@DESCRIPTORS.of(ops.InputQuantize)
def _input_quantize(op: ops.InputQuantize, to: Descriptions) -> Struct:
    rows, columns, channels = to.spec(op.input).shape
    return Struct(
        "caplet_input_quantize_op",
        {
            "table": to.constant(op.table),
            "out": to.format(op.output),
            "pixels": rows * columns,
            "channels": channels,
        },
    )


@DESCRIPTORS.of(ops.Conv2d)
@DESCRIPTORS.of(ops.ConvVotes)
def _convolution(op: ops.Convolution, to: Descriptions) -> Struct:
    rows, columns, channels = to.spec(op.input).shape
    out_rows, out_columns = op.positions(to.program.tensors)
    out, kernel_rows, kernel_columns, depth = op.weight.shape
    product = to.spec(op.input).format.frac_bits + op.weight.format.frac_bits
    return Struct(
        "caplet_conv_op",
        {
            "weight": to.constant(op.weight),
            "acc": to.accumulator(op, to.proof.find(op.name, "acc"), product, op.bias, op.channel_shifts),
            "out": to.format(op.output, op.relu, op.high) if isinstance(op, ops.Conv2d) else to.format(op.output),
            "in_rows": rows,
            "in_columns": columns,
            "in_channels": channels,
            "out_rows": out_rows,
            "out_columns": out_columns,
            "out_channels": out,
            "kernel_rows": kernel_rows,
            "kernel_columns": kernel_columns,
            "depth": depth,
            "types": op.in_types if isinstance(op, ops.ConvVotes) else 1,
            "stride": op.stride,
            "padding": op.padding,
            "together": filters_together(op.weight),
            "in_type": element_type(to.spec(op.input)),
        },
    )


@DESCRIPTORS.of(ops.MaxPool2d)
def _max_pool2d(op: ops.MaxPool2d, to: Descriptions) -> Struct:
    source, target = to.spec(op.input), to.spec(op.output)
    shift = op.shifts(to.program.tensors).out
    assert isinstance(shift, int)
    return Struct(
        "caplet_max_pool2d_op",
        {
            "out": to.format(op.output),
            "in_rows": source.shape[0],
            "in_columns": source.shape[1],
            "channels": source.shape[2],
            "out_rows": target.shape[0],
            "out_columns": target.shape[1],
            "kernel": op.kernel,
            "stride": op.stride,
            "padding": op.padding,
            "in_type": element_type(source),
            "right": shift,
            "wide": int(to.proof.find(op.name, "acc").bytes == 8),
        },
    )


@DESCRIPTORS.of(ops.ChannelAffine)
def _channel_affine(op: ops.ChannelAffine, to: Descriptions) -> Struct:
    source = to.spec(op.input)
    rows, columns, channels = source.shape
    product = source.format.frac_bits + op.scale.format.frac_bits
    return Struct(
        "caplet_channel_affine_op",
        {
            "scale": to.constant(op.scale),
            "acc": to.accumulator(op, to.proof.find(op.name, "acc"), product, op.offset),
            "out": to.format(op.output),
            "pixels": rows * columns,
            "channels": channels,
            "in_type": element_type(source),
        },
    )


@DESCRIPTORS.of(ops.Squash)
def _squash(op: ops.Squash, to: Descriptions) -> Struct:
    source = to.spec(op.input)
    return Struct(
        "caplet_squash_op",
        {
            "out": to.format(op.output),
            "count": source.elements // op.dim,
            "dim": op.dim,
            "in_frac": source.format.frac_bits,
            "in_type": element_type(source),
        },
    )


@DESCRIPTORS.of(ops.Add)
def _add(op: ops.Add, to: Descriptions) -> Struct:
    shifts = op.shifts(to.program.tensors)
    return Struct(
        "caplet_add_op",
        {
            "out": to.format(op.output),
            "count": to.spec(op.output).elements,
            "a_type": element_type(to.spec(op.a)),
            "b_type": element_type(to.spec(op.b)),
            "a_left": int(shifts.acc),
            "b_left": int(shifts.bias),
            "right": int(shifts.out),
            "wide": int(to.proof.find(op.name, "acc").bytes == 8),
        },
    )


@DESCRIPTORS.of(ops.DenseVotes)
def _dense_votes(op: ops.DenseVotes, to: Descriptions) -> Struct:
    _, in_dim, votes = op.weight.shape
    sources = []
    for name in op.sources:
        spec = to.spec(name)
        shape = (spec.shape[0], 1, 1) if len(spec.shape) == 2 else (*spec.shape[:2], spec.shape[2] // in_dim)
        bound = to.proof.find(op.name, f"acc:{name}")
        product = spec.format.frac_bits + op.weight.format.frac_bits
        fields: dict[str, int | Ref | Struct] = {
            "acc": to.accumulator(op, bound, product, None, op.channel_shifts),
            "rows": shape[0],
            "columns": shape[1],
            "types": shape[2],
            "type": element_type(spec),
        }
        sources.append(Struct("caplet_source", fields))
    name = to.names.of(f"table {op.name}/sources")
    to.structs[name] = StructArray(name, tuple(sources))
    selected = Ref()
    if op.selected is not None:
        selected = to.array(f"{op.name}/selected", np.array(op.selected, dtype=np.uint16))
    return Struct(
        "caplet_dense_votes_op",
        {
            "sources": Ref(name),
            "selected": selected,
            "weight": to.constant(op.weight),
            "out": to.format(op.output),
            "source_count": len(sources),
            "in_dim": in_dim,
            "votes": votes,
        },
    )


@DESCRIPTORS.of(ops.Routing)
def _routing(op: ops.Routing, to: Descriptions) -> Struct:
    votes = to.spec(op.votes)
    inputs, outputs, dim = votes.shape
    product = to.spec(op.coupling).format.frac_bits + votes.format.frac_bits
    routed = op.logits is not None
    return Struct(
        "caplet_routing_op",
        {
            "acc": to.accumulator(op, to.proof.find(op.name, "acc"), product, op.bias),
            "coupling": to.format(op.coupling),
            # With one iteration there are no logits, and the runtime does not look at their format.
            "logits": to.format(op.logits or op.coupling),
            "preactivation": to.format(op.preactivation),
            "activation": to.format(op.activation),
            "inputs": inputs,
            "outputs": outputs,
            "dim": dim,
            "types": op.types,
            "iterations": op.iterations,
            "rows": routing_rows(outputs),
            "agreement_shift": op.agreement_shift(to.program.tensors) if routed else 0,
            "agreement_wide": int(routed and to.proof.find(op.name, "agreement").bytes == 8),
            "votes_type": element_type(votes),
            "scale_bits": sum_bits(outputs),
        },
    )


@DESCRIPTORS.of(ops.Lengths)
def _lengths(op: ops.Lengths, to: Descriptions) -> Struct:
    source, out = to.spec(op.input), to.spec(op.output)
    return Struct(
        "caplet_lengths_op",
        {
            "count": source.shape[0],
            "dim": source.shape[1],
            "in_type": element_type(source),
            "wide": int(out.format.bits == 64),
        },
    )
