"""How fast a model is on this machine, from a few batches: what estimates of minutes rest on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch

from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.nn.precision import mixed
from caplet.train.loss import margin_loss

FORWARD, TRAINED = 100, 32
"""Images per batch, forward and with the backward pass."""


def forward_rate(model: CapsNet, precision: str = "float32") -> float:
    """Images per second forward."""
    images = torch.zeros(FORWARD, *model.config.image)

    def step() -> None:
        with torch.inference_mode(), mixed(model, images.device, precision):
            model.eval()(images)

    return FORWARD / _fastest(step)


def training_rate(model: CapsNet, precision: str = "float32") -> float:
    """Images per second forward and backward, of a copy."""
    model = copy.deepcopy(model).train()
    images = torch.zeros(TRAINED, *model.config.image)
    labels = torch.zeros(TRAINED, dtype=torch.int64)

    def step() -> None:
        with mixed(model, images.device, precision):
            capsules = model(images)
        margin_loss(lengths(capsules.float()), labels).backward()
        model.zero_grad()

    return TRAINED / _fastest(step)


def _fastest(step: Callable[[], None], times: int = 3) -> float:
    """Seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
