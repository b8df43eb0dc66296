"""The structures of ``caplet.h`` and ``host.h`` in ctypes, and descriptors turned into memory."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int8, c_int16, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

from numpy.typing import NDArray

from caplet.program.c.describe import Descriptions
from caplet.program.c.structure import Ref, Struct


class Constant(Structure):
    _fields_ = [("data", c_void_p), ("bits", c_uint8), ("kind", c_uint8)]


class Format(Structure):
    _fields_ = [
        ("low", c_int32),
        ("high", c_int32),
        ("noise_a", c_uint32),
        ("noise_b", c_uint32),
        ("type", c_uint8),
        ("rounding", c_uint8),
        ("frac", c_int16),
    ]


class Accumulator(Structure):
    _fields_ = [
        ("channel_shifts", c_void_p),
        ("bias", Constant),
        ("product_frac", c_int16),
        ("bias_frac", c_int16),
        ("wide", c_uint8),
        ("wide_products", c_uint8),
    ]


def _structure(name: str, *fields: tuple[str, Any]) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields)})


def _sizes(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_uint32) for name in names]


InputQuantizeOp = _structure("InputQuantizeOp", ("table", Constant), ("out", Format), *_sizes("pixels", "channels"))
ConvOp = _structure(
    "ConvOp",
    ("weight", Constant),
    ("acc", Accumulator),
    ("out", Format),
    *_sizes("in_rows", "in_columns", "in_channels", "out_rows", "out_columns", "out_channels"),
    *_sizes("kernel_rows", "kernel_columns", "depth", "types", "stride", "padding", "together"),
    ("in_type", c_uint8),
)
ChannelAffineOp = _structure(
    "ChannelAffineOp",
    ("scale", Constant),
    ("acc", Accumulator),
    ("out", Format),
    *_sizes("pixels", "channels"),
    ("in_type", c_uint8),
)
SquashOp = _structure("SquashOp", ("out", Format), *_sizes("count", "dim"), ("in_frac", c_int16), ("in_type", c_uint8))
AddOp = _structure(
    "AddOp",
    ("out", Format),
    ("count", c_uint32),
    *[(name, c_uint8) for name in ("a_type", "b_type", "a_left", "b_left")],
    ("right", c_int8),
    ("wide", c_uint8),
)
Source = _structure("Source", ("acc", Accumulator), *_sizes("rows", "columns", "types"), ("type", c_uint8))
DenseVotesOp = _structure(
    "DenseVotesOp",
    ("sources", c_void_p),
    ("selected", c_void_p),
    ("weight", Constant),
    ("out", Format),
    *_sizes("source_count", "in_dim", "votes"),
)
RoutingOp = _structure(
    "RoutingOp",
    ("acc", Accumulator),
    *[(name, Format) for name in ("coupling", "logits", "preactivation", "activation")],
    *_sizes("inputs", "outputs", "dim", "types", "iterations", "rows"),
    ("agreement_shift", c_int8),
    *[(name, c_uint8) for name in ("agreement_wide", "votes_type", "scale_bits")],
)
LengthsOp = _structure("LengthsOp", *_sizes("count", "dim"), ("in_type", c_uint8), ("wide", c_uint8))

MaxPool2dOp = _structure(
    "MaxPool2dOp",
    ("out", Format),
    *_sizes("in_rows", "in_columns", "channels", "out_rows", "out_columns", "kernel", "stride", "padding"),
    ("in_type", c_uint8),
    ("right", c_int8),
    ("wide", c_uint8),
)


class HostConv(Structure):
    _fields_ = [
        ("conv", ConvOp),
        ("weights", c_void_p),
        ("start", c_void_p),
        ("patch", c_uint32),
        ("positions", c_uint32),
        ("method", c_uint32),
    ]


class HostStep(Structure):
    _fields_ = [
        ("op", c_void_p),
        ("inputs", c_void_p),
        ("memory", c_uint64 * 5),
        ("output", c_uint64),
        ("kind", c_uint32),
        ("row_bytes", c_uint32),
        ("count", c_uint32),
        ("input_count", c_uint32),
    ]


STRUCTURES: dict[str, type[Structure]] = {
    "caplet_constant": Constant,
    "caplet_format": Format,
    "caplet_accumulator": Accumulator,
    "caplet_input_quantize_op": InputQuantizeOp,
    "caplet_conv_op": ConvOp,
    "caplet_channel_affine_op": ChannelAffineOp,
    "caplet_squash_op": SquashOp,
    "caplet_add_op": AddOp,
    "caplet_source": Source,
    "caplet_dense_votes_op": DenseVotesOp,
    "caplet_routing_op": RoutingOp,
    "caplet_lengths_op": LengthsOp,
    "caplet_max_pool2d_op": MaxPool2dOp,
    "caplet_host_conv": HostConv,
    "caplet_host_step": HostStep,
}
"""By the name in C, in the order of ``caplet_host_sizes``."""


class Memory:
    """Descriptors as memory. Keeps alive whatever the structures point to."""

    def __init__(self, descriptions: Descriptions) -> None:
        self._descriptions = descriptions
        self._alive: list[Any] = []
        self._places: dict[str, int] = {}

    def structure(self, struct: Struct) -> Any:
        """A ctypes structure with the fields of ``struct``."""
        result = STRUCTURES[struct.type]()
        self._fill(result, struct)
        return self.hold(result)

    def hold(self, thing: Any) -> Any:
        """Keep ``thing`` alive as long as this object."""
        self._alive.append(thing)
        return thing

    def address(self, values: NDArray[Any]) -> int:
        """The address of an array's elements, kept alive."""
        self.hold(values)
        return int(values.ctypes.data)

    def _fill(self, target: Any, struct: Struct) -> None:
        for name, value in struct.fields.items():
            if isinstance(value, Struct):
                self._fill(getattr(target, name), value)
            else:
                setattr(target, name, self._place(value.name) if isinstance(value, Ref) else value)

    def _place(self, name: str) -> int | None:
        if not name:
            return None
        if name not in self._places:
            if name in self._descriptions.arrays:
                self._places[name] = self.address(self._descriptions.arrays[name].values)
            else:
                items = self._descriptions.structs[name].items
                block = self.hold((STRUCTURES[items[0].type] * len(items))())
                for target, item in zip(block, items, strict=True):
                    self._fill(target, item)
                self._places[name] = ctypes.addressof(block)
        return self._places[name]
