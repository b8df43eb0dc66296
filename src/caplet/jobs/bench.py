"""Speed of two float models side by side: inference and training, in turns within one run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from caplet.errors import ConfigError, ModelError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.nn.memory import keep_freed_memory
from caplet.prune.cost import cost_of
from caplet.train.loss import margin_loss
from caplet.train.precision import mixed


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Attributes:
        threads: CPU threads.
        inference_batch, training_batch: images per forward pass, and per step (forward, backward, Adam).
        turns: how often the models take turns; medians over the turns are reported, and the spread.
        precision: of training; inference is float32.

    Raises:
        ConfigError: a number below 1.
    """

    threads: int = 1
    inference_batch: int = 100
    training_batch: int = 32
    turns: int = 7
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("threads", "inference_batch", "training_batch", "turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bench: {name} is {getattr(self, name)}; the rule is at least 1")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"bench: precision is {self.precision!r}; the rule is float32 or bfloat16")


def bench(first: CapsNet, second: CapsNet, settings: BenchSettings | None = None) -> dict[str, Any]:
    """Images per second of two models that take the same images, measured in turns: A, B, A, B, ...

    So that a machine that is busy with other work, or clocks down, slows both. Pixels are random: speed does not depend
    on them. The models are not changed.

    Returns:
        JSON values: ``inference`` and ``training``, each with images per second of ``a`` and ``b`` (``median``,
        ``low``, ``high``) and ``ratio`` (b over a, of each turn); ``cost`` of both.

    Raises:
        ModelError: the models take different images.
    """
    settings = settings or BenchSettings()
    if first.config.image != second.config.image:
        shapes = [("x".join(map(str, model.config.image))) for model in (first, second)]
        raise ModelError(f"bench: the models take images of {shapes[0]} and {shapes[1]}; give two for the same images")
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        models = [copy.deepcopy(model) for model in (first, second)]
        inference = _turns([_inference(model, settings) for model in models], settings.inference_batch, settings.turns)
        training = _turns([_training(model, settings) for model in models], settings.training_batch, settings.turns)
    finally:
        torch.set_num_threads(threads)
    return {
        "settings": asdict(settings),
        "inference": inference,
        "training": training,
        "cost": {name: cost_of(model).to_json() for name, model in zip("ab", (first, second), strict=True)},
    }


def _images(model: CapsNet, count: int) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand((count, *model.config.image), generator=draws)
    return images.to(memory_format=torch.channels_last)


def _inference(model: CapsNet, settings: BenchSettings) -> Callable[[], None]:
    images = _images(model, settings.inference_batch)
    model.eval()

    def work() -> None:
        with torch.inference_mode():
            model(images)

    return work


def _training(model: CapsNet, settings: BenchSettings) -> Callable[[], None]:
    images = _images(model, settings.training_batch)
    labels = torch.arange(settings.training_batch) % model.config.classes
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def work() -> None:
        model.train()
        with mixed(model, images.device, settings.precision):
            capsules = model(images)
        loss = margin_loss(lengths(capsules.float()), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return work


def _turns(works: list[Callable[[], None]], images: int, turns: int) -> dict[str, Any]:
    """Images per second of each, in turns. Before them each works twice unmeasured; the faster one works as long."""
    times = []
    for work in works:
        work()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    repeats = [max(1, round(max(times) / spent)) for spent in times]
    speeds: list[list[float]] = [[], []]
    for _ in range(turns):
        for index, work in enumerate(works):
            began = time.perf_counter()
            for _ in range(repeats[index]):
                work()
            speeds[index].append(images * repeats[index] / (time.perf_counter() - began))
    ratios = [b / a for a, b in zip(*speeds, strict=True)]
    return {"a": _spread(speeds[0]), "b": _spread(speeds[1]), "ratio": _spread(ratios)}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
