"""Tensors and constants of a Program: names, shapes, formats, and the integers of the weights."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from caplet.errors import PlanError
from caplet.fixed.format import AnyFormat, FixedFormat
from caplet.fixed.packing import packed_size
from caplet.fixed.rounding import Rounding

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class WideFormat:
    """Unsigned integers of 32 or 64 bits, for squared lengths only: ``value = code * 2**-frac_bits``."""

    bits: int
    frac_bits: int
    signed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise PlanError(f"WideFormat: bits is {self.bits!r}; the rule is 32 or 64")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a Program.

    name: the point's key, e.g. ``"digit.votes"``; also the key of its stochastic noise.
    shape: of one image, in the device's layout (see ``caplet.program.ops``).
    rounding: how the op that writes it rounds.
    """

    name: str
    shape: tuple[int, ...]
    format: FixedFormat | WideFormat
    rounding: Rounding = Rounding.NEAREST

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element in RAM: the least of 1, 2, 4, 8 that holds ``bits``; codes are not packed in RAM."""
        return 1 if self.format.bits <= 8 else 2 if self.format.bits <= 16 else self.format.bits // 8

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor in RAM."""
        return self.elements * self.element_bytes

    @property
    def c_type(self) -> str:
        """The C type of an element: int8_t, uint8_t, int16_t, uint16_t, uint32_t or uint64_t."""
        return f"{'' if self.format.signed else 'u'}int{8 * self.element_bytes}_t"


@dataclass(frozen=True, eq=False)
class Constant:
    """Integer constants that the device keeps in flash: weights, biases, tables.

    key: the point's key, e.g. ``"conv1.weight"``.
    codes: int32, C order, read-only; the layout is the owning op's. Raises PlanError when a code is out of range.
    """

    key: str
    codes: IntArray
    format: AnyFormat

    def __post_init__(self) -> None:
        codes = np.ascontiguousarray(self.codes, dtype=np.int32)
        if codes is self.codes and codes.flags.writeable:
            codes = codes.copy()
        if codes.size and (codes.min() < self.format.min_code or codes.max() > self.format.max_code):
            raise PlanError(f"constant {self.key}: codes span {codes.min()}..{codes.max()}, outside of {self.format}")
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def integers(self) -> IntArray:
        """What the device multiplies with: ``value = integers * 2**-format.frac_bits`` (codes, or powers of two)."""
        return cast(IntArray, self.format.integers(self.codes))

    @property
    def packed_bytes(self) -> int:
        """Bytes in flash and in the file, bit-packed."""
        return packed_size(self.codes.size, self.format.bits)

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, Constant)
            and (self.key, self.format) == (other.key, other.format)
            and np.array_equal(self.codes, other.codes)
        )

    def __hash__(self) -> int:
        return hash((self.key, self.format, self.codes.tobytes()))
