"""Points: the named places where a layer's tensors can be observed or quantized.

A layer declares each tensor the device will store as a :class:`PointSpec` and passes that tensor through
:meth:`caplet.nn.layer.Layer.tap`. With no handler attached a tap returns its argument unchanged. A
:class:`Handler` (calibration, fake-quant, ...) sees every tensor with its key, ``"<layer>.<point>"``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from torch import Tensor

from caplet.nn.functional import softmax, squash


class Role(StrEnum):
    """What a tensor is for; searches and reports group points by it."""

    IMAGE = "image"
    WEIGHT = "weight"
    BIAS = "bias"
    SCALE = "scale"
    OFFSET = "offset"
    VOTES = "votes"
    COUPLING = "coupling"
    LOGITS = "logits"
    PREACTIVATION = "preactivation"
    ACTIVATION = "activation"


class Storage(StrEnum):
    """Where the device keeps a tensor: constants in flash, everything computed in RAM."""

    FLASH = "flash"
    RAM = "ram"


class Lifetime(StrEnum):
    """How long a tensor must be kept."""

    CONSTANT = "constant"  # for ever (flash)
    LAYER = "layer"  # from its layer's start to its layer's end
    OUTPUT = "output"  # until every layer that reads it has run


#: Roles whose widths the routing part of a search moves (Marchisio et al. 2020, section III, step 4A).
ROUTING_ROLES = frozenset({Role.PREACTIVATION, Role.LOGITS})


@dataclass(frozen=True)
class PointSpec:
    """Declaration of one tensor that the device stores.

    Attributes:
        name: name inside its layer, e.g. ``"votes"``.
        role: what the tensor is for.
        dims: a name for each axis, without the batch axis.
        shape: size of each axis, without the batch axis.
        signed: whether negative values occur.
        storage: flash (constants) or RAM.
        lifetime: how long the tensor lives.
        bound: ``(low, high)`` where mathematics bounds the values; such a point is not calibrated.
        routed: whether the tensor lives inside a routing of more than one iteration.
        carries: whether rounding can carry remainders on along the axis ``in`` (see ``caplet.fixed.carried_shift``).
    """

    name: str
    role: Role
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    signed: bool
    storage: Storage
    lifetime: Lifetime
    bound: tuple[float, float] | None = None
    routed: bool = False
    carries: bool = False

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.shape):
            raise ValueError(f"point {self.name!r}: {len(self.dims)} axis names for {len(self.shape)} axes")

    @property
    def elements(self) -> int:
        """Number of elements (per image for RAM points)."""
        return prod(self.shape)

    @property
    def device_axes(self) -> tuple[int, ...]:
        """Axes in the order in which the device lays a computed tensor out: rows, columns, input capsules, the rest.

        >>> spec = ram("activation", Role.ACTIVATION, ("channel", "row", "column"), (16, 5, 5), signed=False)
        >>> spec.device_axes
        (1, 2, 0)
        """
        first = ("row", "column", "in") if self.storage is Storage.RAM else ()
        return tuple(sorted(range(len(self.dims)), key=lambda axis: (self.dims[axis] not in first, axis)))


def flash(name: str, role: Role, dims: tuple[str, ...], shape: tuple[int, ...]) -> PointSpec:
    """Declare a constant (weight, bias, ...)."""
    return PointSpec(name, role, dims, tuple(shape), True, Storage.FLASH, Lifetime.CONSTANT)


def ram(
    name: str,
    role: Role,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    *,
    signed: bool,
    bound: tuple[float, float] | None = None,
    output: bool = False,
    routed: bool = False,
) -> PointSpec:
    """Declare a computed tensor; ``output`` marks what later layers read."""
    lifetime = Lifetime.OUTPUT if output else Lifetime.LAYER
    return PointSpec(name, role, dims, tuple(shape), signed, Storage.RAM, lifetime, bound, routed)


class Handler:
    """What watches or changes the tensors at points; this base changes nothing and computes in float.

    Subclasses override what they need. ``fixed_point``: whether a LeakyReLU's slope is rounded as on a device.
    """

    fixed_point = False

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        """Return the tensor to use in place of ``value`` (RAM tensors carry a leading batch axis)."""
        return value

    def softmax(self, key: str, logits: Tensor, dim: int, iteration: int) -> Tensor:
        """Coupling coefficients of ``logits`` along ``dim``; ``key`` is the coupling's point."""
        return softmax(logits, dim)

    def squash(self, key: str, capsules: Tensor, dim: int, iteration: int) -> Tensor:
        """Squash of ``capsules`` along ``dim``; ``key`` is the activation's point."""
        return squash(capsules, dim)

    def route(self, layer: str, votes: Tensor, bias: Tensor | None, iterations: int) -> Tensor | None:
        """Activations, float (B, G, D), of the whole routing of layer ``layer``, see :func:`caplet.nn.routing.route`.

        None, the default, runs it step by step, each tensor through its point.
        """
        return None


class Watch(Handler):
    """Shows every tensor to ``see(key, spec, value, iteration)`` and changes nothing."""

    def __init__(self, see: Callable[[str, PointSpec, Tensor, int], object]) -> None:
        self.see = see

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        self.see(key, spec, value, iteration)
        return value
