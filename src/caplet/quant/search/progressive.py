"""The progressive search: from one width everywhere, lower one unit at a time, the most robust first.

Source: Raji et al. 2025, progressive bitwidth assignment for capsule networks, whose inner details are not public. This
is caplet's reading of its three approaches (network-wise; block- or layer-wise; layer-wise with a width for every
routing tensor); docs/progressive.md says where caplet chose.

Differs from the paper (as far as it is known): only power-of-two scales, chosen by squared error or by effect; softmax
and squash are the integer functions of the device; the start is found by bisection; a run of steps is decided by
bisection, which gives the answer of one step at a time wherever accuracy falls along the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.quant.plan.units import UnitWidths, make_units, unit_bits
from caplet.quant.search.request import SENSITIVITY_IMAGES, Request, SearchResult, Workbench
from caplet.quant.search.trials import Trials, fitting_units
from caplet.quant.search.unit_sensitivity import Susceptibility

START_SHARE = 0.25
"""Share of the tolerance that the uniform start may spend."""
PATIENCE = 1700
"""Images that an early decision may take."""
METHOD = "progressive"


class StepOrder(StrEnum):
    """Which step comes first.

    * ``robust``: the one that adds least noise at the class capsules.
    * ``gain``: the one that adds least noise for the memory it saves; a percent of the weights counts as much as a
      percent of the activations.
    """

    ROBUST = "robust"
    GAIN = "gain"


@dataclass(frozen=True)
class ProgressiveSettings:
    """How the progressive search goes about it.

    Attributes:
        order: of the steps.
        start_share: of the tolerance, for the uniform start.
        leaps: decide runs of steps by bisection; False measures every single step (the reference).
        images: for the susceptibilities.
        patience: calibration images after which a step that is not settled is rejected; None for all. Steps that miss
            or keep the target by a single image may take nearly all images to settle.
    """

    order: StepOrder = StepOrder.GAIN
    start_share: float = START_SHARE
    leaps: bool = True
    images: int = SENSITIVITY_IMAGES
    patience: int | None = PATIENCE


@dataclass(frozen=True)
class _Lowering:
    """One step: which unit goes down, and all widths afterwards."""

    unit: int
    widths: UnitWidths


def search_progressive(bench: Workbench, request: Request, settings: ProgressiveSettings | None = None) -> SearchResult:
    """Run the search with every rounding scheme asked for; deterministic, resumed for free from the evaluator's log.

    Returns:
        The best scheme's result: one that is met, then the smallest (weights first).

    Raises:
        ConfigError: the hardware cannot run the model at any width.
    """
    results = [_Search(bench, request, settings or ProgressiveSettings(), each).run() for each in request.roundings]
    return pick_result(results)


def pick_result(results: list[SearchResult]) -> SearchResult:
    """The first of the results that is met with the smallest memory; where none is, the one nearest to its target."""

    def preference(result: SearchResult) -> tuple[bool, bool, int, int]:
        best = result.best
        missed = best.probe.low < result.needed
        return not result.met, missed, best.memory.weight_bits, best.memory.activation_bits

    best = min(results, key=preference)
    rest = [result.record for result in results if result is not best]
    if not rest:
        return best
    return replace(best, record={**best.record, "others": rest}, cost=sum(result.cost for result in results))


class _Search:
    """One search with one rounding scheme."""

    def __init__(self, bench: Workbench, request: Request, settings: ProgressiveSettings, rounding: Rounding) -> None:
        self.request, self.settings = request, settings
        model = bench.evaluator.model
        units = make_units(model, request.granularity, request.hardware, request.rule)
        self.units = fitting_units(bench, request, rounding, units)
        self.trials = Trials(bench, request, rounding, self.units, settings.patience)
        self.susceptibility = Susceptibility(
            bench.evaluator,
            bench.source,
            self.units,
            images=settings.images,
            rule=request.rule,
            rounding=rounding,
            seed=request.seed,
            cache=bench.cache,
        )
        specs = model.points()
        totals: dict[Any, int] = {}
        for unit in self.units:
            totals[unit.storage] = totals.get(unit.storage, 0) + unit.elements
        self._share = lambda index, width: (
            unit_bits(specs, self.units[index], width, request.rule) / totals[self.units[index].storage]
        )

    def run(self) -> SearchResult:
        start = self.start()
        if start is None:
            widest = UnitWidths.uniform(self.units, MAX_BITS)
            return self._result(widest, "not even the widest formats everywhere keep the target")
        final = self.descend(start)
        excess = self.trials.excess(final)
        if excess is None:
            return self._result(final, "no unit can go lower without missing the target")
        return self._result(final, f"no unit can go lower without missing the target, and {excess}")

    def start(self) -> UnitWidths | None:
        """The smallest uniform widths that spend at most their share of the tolerance, by bisection.

        Where no width is that good, the widest that keeps the target; None where none does.
        """
        needed = self.request.needed(self.trials.reference, self.settings.start_share)
        ladder = sorted({width for unit in self.units for width in unit.widths})
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high) // 2
            widths = UnitWidths.uniform(self.units, ladder[middle])
            if self.trials.attempt("start", f"{ladder[middle]} bits everywhere", widths, needed):
                high = middle
            else:
                low = middle + 1
        if high < len(ladder):
            return UnitWidths.uniform(self.units, ladder[high])
        widest = UnitWidths.uniform(self.units, ladder[-1])
        return widest if self.trials.attempt("start", f"{ladder[-1]} bits everywhere", widest) else None

    def descend(self, widths: UnitWidths) -> UnitWidths:
        """Lower units in order until each one's next step misses the target."""
        active = set(range(len(self.units)))
        first = True
        while path := self.path(widths, active):
            count = self._holds(path, first)
            first = False
            if count:
                widths = path[count - 1].widths
            if count < len(path):
                active.discard(path[count].unit)
            else:
                break
        return widths

    def path(self, widths: UnitWidths, active: set[int]) -> list[_Lowering]:
        """All steps that are left, in order, as long as none is rejected."""
        steps: list[_Lowering] = []
        while options := [
            (self._harm(index, widths.bits[index], below), index, below)
            for index in sorted(active)
            if (below := self.units[index].below(widths.bits[index])) is not None
        ]:
            _, index, below = min(options)
            widths = widths.with_width(index, below)
            steps.append(_Lowering(index, widths))
        return steps

    def _harm(self, index: int, width: int, below: int) -> float:
        more = self.susceptibility.noise(index, below) - self.susceptibility.noise(index, width)
        if self.settings.order is StepOrder.ROBUST:
            return more
        saved = self._share(index, width) - self._share(index, below)
        return more / saved if more > 0 else more * saved

    def _holds(self, path: list[_Lowering], first: bool) -> int:
        """How many steps of the path hold the target: the first one that does not ends the run."""

        def holds(count: int) -> bool:
            step = path[count - 1]
            unit = self.units[step.unit]
            about = f"{unit.name} to {step.widths.bits[step.unit]} bits"
            about += f" (step {count} of {len(path)})" if count > 1 else ""
            return self.trials.attempt("lower", about, step.widths)

        if not self.settings.leaps:
            return next((count - 1 for count in range(1, len(path) + 1) if not holds(count)), len(path))
        return longest_run(len(path), holds, gallop=not first)

    def _result(self, final: UnitWidths, reason: str) -> SearchResult:
        trials = self.trials
        candidate = trials.candidate(final)
        met = any(kept.widths == final for kept in trials.kept)
        fallbacks = tuple(kept for kept in reversed(trials.kept) if kept.widths != final) if met else ()
        record = trials.record(METHOD, candidate, reason, self.susceptibility.cost)
        record |= {"met": met, "order": str(self.settings.order)}
        return SearchResult(
            METHOD,
            met,
            candidate if met else None,
            fallbacks,
            () if met else (("accuracy", candidate),),
            trials.reference,
            trials.needed,
            trials.rounding,
            reason,
            self.susceptibility.cost,
            record,
        )


def longest_run(length: int, holds: Callable[[int], bool], *, gallop: bool = False) -> int:
    """The largest count from 0 to ``length`` that holds, where all counts up to it hold and none after it does.

    Count 0 is taken to hold. By bisection, or with ``gallop`` in doubling leaps from 1 first, which is cheaper
    where the answer is small.

    >>> longest_run(100, lambda count: count <= 13), longest_run(100, lambda count: count <= 13, gallop=True)
    (13, 13)
    """
    low, high = 0, length
    leap = 1
    while gallop and leap <= high:
        if not holds(leap):
            high = leap - 1
            break
        low, leap = leap, 2 * leap
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
