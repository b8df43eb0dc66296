"""How much to leave to pruning and how much to widths: a choice among measured points, and the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from caplet.jobs.compress.settings import Limits

_LEAST = 0.1
"""A limit of 0 points counts as this much when excesses are compared."""


@dataclass(frozen=True)
class Pruned:
    """A point of the pruning curve: the float model with capsules removed.

    Attributes:
        macs_kept: fraction of the multiply-accumulates that remain, 0..1; 1 is the model as it was.
        macs, parameters: of the pruned model.
        drop: loss of accuracy in percentage points on ``images`` calibration images, after ``steps`` of fine-tuning.
    """

    macs_kept: float
    macs: int
    parameters: int
    drop: float
    images: int
    steps: int


@dataclass(frozen=True)
class Width:
    """A point of the width curve: a network with every tensor at ``bits``.

    Attributes:
        drop: loss of accuracy against the same network in float, in percentage points on ``images`` images.
        macs_kept: how far the network was pruned, as in :class:`Pruned`.
    """

    bits: int
    drop: float
    images: int
    macs_kept: float = 1.0


@dataclass(frozen=True)
class Size:
    """What a pruned model takes at one width: bytes of flash (constants and code) and of RAM (the arena)."""

    flash: int
    ram: int


@dataclass(frozen=True)
class Choice:
    """A pair of points and why.

    Attributes:
        pruned, width: the pair; the width only says what was reckoned with, the search finds widths of its own.
        size: predicted bytes at that width.
        drop: the two losses together, in percentage points; a gain counts as none.
        binding: names of the limits that the pair misses; empty where it keeps to all.
        reasons: sentences for people.
    """

    pruned: Pruned
    width: Width
    size: Size
    drop: float
    binding: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def choose(
    curve: Sequence[Pruned], widths: Sequence[Width], size: Callable[[Pruned, Width], Size], limits: Limits
) -> Choice:
    """The smallest pair whose predicted losses together keep to the limits; the nearest one where no pair does.

    Losses are added as if they were independent, and a gain of one is not spent by the other. Nearest means: fewest
    limits missed, then the least excess over all limits, each relative to its limit.

    Args:
        size: bytes of a pruned model at a width, as the lowered Program says.
    """
    pairs = [(pruned, width, size(pruned, width)) for pruned in curve for width in widths]
    rated = [(pair, _missed(*pair, limits)) for pair in pairs]
    kept = [pair for pair, missed in rated if not missed]
    if kept:
        pruned, width, bytes_ = min(kept, key=lambda pair: (pair[2].flash, pair[0].macs, _drop(pair[0], pair[1])))
        missed: dict[str, float] = {}
    else:
        (pruned, width, bytes_), missed = min(
            rated, key=lambda found: (len(found[1]), sum(found[1].values()), found[0][2].flash)
        )
    reasons = _reasons(curve, widths, pruned, width, bytes_, missed, limits)
    return Choice(pruned, width, bytes_, _drop(pruned, width), tuple(missed), reasons)


def _drop(pruned: Pruned, width: Width) -> float:
    return max(0.0, pruned.drop) + max(0.0, width.drop)


def _missed(pruned: Pruned, width: Width, size: Size, limits: Limits) -> dict[str, float]:
    """By limit that is missed, the excess relative to it."""
    values = {
        "max_drop": (_drop(pruned, width), limits.max_drop),
        "flash": (size.flash, limits.flash),
        "ram": (size.ram, limits.ram),
        "macs": (pruned.macs, limits.macs),
    }
    return {
        name: (value - limit) / max(limit, _LEAST)
        for name, (value, limit) in values.items()
        if limit is not None and value > limit
    }


def _reasons(
    curve: Sequence[Pruned],
    widths: Sequence[Width],
    pruned: Pruned,
    width: Width,
    size: Size,
    missed: dict[str, float],
    limits: Limits,
) -> tuple[str, ...]:
    whole = max(curve, key=lambda point: point.macs)
    lines = []
    for point in curve:
        if point is not whole:
            lines.append(
                f"pruned to {100 * point.macs_kept:.3g} % of the multiply-accumulates, with {point.parameters:,} of"
                f" {whole.parameters:,} parameters: {point.drop:+.2f} points of loss on {point.images:,} calibration"
                f" images after {point.steps} steps of fine-tuning"
            )
    for width_point in widths:
        where = "" if width_point.macs_kept == 1 else f", pruned to {100 * width_point.macs_kept:.3g} %"
        lines.append(f"{width_point.bits} bits everywhere{where}: {width_point.drop:+.2f} points of loss")
    kept, lost = 100 * pruned.macs_kept, max(0.0, pruned.drop)
    share = (
        "no pruning" if pruned is whole else f"pruning to {kept:.3g} % of the multiply-accumulates ({lost:.2f} points)"
    )
    told = (
        f"{share} and {width.bits} bits on average ({max(0.0, width.drop):.2f} points): {size.flash:,} bytes of flash"
    )
    if missed:
        lines.append(f"no pair keeps to {', '.join(missed)}; nearest is {told}")
    else:
        lines.append(f"the smallest pair within {limits.max_drop:g} points and all other limits is {told}")
    return tuple(lines)
