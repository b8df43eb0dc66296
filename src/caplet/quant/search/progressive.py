"""The progressive search: from one width everywhere, lower one unit at a time, the most robust first.

Source: Raji et al. 2025, progressive bitwidth assignment for capsule networks, whose inner details are not public. This
is caplet's reading of its three approaches (network-wise; block- or layer-wise; layer-wise with a width for every
routing tensor); docs/progressive.md says where caplet chose.

Differs from the paper (as far as it is known): only power-of-two scales, chosen by squared error or by effect; softmax
and squash are the integer functions of the device; the start is found by bisection; a run of steps is decided by
bisection, which gives the answer of one step at a time wherever accuracy falls along the run.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.nn.points import Role, Storage
from caplet.quant.choices import Method
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.log import Unmeasured
from caplet.quant.plan.units import Unit, Widths, unit_bits
from caplet.quant.search.search import PlanSearch, Request, SearchResult, Workbench, run_each
from caplet.workers.team import Parcel, Team

START_FRACTION = 0.25
"""Fraction of the tolerance that the uniform start may spend."""
PATIENCE = 1700
"""Calibration images after which a step that is not settled is rejected: steps that miss or keep the target by a single
image may take nearly all images to settle."""


def search_progressive(bench: Workbench, request: Request, *, leaps: bool = True) -> SearchResult:
    """Run the search with every rounding scheme asked for; deterministic, resumed for free from the evaluator's log.

    Args:
        leaps: decide runs of steps by bisection; False measures every single step (the reference).

    Returns:
        The best scheme's result: one that is met, then the smallest (weights first).

    Raises:
        ConfigError: the hardware cannot run the model at any width.
    """
    return run_each(ProgressiveSearch(bench, request, rounding, leaps) for rounding in request.roundings)


class ProgressiveSearch(PlanSearch):
    """One search with one rounding scheme."""

    def __init__(self, bench: Workbench, request: Request, rounding: Rounding, leaps: bool = True) -> None:
        super().__init__(bench, request, rounding, patience=PATIENCE)
        self.leaps, self.sensitivity = leaps, UnitSensitivity(bench, request, rounding, self.units)
        self.elements = {
            storage: sum(unit.elements for unit in self.units if unit.storage is storage) for storage in Storage
        }

    def run(self) -> SearchResult:
        start = self.start()
        if start is None:
            widest = Widths.uniform(self.units, MAX_BITS)
            return self._result(widest, "not even the widest formats everywhere keep the target")
        final = self.descend(start)
        excess = self.excess(final)
        if excess is None:
            return self._result(final, "no unit can go lower without missing the target")
        return self._result(final, f"no unit can go lower without missing the target, and {excess}")

    def start(self) -> Widths | None:
        """The smallest uniform widths that spend at most their fraction of the tolerance, by bisection.

        Where no width is that good, the widest that keeps the target; None where none does.
        """
        ladder = sorted({width for unit in self.units for width in unit.widths})

        def keeps(width: int, needed: int | None = None) -> bool:
            return self.evaluate("start", f"{width} bits everywhere", Widths.uniform(self.units, width), needed)

        needed = self.acceptance.needed(START_FRACTION)
        first = bisect_left(ladder, True, key=lambda width: keeps(width, needed))
        if first == len(ladder) and not keeps(ladder[-1]):
            return None
        return Widths.uniform(self.units, ladder[min(first, len(ladder) - 1)])

    def descend(self, widths: Widths) -> Widths:
        """Lower units in order until each one's next step misses the target."""
        active = set(range(len(self.units)))
        first = True
        while path := self.path(widths, active):
            count = self._holds(path, first)
            first = False
            if count:
                widths = path[count - 1][1]
            if count < len(path):
                active.discard(path[count][0])
            else:
                break
        return widths

    def path(self, widths: Widths, active: set[int]) -> list[tuple[int, Widths]]:
        """All remaining steps, in order, as long as none is rejected: the unit that goes down, and all widths then."""
        steps: list[tuple[int, Widths]] = []
        ladders = ((index, width) for index in sorted(active) for width in reversed(self.units[index].widths))
        self.sensitivity.measure((index, width) for index, width in ladders if width <= widths.bits[index])
        while options := [
            (self._harm(index, widths.bits[index], below), index, below)
            for index in sorted(active)
            if (below := self.units[index].below(widths.bits[index])) is not None
        ]:
            _, index, below = min(options)
            widths = widths.with_width(index, below)
            steps.append((index, widths))
        return steps

    def _harm(self, index: int, width: int, below: int) -> float:
        """The noise at the class capsules that a step adds for the memory that it saves.

        A percent of the weights counts as much as a percent of the activations.
        """
        more = self.sensitivity.noise(index, below) - self.sensitivity.noise(index, width)
        saved = self._fraction(index, width) - self._fraction(index, below)
        return more / saved if more > 0 else more * saved

    def _fraction(self, index: int, width: int) -> float:
        """Bits of a unit at a width for each element of its storage in the whole model."""
        unit = self.units[index]
        return unit_bits(self.specs, unit, width, self.request.rule) / self.elements[unit.storage]

    def _holds(self, path: list[tuple[int, Widths]], first: bool) -> int:
        """How many steps of the path hold the target: the first one that does not ends the run."""

        def holds(count: int) -> bool:
            index, widths = path[count - 1]
            about = f"{self.units[index].name} to {widths.bits[index]} bits"
            about += f" (step {count} of {len(path)})" if count > 1 else ""
            return self.evaluate("lower", about, widths)

        if not self.leaps:
            return next((count - 1 for count in range(1, len(path) + 1) if not holds(count)), len(path))
        return longest_run(len(path), holds, gallop=not first)

    def _result(self, final: Widths, reason: str) -> SearchResult:
        candidate = self.candidate(final)
        met = any(kept.widths == final for kept in self.keeping)
        return self.result(
            Method.PROGRESSIVE,
            candidate if met else None,
            reason,
            [kept for kept in reversed(self.keeping) if kept.widths != final] if met else (),
            () if met else [("accuracy", candidate)],
            self.sensitivity.cost,
            {"order": "gain"},
        )


class UnitSensitivity:
    """Measured noise at the class capsules, by unit and width; each figure is measured when first asked for.

    The noise is the mean squared change of the class capsules' lengths, dimensionless, when one unit is rounded and
    everything else is float. Independent errors add up in it, which counts of changed predictions on a few hundred
    images do not: they are mostly zero. Formats are the source's own; exponents that a restricted shift moves
    (:func:`caplet.quant.plan.target.fit_shifts`) are not followed here.
    """

    def __init__(self, bench: Workbench, request: Request, rounding: Rounding, units: Sequence[Unit]) -> None:
        self.request, self.rounding, self.units = request, rounding, tuple(units)
        self._source, self._fitted_noise, self._team = bench.source, bench.fitted_noise, bench.team or Team()
        self._all, self._specs = len(bench.evaluator), bench.evaluator.model.points()
        count = min(bench.sensitivity_images, self._all)
        chosen = torch.arange(count) * self._all // count
        self.perturber = Perturber(bench.evaluator.model, bench.evaluator.images[chosen], cache=bench.cache)
        self._perturbers = (self.perturber, *bench.perturbers)
        self._known: dict[tuple[int, int], float] = {}
        self._known_fitted: dict[tuple[int, int], float] = {}
        self._parcel: Parcel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_team": None, "_parcel": None}

    @property
    def cost(self) -> float:
        """Of all that was computed, in full passes of all the evaluator's images."""
        return self.perturber.spent / self._all

    def noise(self, index: int, width: int) -> float:
        """The noise of unit ``index`` at ``width`` bits."""
        if (index, width) not in self._known:
            choose, rule = self._source.format, self.request.rule
            formats = {key: choose(key, width, rule, self.rounding) for key in self.units[index].points}
            self._known[index, width] = self.perturber.noise(formats, self.rounding, self.request.seed)
        return self._known[index, width]

    def fitted(self, index: int, width: int) -> float | None:
        """The noise of the unit's weights once they are fitted; None where it has none, or plans are not fitted."""
        weights = [key for key in self.units[index].points if self._specs[key].role is Role.WEIGHT]
        if not weights or (measure := self._fitted_noise) is None:
            return None
        if (index, width) not in self._known_fitted:
            self._known_fitted[index, width] = math.fsum(measure(key, width) for key in weights)
        return self._known_fitted[index, width]

    def measure(self, tasks: Iterable[tuple[int, int]], *, fitted: bool = False) -> None:
        """Let the team measure the noises of units at widths; asking for them then costs nothing.

        Args:
            fitted: those of fitted weights, where a unit has weights.
        """
        team = self._team
        missing = [(*task, fitted) for task in dict.fromkeys(tasks) if not self._answers(*task, fitted)]
        if not team.away:
            with team.own_threads():
                for task in missing:
                    self.ask(*task)
            return
        self._parcel = parcel = self._parcel or team.parcel(_itself, self)
        asked = [(parcel, task) for task in missing]
        for rows in team.map(_measured, asked, lambda task: f"{self.units[task[0]].name} at {task[1]} bits"):
            for perturber, found in zip(self._perturbers, rows, strict=True):
                perturber.take(found)

    def _answers(self, index: int, width: int, fitted: bool) -> bool:
        """Whether a noise is known."""
        with ExitStack() as stack, suppress(Unmeasured):
            for perturber in self._perturbers:
                stack.enter_context(perturber.cache.closed())
            self.ask(index, width, fitted)
            return True
        return False

    def ask(self, index: int, width: int, fitted: bool) -> list[list[dict[str, Any]]]:
        """What had to be measured for a noise, by the perturber whose cache has it."""
        if not fitted or self.fitted(index, width) is None:
            self.noise(index, width)
        return [perturber.cache.news() for perturber in self._perturbers]


def _itself(sensitivity: UnitSensitivity) -> UnitSensitivity:
    return sensitivity


def _measured(sensitivity: UnitSensitivity, task: tuple[int, int, bool]) -> list[list[dict[str, Any]]]:
    return sensitivity.ask(*task)


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
