"""Where no network keeps to all limits: which of them bind, and what would have to give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from caplet.jobs.compress.settings import Limits


class Measured(Protocol):
    """A network measured against the limits."""

    @property
    def values(self) -> dict[str, float]:
        """What was reached, by limit."""

    @property
    def missed(self) -> tuple[str, ...]:
        """Limits that are not kept."""


def outlook(tried: Sequence[Measured], limits: Limits) -> tuple[str, ...]:
    """What would have to give for each network that was found, one line per set of limits missed; none where one fits.

    Of several networks that miss the same limits, the one with the least excess is told. The fewest missed come first.
    """
    if any(not found.missed for found in tried):
        return ()
    allowed = limits.model_dump()

    def excess(found: Measured) -> float:
        return math.fsum(found.values[name] / max(float(allowed[name] or 0), 0.1) for name in found.missed)

    nearest: dict[frozenset[str], Measured] = {}
    for found in sorted(tried, key=excess):
        nearest.setdefault(frozenset(found.missed), found)
    ordered = sorted(nearest.values(), key=lambda found: (len(found.missed), excess(found)))
    return tuple(
        " and ".join(_relaxed(name, found.values[name], allowed[name]) for name in found.missed) for found in ordered
    )


def _relaxed(name: str, found: float, asked: float) -> str:
    """The limit under which a value would have been accepted, rounded so that it still is."""
    if name == "max_drop":
        return f"a loss of {math.ceil(found * 100) / 100:.2f} points instead of {asked:g}"
    if name == "macs":
        return f"{found:,} multiply-accumulates instead of {asked:,}"
    return f"{found:,} bytes of {'flash' if name == 'flash' else 'RAM'} instead of {asked:,}"
