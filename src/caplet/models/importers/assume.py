"""What a file leaves open about its network: what is assumed then, and what the user states instead.

A file of weights says nothing of activations, routing iterations or strides, and no checkpoint says how images were
prepared. Readers ask :class:`Assumptions` for such values; what they got by default is told to the user.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from caplet.errors import ModelError, suggest
from caplet.models.assemble import ImageSize


def _slope(text: str) -> float:
    """Of the negative half: 0 for ReLU."""
    kind, _, slope = text.partition(":")
    if (kind, slope) != ("relu", "") and not (kind == "leaky_relu" and 0 < float(slope) < 1):
        raise ValueError
    return float(slope or 0)


def _numbers(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    def read(text: str) -> tuple[int, ...]:
        values = tuple(map(int, text.split(",")))
        if not low <= min(values) <= max(values) <= high:
            raise ValueError
        return values

    return read


def _mean_and_std(text: str) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([float(word) for word in text.split(",")], dtype=torch.float64).chunk(2)
    if len(mean) != len(std) or not (mean.abs().max() <= 1e6 and 1e-12 <= std.min() <= std.max() <= 1e6):
        raise ValueError
    return mean, std


class Rule(NamedTuple):
    """A value that files leave open: the rule for it in words, what is assumed, and text -> value or ValueError."""

    words: str
    default: str
    read: Callable[[str], Any]


RULES = {
    "activation": Rule("relu, or leaky_relu:SLOPE with a slope above 0 and below 1", "relu", _slope),
    "iterations": Rule("routing iterations, 1 to 100", "3", lambda text: _numbers(1, 100)(str(int(text)))[0]),
    "padding": Rule("valid or same, as Keras calls it", "valid", ("valid", "same").index),
    "strides": Rule("one stride for each convolution, such as 1,2", "", _numbers(1, 64)),
    "channels": Rule("rgb or bgr", "rgb", ("rgb", "bgr").index),
    "normalize": Rule("MEAN,STD of pixels / 255, or first each channel's mean, then its std", "0,1", _mean_and_std),
}
"""What a user can state, by name."""


class Assumptions:
    """What is stated about one file, and what was assumed because nothing states it.

    Args:
        stated: name of :data:`RULES` -> value, as text or, from Python, as a number or a sequence of numbers.
        where: the file's path, with which errors start.
        size: (rows, columns) of the images; None to infer them.

    Attributes:
        assumed: by name, what nothing states.
        read: a line on each thing that was left out or converted.

    Raises:
        ModelError: a name that is not known.
    """

    def __init__(self, stated: Mapping[str, Any], where: str, size: ImageSize | None) -> None:
        lists, self.size = (list, tuple), (size, size) if isinstance(size, int) else size
        self.stated = {k: ",".join(map(str, v)) if isinstance(v, lists) else str(v) for k, v in stated.items()}
        self.where, self.assumed, self.read, self._open = where, dict[str, str](), list[str](), list[str]()
        for name in stated:
            if name not in RULES:
                raise ModelError(f"{where}: cannot assume {name!r}{suggest(name, RULES)} (known: {', '.join(RULES)})")

    def take(self, name: str, default: str = "") -> Any:
        """The value of what the file leaves open. Raises ModelError for one against the rule."""
        self._open.append(name)
        if name not in self.stated:
            self.assumed[name] = default or RULES[name].default
        text = self.stated.get(name) or self.assumed[name]
        try:
            return RULES[name].read(text)
        except ValueError:
            raise ModelError(f"{self.where}: cannot assume {name}={text}; the rule is {RULES[name].words}") from None

    def notes(self) -> dict[str, Any]:
        """What was assumed, stated and read. Raises ModelError for a statement on what no reader asked for."""
        if wrong := [name for name in self.stated if name not in self._open]:
            known = f"the file, or its kind of network, settles it; open are {', '.join(self._open)}"
            raise ModelError(f"{self.where}: cannot assume {wrong[0]}: {known}")
        return {"assumed": self.assumed, "stated": self.stated, "read": self.read}

    def _normalisation(self, channels: int) -> Iterator[Tensor]:
        """Mean and std, float64 (channels,) each."""
        for values in self.take("normalize"):
            if len(values) not in (1, channels):
                stated = self.stated["normalize"]
                raise ModelError(f"{self.where}: cannot assume normalize={stated}: its images have {channels} channels")
            yield values.expand(channels)

    def prepared(self, images: Tensor) -> Tensor:
        """RGB images / 255, float (B, C, H, W), as the network takes them. Raises ModelError: means of others."""
        mean, std = (values.to(images.dtype).view(-1, 1, 1) for values in self._normalisation(images.shape[1]))
        ordered: Tensor = (images.flip(1) if images.shape[1] == 3 and self.take("channels") else images) - mean
        return ordered.div(std)

    def fold(self, tensors: dict[str, Tensor], first: str, *, padded: bool = False) -> dict[str, tuple[float, ...]]:
        """Make a network for RGB pixels / 255 out of one for prepared images, by the weights of its ``first`` layer.

        Args:
            padded: whether the layer sees zeros around the image: means, or any without a bias, do not fold exactly.

        Returns:
            Settings of the network: mean and std of its input layer, where they were not folded.

        Raises:
            ModelError: values for another number of channels.
        """
        weight, bias = tensors[f"{first}.weight"].double(), tensors.get(f"{first}.bias")
        channels, (mean, std) = weight.shape[1], self._normalisation(weight.shape[1])
        if channels in (1, 3) and self.take("channels"):
            weight, mean, std = weight.flip(1), mean.flip(0), std.flip(0)
        if channels == 1:
            self.assumed.pop("channels", None)  # gray has no order
        left = bool(mean.any()) and (padded or bias is None)
        if not left:
            weight = weight / std.view(-1, 1, 1)
            if bias is not None:
                tensors[f"{first}.bias"] = (bias.double() - (weight * mean.view(-1, 1, 1)).sum((1, 2, 3))).float()
        tensors[f"{first}.weight"] = weight.float()
        return {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())} if left else {}
