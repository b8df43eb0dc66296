"""The base of every layer: declared points, the tap through which their tensors pass, and who watches them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.functional import softmax, squash
from caplet.nn.points import Handler, PointSpec


class Layer(nn.Module):
    """A layer with a name and declared points.

    Subclasses set ``self.specs`` (in declaration order) at the end of their ``__init__`` and pass every declared
    tensor through :meth:`tap` in ``forward``.

    Args:
        name: unique within the model, e.g. ``"block1.l1"``; point keys are ``"<name>.<point>"``.
    """

    votes_at_once: int | None = None  # images of which routing keeps votes; None for all (caplet.nn.routing.in_parts)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.handler: Handler | None = None
        self.specs: dict[str, PointSpec] = {}

    def declare(self, *specs: PointSpec) -> None:
        """Declare the layer's points; a second declaration of a name raises."""
        for spec in specs:
            if spec.name in self.specs:
                raise ValueError(f"{self.name}: point {spec.name!r} declared twice")
            self.specs[spec.name] = spec

    def points(self) -> dict[str, PointSpec]:
        """The declared points by full key, in declaration order."""
        return {f"{self.name}.{spec.name}": spec for spec in self.specs.values()}

    def tap(self, point: str, value: Tensor, iteration: int = 0) -> Tensor:
        """Pass ``value`` through the point ``point``; returns it unchanged when no handler is attached."""
        if self.handler is None:
            return value
        return self.handler.tap(f"{self.name}.{point}", self.specs[point], value, iteration)

    def softmax(self, logits: Tensor, dim: int, iteration: int = 0) -> Tensor:
        """Coupling coefficients along ``dim``, through the ``coupling`` point."""
        if self.handler is None:
            return softmax(logits, dim)
        value = self.handler.softmax(f"{self.name}.coupling", logits, dim, iteration)
        return self.tap("coupling", value, iteration)

    def squash(self, capsules: Tensor, dim: int, iteration: int = 0) -> Tensor:
        """Squash along ``dim``, through the ``activation`` point."""
        if self.handler is None:
            return squash(capsules, dim)
        value = self.handler.squash(f"{self.name}.activation", capsules, dim, iteration)
        return self.tap("activation", value, iteration)


@contextmanager
def handling(layers: Iterable[Layer], handler: Handler) -> Iterator[None]:
    """Attach ``handler`` to ``layers`` for the duration of a ``with`` block; restores what was there before."""
    attached = [(layer, layer.handler) for layer in layers]
    for layer, _ in attached:
        layer.handler = handler
    try:
        yield
    finally:
        for layer, previous in attached:
            layer.handler = previous


Padding = int | Literal["same"]
"""Zeros around a map, see :class:`Window`."""


class Window(Layer):
    """A layer that slides a square window over maps (..., H, W).

    Args:
        padding: zeros on every side, or ``"same"`` as TensorFlow has it: as many positions as strides begin inside the
            map, and where the zeros that this takes are odd in number, one more after the map than before it.

    Attributes:
        kernel, stride, padding: of the window, in rows and in columns; padding is what lies before the map.
        extra: how many more rows and columns of zeros lie after the map than before it.
        positions: rows and columns of the output.

    Raises:
        ModelError: the padded input is smaller than the kernel, or ``"same"`` begins at another place in rows than in
            columns; the message names the layer and the sizes.
    """

    def __init__(self, name: str, in_shape: tuple[int, ...], kernel: int, stride: int, padding: Padding) -> None:
        super().__init__(name)
        self.in_shape = in_shape
        self.extra = (0, 0)
        if padding == "same":
            zeros = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in in_shape[-2:]]
            padding = zeros[0] // 2
            self.extra = (zeros[0] % 2, zeros[1] % 2)
            if zeros[1] // 2 != padding:
                found = f"stride {stride} begins at other places in rows than in columns of its {in_shape[-2:]} input"
                raise ModelError(f"layer {name}: 'same' padding with {found}; use square images")
        self.kernel, self.stride, self.padding = kernel, stride, padding
        sizes = (size + more + 2 * padding for size, more in zip(in_shape[-2:], self.extra, strict=True))
        rows, columns = ((size - kernel) // stride + 1 for size in sizes)
        self.positions = (rows, columns)
        if min(self.positions) < 1:
            found = f"{min(in_shape[-2:])}x{min(in_shape[-2:])} input (padding {padding})"
            raise ModelError(f"layer {name}: its {kernel}x{kernel} kernel does not fit its {found}; use a larger image")

    def extended(self, x: Tensor) -> Tensor:
        """The input (..., H, W) with the ``extra`` zeros after it: what is left to add is ``padding`` on every side."""
        return F.pad(x, (0, self.extra[1], 0, self.extra[0])) if any(self.extra) else x
