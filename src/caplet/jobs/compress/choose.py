"""Which amounts of pruning are measured, which pair of pruning and width is chosen, and what would have to give."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from caplet.jobs.compress.settings import Limits
from caplet.runs.records import Pruned, Width


@dataclass(frozen=True)
class Size:
    """What a pruned model takes at one width: bytes of flash (constants and code) and of RAM (the arena)."""

    flash: int
    ram: int


@dataclass(frozen=True)
class Pair:
    """An amount of pruning and a width; the width only says what is reckoned with, the search finds its own.

    Attributes:
        size: predicted bytes at that width.
    """

    pruned: Pruned
    width: Width
    size: Size

    @property
    def drop(self) -> float:
        """The two losses together, in percentage points, as if they were independent; a gain counts as none."""
        return max(0.0, self.pruned.drop) + max(0.0, self.width.drop)

    @property
    def values(self) -> dict[str, float]:
        """What is predicted, by the name of its limit."""
        return {"max_drop": self.drop, "flash": self.size.flash, "ram": self.size.ram, "macs": self.pruned.macs}


@dataclass(frozen=True)
class PairChoice:
    """The pair chosen and why.

    Attributes:
        pairs: all that there were.
        binding: names of the limits that the pair misses; empty where it keeps to all.
        reasons: sentences for people.
    """

    pair: Pair
    pairs: tuple[Pair, ...]
    binding: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the other pairs."""
        return asdict(self.pair) | {"drop": self.pair.drop, "binding": self.binding, "reasons": self.reasons}


def choose(
    curve: Sequence[Pruned], widths: Sequence[Width], size: Callable[[Pruned, Width], Size], limits: Limits
) -> PairChoice:
    """The smallest pair that is predicted to keep to the limits; the nearest one (:meth:`Limits.distance`) if none is.

    Args:
        size: bytes of a pruned model at a width, as the lowered Program says.
    """
    pairs = tuple(Pair(pruned, width, size(pruned, width)) for pruned in curve for width in widths)
    pair = min(pairs, key=lambda pair: (limits.distance(pair.values), pair.size.flash, pair.pruned.macs, pair.drop))
    binding = tuple(limits.excess(pair.values))
    whole = max(curve, key=lambda point: point.macs)
    reasons = [
        f"pruned to {100 * point.macs_kept:.3g} % of the multiply-accumulates, with {point.parameters:,} of"
        f" {whole.parameters:,} parameters: {point.drop:+.2f} points of loss on {point.images:,} calibration"
        f" images after {point.steps} steps of fine-tuning"
        for point in curve
        if point is not whole
    ]
    for width in widths:
        where = "" if width.macs_kept == 1 else f", pruned to {100 * width.macs_kept:.3g} %"
        reasons.append(f"{width.bits} bits everywhere{where}: {width.drop:+.2f} points of loss")
    told, lost = "no pruning", [max(0.0, point.drop) for point in (pair.pruned, pair.width)]
    if pair.pruned is not whole:
        told = f"pruning to {100 * pair.pruned.macs_kept:.3g} % of the multiply-accumulates ({lost[0]:.2f} points)"
    told += f" and {pair.width.bits} bits on average ({lost[1]:.2f} points): {pair.size.flash:,} bytes of flash"
    if binding:
        reasons.append(f"no pair keeps to {', '.join(binding)}; nearest is {told}")
    else:
        reasons.append(f"the smallest pair within {limits.max_drop:g} points and all other limits is {told}")
    return PairChoice(pair, pairs, binding, tuple(reasons))


RECOVERED = 3.0
"""Points of accuracy that full fine-tuning may win back over the short one at the measured points."""


def next_fraction(fractions: Sequence[float], curve: Sequence[Pruned], limits: Limits) -> float | None:
    """The next fraction of the multiply-accumulates to measure, smaller than all before; None where none is worth it.

    Once a point loses more than full fine-tuning may win back, smaller ones cannot be chosen, and only what a limit of
    multiply-accumulates asks for is still measured. That amount is measured whether it is among ``fractions`` or not.

    Args:
        fractions: fractions that are measured as long as they may be chosen, 0..1.
        curve: what was measured, the whole model first.
    """
    whole, last = curve[0], curve[-1]
    asked = None if limits.macs is None else limits.macs / whole.macs
    ahead = {fraction for fraction in fractions if fraction < last.macs_kept}
    if asked is not None and asked < last.macs_kept:
        if last.drop > limits.max_drop + RECOVERED:
            return asked
        ahead.add(asked)
    elif last.drop > limits.max_drop + RECOVERED:
        return None
    return max(ahead, default=None)


def outlook(tried: Sequence[Mapping[str, float]], limits: Limits) -> tuple[str, ...]:
    """What would have to give for each network that was made, one line per set of limits missed; none where one fits.

    Of several networks that miss the same limits, the nearest one is told. The fewest missed come first.

    Args:
        tried: of each network, what it reached by the name of its limit.
    """
    nearest: dict[frozenset[str], Mapping[str, float]] = {}
    for values in sorted(tried, key=limits.distance):
        nearest.setdefault(frozenset(limits.excess(values)), values)
    if frozenset() in nearest:
        return ()
    return tuple(
        " and ".join(_relaxed(name, values[name], getattr(limits, name)) for name in limits.excess(values))
        for values in nearest.values()
    )


def _relaxed(name: str, found: float, asked: float) -> str:
    """The limit under which a value would have been accepted, rounded so that it still is."""
    if name == "max_drop":
        return f"a loss of {math.ceil(found * 100) / 100:.2f} points instead of {asked:g}"
    if name == "macs":
        return f"{found:,} multiply-accumulates instead of {asked:,}"
    return f"{found:,} bytes of {'flash' if name == 'flash' else 'RAM'} instead of {asked:,}"
