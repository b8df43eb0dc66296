"""Images per second of several works, measured in turns: a machine that is busy with other things slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.0, 'high': 3.0}
    """
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
