"""What rounding some points of a model does to it, everything else in float."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ConfigError
from caplet.fixed import FixedFormat, PlanFormat, Rounding
from caplet.models.base import CapsNet, State
from caplet.models.staged import StagedModel
from caplet.nn.functional import lengths
from caplet.nn.points import Handler, PointSpec, Storage
from caplet.quant.measure.evaluator import predict
from caplet.quant.measure.log import MeasurementCache, images_digest
from caplet.quant.plan.plan import rounding_at
from caplet.quant.simulate.fake_quant import point_noise, quantize_carried

Loss = Callable[[Tensor, Tensor], Tensor]
"""(lengths float (B, classes), labels int64 (B,)) -> the mean loss per image, a float scalar."""


class RoundPoints(Handler):
    """A :class:`~caplet.nn.points.Handler` that rounds some points and leaves everything else in float."""

    def __init__(self, formats: Mapping[str, PlanFormat], rounding: Rounding, seed: int = 0) -> None:
        self.formats, self.rounding, self.seed = formats, rounding, seed

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        fmt = self.formats.get(key)
        if fmt is None:
            return value
        rounding, noise = rounding_at(fmt, spec, self.rounding), None
        if rounding is Rounding.STOCHASTIC:
            noise = point_noise(self.seed, key, spec, iteration)
            noise = (noise if spec.storage is Storage.FLASH else noise.unsqueeze(0)).to(value.device)
        if rounding is Rounding.CARRY and isinstance(fmt, FixedFormat):
            rounded = quantize_carried(value, fmt)
        else:
            rounded = fmt.quantize(value, rounding, noise)
        self.rounded(fmt, value, rounded)
        return rounded

    def rounded(self, fmt: PlanFormat, value: Tensor, rounded: Tensor) -> None:
        """Called for every tensor that was rounded."""


class _CountRounding(RoundPoints):
    """Also counts what rounding does at the points: the sums of an :class:`Effect`."""

    signal = noise = 0.0
    saturated = count = 0

    def rounded(self, fmt: PlanFormat, value: Tensor, rounded: Tensor) -> None:
        self.signal += _energy(value)
        self.noise += _energy(rounded - value)
        self.saturated += _saturated(value, fmt)
        self.count += value.numel()


def _energy(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2


def _saturated(value: Tensor, fmt: PlanFormat) -> int:
    margin = fmt.step / 2 if isinstance(fmt, FixedFormat) else fmt.max_value / 2
    return int(((value > fmt.max_value + margin) | (value < fmt.min_value - margin)).sum())


def decibels(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB of two powers; infinite without noise, minus infinite without a signal.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


@dataclass(frozen=True)
class Effect:
    """The effect of rounding some points, measured on n images; sums, so that effects of disjoint images add up.

    Attributes:
        n: images.
        signal, noise: sums of squares at the rounded points: of the float values, of what rounding changed.
        saturated, count: values there that saturated, and values in all (every routing iteration, every image).
        output_signal, output_noise: sums of squares of the class capsules, and of their change.
        length_noise: sum of squares of the change of the class capsules' lengths.
        loss: change of the loss, summed over images (positive is worse); 0 where no loss was asked for.
        n10, n01: images that only the float model, only the rounded model classifies correctly.
    """

    n: int = 0
    signal: float = 0.0
    noise: float = 0.0
    saturated: int = 0
    count: int = 0
    output_signal: float = 0.0
    output_noise: float = 0.0
    length_noise: float = 0.0
    loss: float = 0.0
    n10: int = 0
    n01: int = 0

    def __add__(self, other: "Effect") -> "Effect":
        return Effect(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def figures(self) -> dict[str, float]:
        """Signal-to-quantization-noise ratios in dB at the points and at the class capsules; changes of the loss per
        image (positive is worse) and of the accuracy in percentage points (negative is worse); fraction saturated."""
        return {
            "sqnr": decibels(self.signal, self.noise),
            "output_sqnr": decibels(self.output_signal, self.output_noise),
            "loss_change": self.loss / self.n,
            "accuracy_change": 100 * (self.n01 - self.n10) / self.n,
            "saturation": self.saturated / self.count if self.count else 0.0,
        }

    def to_json(self) -> dict[str, Any]:
        """The sums as plain data."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Effect":
        """Read :meth:`to_json`. Raises KeyError or TypeError when the data are not such an object."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class _Batch:
    """The float model on one batch: the input of every stage and what comes out."""

    states: tuple[State, ...]
    capsules: Tensor
    lengths: Tensor
    labels: Tensor
    correct: NDArray[np.bool_]


class Perturber:
    """The float model on some images, ready to be asked what rounding some of its points does.

    Outputs of all stages are kept in float32, so an answer takes only the stages from the first rounded point on. Use
    a few hundred images.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,); None where only :meth:`noise` is asked for.
        loss: for :attr:`Effect.loss`; None leaves it 0.
        batch_size: images per forward pass.
        cache: answers of :meth:`noise` about the same model; None for none.

    Attributes:
        cache: the answers of :meth:`noise`.
        spent: cost of everything computed, in passes of one image through the whole model (multiply-accumulates).

    Raises:
        ConfigError: no images, or another number of labels. ModelError: images of another size.
    """

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        loss: Loss | None = None,
        batch_size: int = 64,
        cache: MeasurementCache | None = None,
    ) -> None:
        labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        if len(images) == 0 or len(images) != len(labels):
            raise ConfigError(f"sensitivity: {len(images)} images and {len(labels)} labels; give as many, 1 or more")
        model.check_images(images)
        self.n = len(images)
        self._loss, self._classes = loss, model.config.classes
        self._staged = StagedModel(model)
        self._images, self._labels, self._batch_size = images, labels, batch_size
        self.cache, self._digest = cache or MeasurementCache(None, "effects", {}), images_digest(images)
        self.spent, self._begun = 0.0, False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_batches"}  # made again where it is asked

    @cached_property
    def _batches(self) -> list[_Batch]:
        """The float model on all images, from the first measurement on."""
        batches = zip(*(torch.split(x, self._batch_size) for x in (self._images, self._labels)), strict=True)
        return [self._reference(to_float(images, self._staged.model.device), labels) for images, labels in batches]

    def effect(self, formats: Mapping[str, PlanFormat], rounding: Rounding = Rounding.NEAREST, seed: int = 0) -> Effect:
        """What rounding the points of ``formats``, all others in float, does. Raises KeyError for an unknown point."""
        first = self._staged.first_stage(formats)
        if first == len(self._staged):
            return Effect(self.n)
        total = sum((self._one(batch, first, formats, rounding, seed) for batch in self._batches), Effect())
        self._spend(first)
        return total

    def _spend(self, first: int) -> None:
        self.spent += 0.0 if self._begun else self.n  # the float model
        self.spent += self.n * float(self._staged.tail_cost[first])
        self._begun = True

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over what a copy of this measured (:meth:`caplet.quant.measure.log.MeasurementCache.news`)."""
        for row in rows:
            if self.cache.learn(row) and (formats := row["asked"].get("formats")):
                self._spend(self._staged.first_stage(formats))

    def noise(self, formats: Mapping[str, PlanFormat], rounding: Rounding = Rounding.NEAREST, seed: int = 0) -> float:
        """Mean squared change of the class capsules' lengths (over images and classes), as :meth:`effect` counts it."""
        asked = {
            "formats": {key: fmt.to_json() for key, fmt in formats.items()},
            "rounding": str(rounding),
            "seed": seed,
            "images": self._digest,
        }

        def measure() -> float:
            return self.effect(formats, rounding, seed).length_noise / self.n / self._classes

        return self.cache.answer(asked, measure)

    def _one(
        self, batch: _Batch, first: int, formats: Mapping[str, PlanFormat], rounding: Rounding, seed: int
    ) -> Effect:
        handler = _CountRounding(formats, rounding, seed)
        with torch.inference_mode():
            capsules = self._staged.run_from(first, batch.states[first], handler)[0]
            size = lengths(capsules)
            correct = (predict(capsules.cpu()) == batch.labels).numpy()
            loss = 0.0
            if self._loss is not None:
                labels = batch.labels.to(size.device)
                change = self._loss(size, labels) - self._loss(batch.lengths, labels)
                loss = float(change) * len(correct)
            return Effect(
                len(correct),
                handler.signal,
                handler.noise,
                handler.saturated,
                handler.count,
                _energy(batch.capsules),
                _energy(capsules - batch.capsules),
                _energy(size - batch.lengths),
                loss,
                int((batch.correct & ~correct).sum()),
                int((~batch.correct & correct).sum()),
            )

    def _reference(self, images: Tensor, labels: Tensor) -> _Batch:
        with torch.inference_mode():
            states, capsules = self._staged.float_states(images)
            correct = (predict(capsules.cpu()) == labels).numpy()
            return _Batch(states, capsules, lengths(capsules), labels, correct)
