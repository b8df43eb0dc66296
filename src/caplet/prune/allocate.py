"""What it costs to take units from a group: the loss is measured with parts of it removed, one group at a time.

First-order scores say which unit of a group matters least. They do not say what a group as a whole can do without, as
units which stand in for each other go together. That is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.progress import Progress
from caplet.prune.order import Allocation, removal_order
from caplet.prune.rules import DependencyGroup
from caplet.prune.scores import Loss, Scores, Values
from caplet.prune.structure import Structure
from caplet.prune.surgery import cut

REMOVED = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Fractions of a group at which the loss is measured."""


def measured_prices(
    model: CapsNet,
    structure: Structure,
    scores: Scores,
    groups: Sequence[DependencyGroup],
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> dict[str, Values]:
    """By group, what each removal adds to the mean loss, float64 (size,): the least important unit by ``scores`` first.

    Between the measured fractions the loss is a line; the prices are the slopes of its lower convex hull, and so never
    fall: a group whose loss dips on its way up is not emptied for the dip.

    Args:
        images: uint8 (N, C, H, W), of the calibration split. labels: int64 (N,).
        progress: called with (measurements done, all).
    """
    whole = _mean_loss(model, images, labels, loss, batch_size)
    counts = {group.name: sorted({round(part * group.size) for part in REMOVED} - {0, group.size}) for group in groups}
    everything, done = sum(map(len, counts.values())), 0
    prices: dict[str, Values] = {}
    for group in groups:
        order = removal_order(structure, scores, (group,), Allocation.UNIFORM, {})
        points = [(0, 0.0)]
        for count in counts[group.name]:
            smaller = cut(model, order.selection(count), structure)
            points.append((count, _mean_loss(smaller, images, labels, loss, batch_size) - whole))
            done += 1
            if progress is not None:
                progress(done, everything)
        prices[group.name] = _slopes(points, group.size)
    return prices


def _slopes(points: Sequence[tuple[int, float]], size: int) -> Values:
    """Slopes of the lower convex hull of ``points`` (removed, loss added), for each of ``size`` removals.

    The last slope goes on beyond the last point.

    >>> _slopes([(0, 0.0), (2, 1.0), (4, 0.8), (6, 4.0)], 8).tolist()
    [0.2, 0.2, 0.2, 0.2, 1.6, 1.6, 1.6, 1.6]
    """
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    result = np.zeros(size)
    for first, second in pairwise(hull):
        result[first[0] :] = _slope(first, second)
    return result


def _slope(first: tuple[int, float], second: tuple[int, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


@torch.inference_mode()
def _mean_loss(model: CapsNet, images: Tensor, labels: Tensor, loss: Loss, batch_size: int) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(images), batch_size):
        pixels, right = images[start : start + batch_size], labels[start : start + batch_size]
        total += float(loss(lengths(model(to_float(pixels))), right)) * len(right)
    return total / len(images)
