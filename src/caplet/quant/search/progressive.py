"""The progressive search: from one width everywhere, lower one unit at a time, the most robust first.

Source: Raji et al. 2025, progressive bitwidth assignment for capsule networks, whose inner details are not public. This
is caplet's reading of its three approaches (network-wise; block- or layer-wise; layer-wise with a width for every
routing tensor); docs/progressive.md says where caplet chose.

Differs from the paper (as far as it is known): only power-of-two scales, chosen by squared error or by effect; softmax
and squash are the integer functions of the device; the start is found by bisection; a run of steps is decided by
bisection, which gives the answer of one step at a time wherever accuracy falls along the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from caplet.fixed import AnyFormat, Rounding
from caplet.fixed.format import MAX_BITS
from caplet.nn.points import Storage
from caplet.quant.choices import Method
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.log import MeasurementCache, images_digest
from caplet.quant.plan.units import Unit, Widths, unit_bits
from caplet.quant.search.search import SENSITIVITY_IMAGES, PlanSearch, Request, SearchResult, Workbench, run_each


@dataclass(frozen=True)
class ProgressiveSettings:
    """How the progressive search goes about it.

    Attributes:
        start_fraction: of the tolerance, for the uniform start.
        leaps: decide runs of steps by bisection; False measures every single step (the reference).
        images: for the sensitivities.
        patience: calibration images after which a step that is not settled is rejected; None for all. Steps that miss
            or keep the target by a single image may take nearly all images to settle.
    """

    start_fraction: float = 0.25
    leaps: bool = True
    images: int = SENSITIVITY_IMAGES
    patience: int | None = 1700


def search_progressive(bench: Workbench, request: Request, settings: ProgressiveSettings | None = None) -> SearchResult:
    """Run the search with every rounding scheme asked for; deterministic, resumed for free from the evaluator's log.

    Returns:
        The best scheme's result: one that is met, then the smallest (weights first).

    Raises:
        ConfigError: the hardware cannot run the model at any width.
    """
    used = settings or ProgressiveSettings()
    return run_each(ProgressiveSearch(bench, request, used, rounding) for rounding in request.roundings)


class ProgressiveSearch(PlanSearch):
    """One search with one rounding scheme."""

    def __init__(self, bench: Workbench, request: Request, settings: ProgressiveSettings, rounding: Rounding) -> None:
        super().__init__(bench, request, rounding, patience=settings.patience)
        self.settings = settings
        self.sensitivity = UnitSensitivity(bench, request, rounding, self.units, settings.images)
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
        needed = self.acceptance.needed(self.settings.start_fraction)
        ladder = sorted({width for unit in self.units for width in unit.widths})
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high) // 2
            widths = Widths.uniform(self.units, ladder[middle])
            if self.evaluate("start", f"{ladder[middle]} bits everywhere", widths, needed):
                high = middle
            else:
                low = middle + 1
        if high < len(ladder):
            return Widths.uniform(self.units, ladder[high])
        widest = Widths.uniform(self.units, ladder[-1])
        return widest if self.evaluate("start", f"{ladder[-1]} bits everywhere", widest) else None

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

        if not self.settings.leaps:
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

    Args:
        images: how many of the evaluator's images to use, at even distances.
    """

    def __init__(
        self, bench: Workbench, request: Request, rounding: Rounding, units: Sequence[Unit], images: int
    ) -> None:
        evaluator = bench.evaluator
        self.units, self._source = tuple(units), bench.source
        self._rule, self._rounding, self._seed = request.rule, rounding, request.seed
        count = min(images, len(evaluator))
        chosen = torch.arange(count) * len(evaluator) // count
        self._perturber = Perturber(evaluator.model, evaluator.images[chosen])
        self._digest = images_digest(evaluator.images[chosen])
        self._cache = bench.cache or MeasurementCache(None, "log of sensitivities", {})
        self._all = len(evaluator)
        self._known: dict[tuple[int, int], float] = {}

    @property
    def cost(self) -> float:
        """Of all that was computed, in full passes of all the evaluator's images."""
        return self._perturber.spent / self._all

    def noise(self, index: int, width: int) -> float:
        """The noise of unit ``index`` at ``width`` bits."""
        if (index, width) not in self._known:
            keys = self.units[index].points
            self._known[index, width] = self._measure(dict.fromkeys(keys, width))
        return self._known[index, width]

    def _measure(self, widths: dict[str, int]) -> float:
        formats = {key: self._source.format(key, width, self._rule, self._rounding) for key, width in widths.items()}
        asked = {
            "formats": {key: fmt.to_json() for key, fmt in formats.items()},
            "rounding": str(self._rounding),
            "seed": self._seed,
            "images": self._digest,
        }
        return self._cache.answer(asked, lambda: self._noise(formats))

    def _noise(self, formats: Mapping[str, AnyFormat]) -> float:
        return self._perturber.noise(formats, self._rounding, self._seed)


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
