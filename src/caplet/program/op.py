"""What all ops of a Program have in common: names, constants, and the pattern of their accumulators.

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ArtefactError
from caplet.program.tensor import Constant, IntArray, TensorSpec
from caplet.registry import Registry

Tensors = Mapping[str, TensorSpec]
Shift = int | NDArray[np.int64]
"""One shift, or one per output channel; negative means left."""
LEFT_OUT = "unwritten"
"""Marks, in a field's metadata, that a ``.caplet`` file leaves the field out where it has its default."""
ALWAYS = "always"
"""Value of that mark where the form for grouped convolutions, which writes all other fields, leaves it out, too."""


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


def bias_frac(bias: Constant | None) -> int | None:
    return None if bias is None else bias.format.frac_bits


OPS: "Registry[str, type[Op]]" = Registry("op", ArtefactError)
"""Every op by its kind; the interpreter, the verifier, the file format, C and ONNX each handle all of them."""


class Op:
    """Base of the ops, frozen dataclasses. ``name`` is the layer's name; ``kind`` names the op in files and in C."""

    kind: ClassVar[str]
    name: str
    output: str  # of ops that write one tensor

    def __init_subclass__(cls, kind: str = "") -> None:
        if kind:
            cls.kind = kind
            OPS.add(kind, cls)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors written."""
        return (self.output,)

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constants in flash, in the order of the op's fields."""
        return tuple(value for value in vars(self).values() if isinstance(value, Constant))

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` is the same op: every field equal, arrays element by element."""
        if type(other) is not type(self):
            return NotImplemented
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(
            type(a) is type(b) and (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b) for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.name))


@dataclass(frozen=True, eq=False)
class UnaryOp(Op):
    """An op that reads one tensor and writes one."""

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)
