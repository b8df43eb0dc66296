"""Which amounts of pruning are measured, and what is said where no network keeps to all limits."""

import pytest

from caplet.jobs.compress.choose import RECOVERED, next_fraction, outlook
from caplet.jobs.compress.settings import Limits
from caplet.runs.records import Pruned

PROBES = (0.5, 0.25, 0.1)


def curve(*points: tuple[float, float]) -> list[Pruned]:
    """Points of (fraction kept, loss) after the whole model of 1,000 multiply-accumulates."""
    return [Pruned(kept, round(1000 * kept), 1, drop, 100, 1) for kept, drop in ((1.0, 0.0), *points)]


@pytest.mark.parametrize(
    ("points", "macs", "expected"),
    [
        ((), None, 0.5),
        (((0.48, 0.1),), None, 0.25),
        (((0.24, 0.1),), None, 0.1),
        (((0.1, 0.1),), None, None),
        (((0.48, 0.3 + RECOVERED + 0.1),), None, None),
        ((), 700, 0.7),
        (((0.69, 0.0),), 700, 0.5),
        (((0.48, 9.0),), 300, 0.3),
        (((0.48, 9.0), (0.29, 20.0)), 300, None),
        (((0.24, 0.1),), 30, 0.1),
        (((0.1, 0.1),), 30, 0.03),
        ((), 2000, 0.5),
    ],
)
def test_the_next_amount(points: tuple[tuple[float, float], ...], macs: int | None, expected: float | None) -> None:
    assert next_fraction(PROBES, curve(*points), Limits(max_drop=0.3, macs=macs)) == expected


def found(max_drop: float, flash: int) -> dict[str, float]:
    return {"max_drop": max_drop, "flash": flash, "ram": 10, "macs": 10}


def test_what_would_have_to_give() -> None:
    limits = Limits(max_drop=0.5, flash=1000)
    tried = [
        found(2.0, 1100),
        found(0.4, 3000),
        found(0.4, 2000),
        found(1.231, 900),
    ]
    assert outlook(tried, limits) == (
        "2,000 bytes of flash instead of 1,000",
        "a loss of 1.24 points instead of 0.5",
        "a loss of 2.00 points instead of 0.5 and 1,100 bytes of flash instead of 1,000",
    )
    assert outlook([*tried, found(0.1, 10)], limits) == ()
