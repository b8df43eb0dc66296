"""What every model is: a sequence of stages over a small state of tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from torch import Tensor, nn

from caplet.errors import ModelError
from caplet.nn.layer import Layer, Padding, handling
from caplet.nn.points import Handler, Lifetime, PointSpec
from caplet.settings import Side, Size

State = tuple[Tensor, ...]
Means = tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] | None
LARGEST_VALUE = 2.0**64
"""No weight reaches it in magnitude; sums of their products stay far from the largest float32."""


class FrozenModel(BaseModel):
    """Settings that do not change and refuse unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(FrozenModel):
    """Settings of a model: everything needed to build it again, JSON-able, immutable.

    Attributes:
        image: (channels, rows, columns) of the input.
        classes: number of classes.
    """

    image: tuple[Side, Side, Side] = (1, 28, 28)
    classes: Size = 10

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(values)
        except ValidationError as error:
            first = error.errors()[0]
            where, family = ".".join(map(str, first["loc"])), cls.__name__.removesuffix("CapsConfig").lower()
            text = f"model {family}: setting {where!r}: {first['msg']} (found {first['input']!r:.100})"
            raise ModelError(text) from None


@dataclass(frozen=True)
class Stage:
    """One block of a model: the unit of width groups and of re-evaluation in searches.

    Attributes:
        name: the block's name; its point keys start with it (the ``input`` stage holds ``input.image``).
        run: state in, state out.
        layers: the layers that ``run`` uses, in order of execution.
        outputs: the point key that produced each tensor of the output state.
        wiring: by layer name, the point keys whose tensors the layer reads, in order. Lowering follows it.
    """

    name: str
    run: Callable[[State], State]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    wiring: Mapping[str, tuple[str, ...]]


def layer_stage(layer: Layer, sources: tuple[str, ...] = (), read: Callable[[State], Tensor] = itemgetter(0)) -> Stage:
    """A stage of one layer.

    Args:
        sources: the point keys that the layer reads.
        read: the layer's input from the stage's; the first tensor by default.
    """
    (output,) = (key for key, spec in layer.points().items() if spec.lifetime is Lifetime.OUTPUT)
    return Stage(layer.name, lambda state: (layer(read(state)),), (layer,), (output,), {layer.name: sources})


class CapsNet(nn.Module, ABC):
    """A capsule network: images float (B, C, H, W) in [0, 1] -> class capsules float (B, classes, D).

    The predicted class is the longest class capsule (the first one on a tie).

    Attributes:
        family: the name under which the registry knows the class.
        settings: the class of its settings.
        config: the settings it was built from.
        notes: JSON values that stand in the model's file, such as what it was trained on; of an imported one also what
            was ``assumed`` and ``stated``, by name, and a line on each thing that was ``read`` otherwise.
    """

    family: str
    settings: type[ModelConfig]
    config: ModelConfig
    notes: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and so where it computes."""
        return next(self.parameters()).device

    @property
    def assumed(self) -> str:
        """What was assumed, left out and converted of an imported model, in words for the user; empty for nothing."""
        values = ", ".join(f"{name}={value}" for name, value in self.notes.get("assumed", {}).items())
        text = f"{values}, for the file does not say; state what differs with --assume NAME=VALUE or --image-size"
        return "; ".join([*([text] if values else []), *self.notes.get("read", ())])

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The model's stages in order; the first is ``input``, the last gives the class capsules."""

    def forward(self, images: Tensor, first: int = 0) -> Tensor:
        """The class capsules of images; or, of what stage ``first`` - 1 gives, those of the stages from there on."""
        state: State = (images,)
        for stage in self.stages()[first:]:
            state = stage.run(state)
        return state[0]

    def layers(self) -> Iterator[Layer]:
        """All layers in order of execution."""
        for stage in self.stages():
            yield from stage.layers

    def points(self) -> dict[str, PointSpec]:
        """Every declared point by key, in order of execution."""
        return {key: spec for layer in self.layers() for key, spec in layer.points().items()}

    def handle(self, handler: Handler) -> AbstractContextManager[None]:
        """Context manager: attach ``handler`` to every layer of the model."""
        return handling(list(self.layers()), handler)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in their order; empty where the model's file has none."""
        found = self.notes.get("classes")
        known = isinstance(found, list) and [*map(type, found)] == [str] * self.config.classes
        return tuple(found or ()) if known else ()

    def groups(self) -> tuple[str, ...]:
        """Names of the width groups: every stage but the input."""
        return tuple(stage.name for stage in self.stages()[1:])

    def resized(self, sizes: Mapping[str, int], places: Mapping[str, tuple[int, ...] | None]) -> ModelConfig:
        """The settings of this model with other sizes, for pruning.

        Args:
            sizes: how many units every space of :mod:`caplet.prune.rules` keeps, by its name (``"primary.types"``).
            places: by space of single capsules, those that vote (None for all that there are).

        Raises:
            ModelError: the family's settings cannot say other sizes.
        """
        raise ModelError(f"model family {self.family}: it cannot be pruned, for its settings cannot say other sizes")

    def folded(self) -> "CapsNet":
        """The model with batch norms taken into the layers that read them; itself where there is nothing to take."""
        return self

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters())

    def freeze_backbone(self, last: str | None = None) -> int:
        """From now on the CNN under the capsules is not trained, or not up to its block ``last``.

        Returns:
            How many stages do not change any more.

        Raises:
            ModelError: there is no CNN, or no such block.
        """
        raise ModelError(f"model {self.family}: no backbone to freeze; leave freeze out, or choose a model on a CNN")

    def check_images(self, images: Tensor) -> None:
        """Raise :class:`ModelError` unless ``images`` is (B, C, H, W) of the model's size."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.config.image:
            expected = "x".join(map(str, self.config.image))
            found = "x".join(map(str, images.shape[1:] if images.ndim == 4 else images.shape))
            raise ModelError(
                f"model {self.family}: it takes {expected} images (channels x rows x columns), got {found}; resize them"
                " (--size, --channels), or give the size (--image-size) where the model's file leaves it open"
            )


def check_image_size(family: str, image: tuple[int, int, int], convs: Sequence[tuple[str, int, int, Padding]]) -> None:
    """Raise :class:`ModelError` where a chain of convolutions runs out of pixels.

    The message names the first layer that does not fit and the smallest square image that every layer fits.

    Args:
        image: (channels, rows, columns).
        convs: (layer, kernel, stride, padding) in order.
    """
    rows, columns = image[1:]
    # What a kernel needs of its input: with "same" padding one pixel, and the sizes then come out as for a 1x1 kernel.
    needs = [1 if padding == "same" else kernel - 2 * padding for _, kernel, _, padding in convs]
    for (name, kernel, stride, _), need in zip(convs, needs, strict=True):
        if min(rows, columns) < need:
            smallest = 1
            for (_, _, s, _), k in zip(reversed(convs), reversed(needs), strict=True):
                smallest = max((smallest - 1) * s + k, 1)
            raise ModelError(
                f"model {family}: layer {name}: its {kernel}x{kernel} kernel does not fit its {rows}x{columns} input;"
                f" the smallest image this network works for is {smallest}x{smallest}: resize with --size"
            )
        rows, columns = (rows - need) // stride + 1, (columns - need) // stride + 1


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise :class:`ModelError` naming the first tensor with a NaN, an infinity or a value beyond 2**64.

    Args:
        tensors: by the name to show: the stored name of a model's tensor, or its name in the file that is read.
        where: what the error starts with.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool((good := tensor.abs() < LARGEST_VALUE).all()):
            what = "not finite (NaN or infinity)" if not bool(torch.isfinite(tensor).all()) else "beyond 2**64"
            count = f"{int((~good).sum())} of {tensor.numel()}"
            raise ModelError(f"{where}: {count} values of {name} are {what}; the training that made them diverged")
