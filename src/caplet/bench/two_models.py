"""Speed of two float models side by side: inference and training, in turns within one run."""

import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from caplet.bench.speed.works import inference, noise, training
from caplet.data.imageset import to_float
from caplet.errors import ConfigError, ModelError
from caplet.jobs.timing import Timed, in_turns, middle_and_ends
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of


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
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        a, b = copy.deepcopy(first), copy.deepcopy(second)
        found = {
            "inference": _compared(_inference(a, settings), _inference(b, settings), settings.turns),
            "training": _compared(_training(a, settings), _training(b, settings), settings.turns),
        }
    finally:
        torch.set_num_threads(threads)
    return {
        "settings": asdict(settings),
        **found,
        "cost": {name: cost_of(model).to_json() for name, model in zip("ab", (first, second), strict=True)},
    }


def _inference(model: CapsNet, settings: BenchSettings) -> Timed:
    images = to_float(noise(model, settings.inference_batch))
    return Timed(settings.inference_batch, inference(model, images))


def _training(model: CapsNet, settings: BenchSettings) -> Timed:
    images = to_float(noise(model, settings.training_batch))
    labels = torch.arange(settings.training_batch) % model.config.classes
    return Timed(settings.training_batch, training(model, images, labels, settings.precision))


def _compared(first: Timed, second: Timed, turns: int) -> dict[str, Any]:
    """Images per second of both, and the ratio of each turn; the faster one works as long as the slower one."""
    speeds = in_turns({"a": first, "b": second}, turns)
    ratios = [b / a for a, b in zip(speeds["a"], speeds["b"], strict=True)]
    return {"a": middle_and_ends(speeds["a"]), "b": middle_and_ends(speeds["b"]), "ratio": middle_and_ends(ratios)}
