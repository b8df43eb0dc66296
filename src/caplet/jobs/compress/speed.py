"""Images per second of the float model, the pruned one and the integers, side by side."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ToolMissing
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.runtime import NativeModel

SPEED = "speed.json"
TURNS = 5
LEAST_SECONDS = 0.1
"""Of a turn: the images are gone through as often as that takes."""
BATCH = 64
"""Images per forward pass in PyTorch."""


def measure_speed(
    model: CapsNet, pruned: CapsNet | None, program: Program, images: Tensor, threads: int
) -> dict[str, Any]:
    """Images per second of all sides on ``threads`` threads, in turns, so that other work slows all of them.

    Args:
        pruned: the network that was quantized; None where nothing was pruned.
        images: uint8 (N, C, H, W), all of them once or more often in every turn.

    Returns:
        JSON values: ``images``, ``threads``, ``turns``, ``torch_batch``, and ``sides``: by name (``float``, ``pruned``,
        ``integers``) images per second (``median``, ``low``, ``high``) and ``times`` faster than ``float``, by medians.
        Without a C compiler there are no ``integers``.
    """
    floats, pixels = to_float(images), images.numpy()

    def through(network: CapsNet) -> Callable[[], object]:
        def work() -> None:
            with torch.inference_mode():
                for part in floats.split(BATCH):
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
        rates = _turns(sides, len(images))
    finally:
        torch.set_num_threads(before)
    reference = statistics.median(rates["float"])
    found = {
        name: {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "times": statistics.median(values) / reference,
        }
        for name, values in rates.items()
    }
    return {"images": len(images), "threads": threads, "turns": TURNS, "torch_batch": BATCH, "sides": found}


def _turns(sides: dict[str, Callable[[], object]], images: int) -> dict[str, list[float]]:
    """Images per second of every side and turn; each side works twice unmeasured before."""
    repeats = {}
    for name, work in sides.items():
        work()
        began = time.perf_counter()
        work()
        repeats[name] = math.ceil(LEAST_SECONDS / (time.perf_counter() - began))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, work in sides.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            rates[name].append(images * repeats[name] / (time.perf_counter() - began))
    return rates
