"""How fast works are: images per second in turns, and a model's rates from a few batches."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ToolMissing
from caplet.models.base import CapsNet
from caplet.nn.device import mixed
from caplet.nn.functional import lengths
from caplet.program import Program
from caplet.runs.records import SpeedMetrics
from caplet.runtime import NativeModel
from caplet.train.loss import margin_loss


@dataclass(frozen=True)
class Timed:
    """Something to measure: ``work`` goes through ``images`` images."""

    images: int
    work: Callable[[], object]


def in_turns(works: Mapping[str, Timed], turns: int, least: float | None = None) -> dict[str, list[float]]:
    """Images per second of each work in each of ``turns`` turns: A, B, C, A, B, C, ...

    Before the turns each works twice, unmeasured. In a turn a work is repeated until it takes about ``least`` seconds;
    without ``least``, as long as the slowest of them.
    """
    times = {}
    for name, timed in works.items():
        timed.work()
        began = time.perf_counter()
        timed.work()
        times[name] = time.perf_counter() - began
    least = max(times.values()) if least is None else least
    repeats = {name: max(1, math.ceil(least / spent - 0.5)) for name, spent in times.items()}
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, timed in works.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                timed.work()
            speeds[name].append(timed.images * repeats[name] / (time.perf_counter() - began))
    return speeds


def middle_and_ends(values: list[float]) -> dict[str, float]:
    """Median, least and largest.

    >>> middle_and_ends([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.0, 'high': 3.0}
    """
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


FORWARD, TRAINED = 100, 32
"""Images per batch, forward and with the backward pass."""


def forward_rate(model: CapsNet, precision: str = "float32") -> float:
    """Images per second forward."""
    images = torch.zeros(FORWARD, *model.config.image)

    def step() -> None:
        with torch.inference_mode(), mixed(model, images.device, precision):
            model.eval()(images)

    return _best(FORWARD, step)


def training_rate(model: CapsNet, precision: str = "float32") -> float:
    """Images per second forward and backward, of a copy."""
    model = copy.deepcopy(model).train()
    images = torch.zeros(TRAINED, *model.config.image)
    labels = torch.zeros(TRAINED, dtype=torch.int64)

    def step() -> None:
        with mixed(model, images.device, precision):
            capsules = model(images)
        torch.autograd.backward(margin_loss(lengths(capsules.float()), labels))
        model.zero_grad()

    return _best(TRAINED, step)


def _best(images: int, step: Callable[[], None], turns: int = 3) -> float:
    """Images per second of the fastest of a few calls."""
    return max(in_turns({"step": Timed(images, step)}, turns)["step"])


SPEED = "speed.json"
TURNS = 5
LEAST_SECONDS = 0.1
"""Of a turn: the images are gone through as often as that takes."""
BATCH = 64
"""Images per forward pass in PyTorch."""


def measure_speed(
    model: CapsNet, pruned: CapsNet | None, program: Program, images: Tensor, threads: int
) -> SpeedMetrics:
    """Images per second of all sides on ``threads`` threads, in turns, so that other work slows all of them.

    Args:
        pruned: the network that was quantized; None where nothing was pruned.
        images: uint8 (N, C, H, W), all of them once or more often in every turn.

    Returns:
        Of the sides ``float``, ``pruned`` and ``integers``; without a C compiler there are no ``integers``.
    """
    floats, pixels = to_float(images), images.numpy()

    def through(network: CapsNet) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode():
                for part in torch.split(floats, BATCH):
                    network(part)

        return work

    sides: dict[str, Callable[[], object]] = {"float": through(model.eval())}
    if pruned is not None:
        sides["pruned"] = through(pruned.eval())
    try:
        native = NativeModel(program, threads=threads)
        sides["integers"] = lambda: native.run(pixels)
    except ToolMissing:
        pass
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        works = {name: Timed(len(images), work) for name, work in sides.items()}
        rates = in_turns(works, TURNS, LEAST_SECONDS)
    finally:
        torch.set_num_threads(before)
    reference = statistics.median(rates["float"])
    found = {
        name: {**middle_and_ends(values), "times": statistics.median(values) / reference}
        for name, values in rates.items()
    }
    return SpeedMetrics(len(images), threads, TURNS, BATCH, found)
