"""A Program: what ships. Typed ops over named integer tensors, and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import DataError
from caplet.program.op import Op
from caplet.program.ops import Convolution, ConvVotes, DenseVotes, Routing
from caplet.program.tensor import Constant, TensorSpec

CODE_BYTES = 14 * 1024
"""Of a network without a Program: what :attr:`Program.code_bytes` is for many."""


@dataclass(frozen=True)
class Program:
    """A capsule network in integers.

    name: of the model; used for C identifiers.
    tensors: every tensor by its name, in order of writing.
    ops: in order of execution.
    input: the raw image, (H, W, C), format ``PIXEL_FORMAT``; written by the caller.
    output: the class capsules, (classes, D).
    lengths: their squared lengths, (classes,).
    seed: of stochastic rounding, 32 bits.
    labels: the names of the classes, or empty.
    meta: free text about the Program's provenance (never interpreted).

    Nothing is checked on construction; ``caplet.program.verify.verify`` checks everything.
    """

    name: str
    tensors: Mapping[str, TensorSpec]
    ops: tuple[Op, ...]
    input: str
    output: str
    lengths: str
    seed: int = 0
    labels: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of an image, the order in which caplet's datasets hold it."""
        rows, columns, channels = self.tensors[self.input].shape
        return channels, rows, columns

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.tensors[self.output].shape[0]

    def check_images(self, images: NDArray[Any]) -> None:
        """Raise DataError unless ``images`` are at least one of this Program's: uint8 (N, channels, rows, columns)."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            raise DataError(
                f"program {self.name}: images are {images.dtype} of shape {images.shape}; the rule is uint8 of shape "
                f"(images, {', '.join(map(str, self.image_shape))}), at least one"
            )

    def constants(self) -> Iterator[Constant]:
        """Every constant, op by op."""
        for op in self.ops:
            yield from op.constants

    def votes_op(self, routing: Routing) -> DenseVotes | ConvVotes:
        """The op that writes the votes of ``routing``."""
        for op in self.ops:
            if isinstance(op, DenseVotes | ConvVotes) and op.output == routing.votes:
                return op
        raise KeyError(f"{routing.name}: no op writes the votes {routing.votes!r}")

    @property
    def wide(self) -> tuple[str, ...]:
        """Tensors and weights that bytes do not hold."""
        names = [name for name, spec in self.tensors.items() if name != self.lengths and spec.format.bits > 8]
        weights = [op.weight for op in self.ops if isinstance(op, Convolution | DenseVotes)]
        wide = (
            weight.key for weight in weights if not np.array_equal(weight.integers.astype(np.int8), weight.integers)
        )
        return (*names, *wide)

    @property
    def flash_bytes(self) -> int:
        """Bytes of the bit-packed constants, one for each shift of a channel, two for each selected input capsule."""
        selected = sum(len(op.selected or ()) for op in self.ops if isinstance(op, DenseVotes))
        shifts = [op.channel_shifts for op in self.ops if isinstance(op, Convolution | DenseVotes)]
        packed = sum(constant.packed_bytes for constant in self.constants())
        return packed + sum(shift.size for shift in shifts if shift is not None) + 2 * selected

    @property
    def firmware_bytes(self) -> int:
        """Flash that an exported model is expected to take: its constants, and its code."""
        return self.flash_bytes + self.code_bytes

    @property
    def code_bytes(self) -> int:
        """Flash of code, tables and descriptors, by arm-none-eabi-gcc -O2 for Cortex-M4, within a tenth: what all need,
        then for each kind of op, for each op, and for weights that must be unpacked."""
        weights = [op.weight for op in self.ops if isinstance(op, Convolution | DenseVotes)]
        unpacks = any(weight.format.bits not in (8, 16) for weight in weights)
        return 7_500 + 450 * len({op.kind for op in self.ops}) + 130 * len(self.ops) + 800 * unpacks

    def __hash__(self) -> int:
        return hash((self.name, self.seed, self.ops))
