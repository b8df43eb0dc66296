"""Speed of two float models side by side: inference and training, in turns within one run."""

import copy
from typing import Any

import torch

from caplet.bench.settings import BenchSettings
from caplet.bench.speed.works import inference, noise, training
from caplet.data.imageset import to_float
from caplet.errors import ModelError
from caplet.jobs.timing import Timed, in_turns, middle_and_ends
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of


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
        "settings": settings.model_dump(),
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
