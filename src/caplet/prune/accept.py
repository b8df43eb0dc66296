"""Accept or reject a pruned model by the images that only one of the two models classifies correctly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ConfigError
from caplet.metrics import Paired, paired

CERTAINTY = 1.5
"""Intervals are widened by this factor over 95 % (to 3 standard deviations): they are looked at many times."""
LEAST_DISCORDANT = 10
"""Images that exactly one of the models has right before an early decision: below, intervals are not to be trusted."""


@dataclass(frozen=True)
class Verdict:
    """A decision.

    Attributes:
        accepted: whether the loss of accuracy is at most the one allowed.
        pair: the original first, the pruned model second, on the images looked at.
        early: whether it fell before all images were looked at.
    """

    accepted: bool
    pair: Paired
    early: bool


def accept(original: NDArray[np.bool_], pruned: Iterable[NDArray[np.bool_]], allowed: float) -> Verdict:
    """Compare a pruned model with the original, image by image, and stop as soon as the answer is clear.

    After every batch: rejected where the interval of the loss lies above ``allowed``, accepted where it lies below. On
    all images the measured loss itself decides.

    Args:
        original: whether the original is right, bool (N,).
        pruned: the same of the pruned model, batch by batch, in the same order.
        allowed: loss of accuracy in percentage points.

    Raises:
        ConfigError: ``pruned`` has another number of images.
    """
    seen: list[NDArray[np.bool_]] = []
    count = 0
    pair: Paired | None = None
    for hits in pruned:
        seen.append(hits)
        count += len(hits)
        if count > len(original):
            break
        pair = paired(original[:count], np.concatenate(seen))
        if count == len(original):
            return Verdict(pair.loss <= allowed, pair, False)
        reach = CERTAINTY * (pair.high - pair.low) / 2
        if pair.n10 + pair.n01 >= LEAST_DISCORDANT and abs(pair.loss - allowed) > reach:
            return Verdict(pair.loss <= allowed, pair, True)
    raise ConfigError(f"accept: {count} answers of the pruned model for {len(original)} of the original")
