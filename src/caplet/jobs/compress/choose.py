"""Which amounts of pruning are measured, which pair of pruning and width is chosen, and what would have to give."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from caplet.jobs.compress.settings import Limits


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
class PairChoice:
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
) -> PairChoice:
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
    return PairChoice(pruned, width, bytes_, _drop(pruned, width), tuple(missed), reasons)


def _drop(pruned: Pruned, width: Width) -> float:
    return max(0.0, pruned.drop) + max(0.0, width.drop)


def _missed(pruned: Pruned, width: Width, size: Size, limits: Limits) -> dict[str, float]:
    """By limit that is missed, the excess relative to it."""
    values = {"max_drop": _drop(pruned, width), "flash": size.flash, "ram": size.ram, "macs": pruned.macs}
    return limits.excess(values)


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
    pruning = (
        "no pruning" if pruned is whole else f"pruning to {kept:.3g} % of the multiply-accumulates ({lost:.2f} points)"
    )
    told = (
        f"{pruning} and {width.bits} bits on average ({max(0.0, width.drop):.2f} points): {size.flash:,} bytes of flash"
    )
    if missed:
        lines.append(f"no pair keeps to {', '.join(missed)}; nearest is {told}")
    else:
        lines.append(f"the smallest pair within {limits.max_drop:g} points and all other limits is {told}")
    return tuple(lines)


RECOVERED = 3.0
"""Points of accuracy that full fine-tuning may win back over the short one at the measured points."""


def next_fraction(probes: Sequence[float], curve: Sequence[Pruned], limits: Limits) -> float | None:
    """The next fraction of the multiply-accumulates to measure, smaller than all before; None where none is worth it.

    Once a point loses more than full fine-tuning may win back, smaller ones cannot be chosen, and only what a limit of
    multiply-accumulates asks for is still measured. That amount is measured whether it is among ``probes`` or not.

    Args:
        probes: fractions that are measured as long as they may be chosen, 0..1.
        curve: what was measured, the whole model first.
    """
    whole, last = curve[0], curve[-1]
    asked = None if limits.macs is None else limits.macs / whole.macs
    ahead = {fraction for fraction in probes if fraction < last.macs_kept}
    if asked is not None and asked < last.macs_kept:
        if last.drop > limits.max_drop + RECOVERED:
            return asked
        ahead.add(asked)
    elif last.drop > limits.max_drop + RECOVERED:
        return None
    return max(ahead, default=None)


class MeasuredAttempt(Protocol):
    """A network measured against the limits."""

    @property
    def values(self) -> dict[str, float]:
        """What was reached, by limit."""

    @property
    def missed(self) -> tuple[str, ...]:
        """Limits that are not kept."""


def outlook(tried: Sequence[MeasuredAttempt], limits: Limits) -> tuple[str, ...]:
    """What would have to give for each network that was found, one line per set of limits missed; none where one fits.

    Of several networks that miss the same limits, the one with the least excess is told. The fewest missed come first.
    """
    if any(not found.missed for found in tried):
        return ()
    allowed = limits.model_dump()

    def excess(found: MeasuredAttempt) -> float:
        return math.fsum(found.values[name] / max(float(allowed[name] or 0), 0.1) for name in found.missed)

    nearest: dict[frozenset[str], MeasuredAttempt] = {}
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
