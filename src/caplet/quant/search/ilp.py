"""Allocation as an integer program: additive sensitivities choose all widths at once, evaluations have the last word.

The noise that a unit alone makes at the class capsules is measured for every width. Noises of independent errors add
up, so the widths with the least memory for a total noise, or the least noise for a memory, are a 0/1 program. What
noise the accuracy target bears is found by evaluations: bisection over the total noise, for several trade-offs between
weights and activations, then a repair of each boundary plan. All evaluated plans make up the Pareto front.

Source: the formulation is common in mixed-precision search (e.g. HAWQ-V3, Yao et al. 2021); its use for the routing
tensors of capsule networks, the noise measure and the repair are caplet's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.nn.points import Storage
from caplet.quant.choices import Method
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import Widths, unit_bits
from caplet.quant.search.allocate import Frontier, Measure, SumLimit, UnitChoice, allocate
from caplet.quant.search.progressive import UnitSensitivity, longest_run
from caplet.quant.search.search import Candidate, PlanSearch, Request, SearchResult, Workbench, run_each

MEASURED_WIDTH = 8
"""Wider widths are not measured: their noise is a quarter per bit, as of a uniform error."""
FIRST_WIDTH = 5
"""Where every unit is measured first; the noise at other widths is guessed from it until it is wanted."""
TRADE_OFFS = (0.5, 0.9, 0.1)
"""How much the weights' part of the memory counts against the activations', each 0..1."""
REPAIRS = 3
"""Evaluations at most to mend one boundary plan."""
_FITTED = 0.3  # how much noise of fitted weights counts: below 1, weights become narrower and activations wider
_RATIO = 2.0  # of neighbouring noise levels
_CUTS = 60
_RELIEF = 0.05
_weight_bits: Measure = attrgetter("weight_bits")
_activation_bits: Measure = attrgetter("activation_bits")
_noise: Measure = attrgetter("noise")


def search_ilp(bench: Workbench, request: Request) -> SearchResult:
    """Run the search with every rounding scheme asked for; deterministic, resumed for free from the evaluator's log.

    Returns:
        The best scheme's result; ``record["front"]`` is the Pareto front of all evaluated plans, with the plans.

    Raises:
        ConfigError: a budget below what the narrowest widths take; the message says how much that is.
    """
    return run_each(IlpSearch(bench, request, rounding) for rounding in request.roundings)


@dataclass(frozen=True)
class FrontPoint:
    """A measured plan and what it costs.

    Attributes:
        candidate: the plan, its measured result, its memory count.
        ram_bytes: the arena's, with all votes stored.
        noise: the additive model's prediction (see :class:`IlpSearch`).
    """

    candidate: Candidate
    ram_bytes: int
    noise: float

    @property
    def costs(self) -> tuple[int, int, int, int]:
        """What to keep small: weight bits, activation bits, RAM bytes, images wrong (at most)."""
        memory, found = self.candidate.memory, self.candidate.evaluation
        return memory.weight_bits, memory.activation_bits, self.ram_bytes, found.n - found.low

    def dominates(self, other: "FrontPoint") -> bool:
        """Whether this point is at least as good in every respect, and better in one."""
        mine, theirs = self.costs, other.costs
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def to_json(self, reference: int) -> dict[str, Any]:
        """Plain data with the plan; losses are in percentage points against ``reference`` correct images.

        ``loss_at_least`` and ``loss_at_most`` differ where not all images were looked at (see
        :mod:`caplet.quant.measure.early_decision`); ``loss`` is then an estimate.
        """
        memory, found = self.candidate.memory, self.candidate.evaluation
        return {
            "weight_bytes": memory.weight_bits / 8,
            "activation_bytes": memory.activation_bits / 8,
            "ram_bytes": self.ram_bytes,
            "loss": 100 * (reference - found.correct) / found.n,
            "loss_at_least": 100 * (reference - found.high) / found.n,
            "loss_at_most": 100 * (reference - found.low) / found.n,
            "images_seen": found.seen,
            "weight_reduction": memory.weight_reduction,
            "activation_reduction": memory.activation_reduction,
            "noise": self.noise,
            "widths": dict(zip(self.candidate.widths.names, self.candidate.widths.bits, strict=True)),
            "plan": self.candidate.plan.to_json(),
        }


def pareto_front(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points that no other one dominates, the fewest weight bits first."""
    best = [point for point in points if not any(other.dominates(point) for other in points)]
    return sorted(best, key=lambda point: point.costs)


def most_accurate(points: Sequence[FrontPoint]) -> Candidate:
    """The plan with the most correct images, the smallest of several. Raises ValueError without any point."""
    return min(points, key=lambda point: (point.costs[3], point.costs)).candidate


def noise_at(measured: Mapping[int, float], width: int) -> float:
    """A unit's noise at ``width`` bits: as ``measured`` by width, guessed elsewhere.

    Between two measured widths it is guessed geometrically, beyond them by a factor of 4 per bit.

    >>> [noise_at({3: 1.0, 5: 0.25}, width) for width in (2, 4, 5, 6)]
    [4.0, 0.5, 0.25, 0.0625]
    """
    below = max((known for known in measured if known <= width), default=None)
    above = min((known for known in measured if known >= width), default=None)
    if below is None:
        assert above is not None
        return measured[above] * 4.0 ** (above - width)
    if above is None or above == below:
        return measured[below] / 4.0 ** (width - below)
    part = (width - below) / (above - below)
    return float(measured[below] ** (1 - part) * measured[above] ** part)


class IlpSearch(PlanSearch):
    """One search with one rounding scheme."""

    def __init__(self, bench: Workbench, request: Request, rounding: Rounding) -> None:
        super().__init__(bench, request, rounding)
        self.sensitivity = UnitSensitivity(bench, request, rounding, self.units)
        firsts = [unit.at_most(FIRST_WIDTH) for unit in self.units]
        self.fitted = False
        self.sensitivity.measure(enumerate(firsts))
        self.noises = [{width: self._noise_of(index, width)} for index, width in enumerate(firsts)]
        self.menu = [self._choices(index) for index in range(len(self.units))]
        self.weights = sum(unit.elements for unit in self.units if unit.storage is Storage.FLASH)
        self.activations = sum(unit.elements for unit in self.units if unit.storage is Storage.RAM)
        self.budgets = self._budgets()
        self.cuts: list[SumLimit] = []
        self.front: list[FrontPoint] = []
        self.known: dict[Widths, bool] = {}

    def run(self) -> SearchResult:
        quietest = self._solve(_noise, [])
        if quietest is None:
            bits = [limit or math.inf for limit in (self.request.weight_bits, self.request.activation_bits)]
            raise ConfigError(
                f"the budgets contradict each other: weights {bits[0]:,.0f} bits, activations {bits[1]:,.0f} bits, RAM"
                f" {self.request.ram_bytes or math.inf:,} bytes; raise one of them"
            )
        widths = self._widths(quietest)
        if not self._keeps("quietest", "least noise within the budgets", widths):
            lost = self.reference.correct - self.steps[-1].high
            reason = f"even the plan of least noise within the budgets loses {lost:,} images or more"
            return self._result(reason)
        if not self.request.explore:
            return self._result("the plan of least noise within the budgets keeps the target")
        for trade_off in TRADE_OFFS[:1] if self.bench.fitted_noise else TRADE_OFFS:
            self._explore(trade_off, math.fsum(map(_noise, quietest)))
        return self._result("the smallest evaluated plan, weights and activations counted alike, within all limits")

    def _choices(self, index: int) -> list[UnitChoice]:
        """The unit's widths; noise falls with the width, also where a few images happen to say otherwise."""
        unit, specs = self.units[index], self.specs
        choices: list[UnitChoice] = []
        noise = math.inf
        for width in unit.widths:
            noise = min(noise, noise_at(self.noises[index], width))
            bits = unit_bits(specs, unit, width, self.request.rule)
            flash = unit.storage is Storage.FLASH
            choices.append(UnitChoice(index, width, noise, bits if flash else 0, 0 if flash else bits))
        return choices

    def _noise_of(self, index: int, width: int) -> float:
        """What the unit adds at a width; its weights as they are after a fit, once plans are to be fitted."""
        found = self.sensitivity.fitted(index, width) if self.fitted else None
        return self.sensitivity.noise(index, width) if found is None else _FITTED * found

    def _measure(self, chosen: Sequence[UnitChoice]) -> bool:
        """Measure the noise of choices that so far was guessed; whether there were any. Of fitted weights, each of
        which takes a fit, that of widths above all measured ones, or right between two, is well guessed."""
        wanted: list[tuple[int, int]] = []
        for choice in chosen:
            unit, noises = self.units[choice.unit], self.noises[choice.unit]
            width = min(choice.width, unit.at_most(max(MEASURED_WIDTH, unit.widths[0])))
            guessed = width > max(noises) or {width - 1, width + 1} <= noises.keys()
            if width not in noises and not (guessed and self.fitted and unit.storage is Storage.FLASH):
                wanted.append((choice.unit, width))
        self.sensitivity.measure(wanted, fitted=self.fitted)
        for index, width in wanted:
            self.noises[index][width] = self._noise_of(index, width)
            self.menu[index] = self._choices(index)
        return bool(wanted)

    def _budgets(self) -> list[SumLimit]:
        """The request's limits on bits. Raises ConfigError where the narrowest widths exceed one."""
        weights, activations = (
            sum(min(map(of, unit)) for unit in self.menu) for of in (_weight_bits, _activation_bits)
        )
        self.request.check_budgets(weight=weights, activation=activations)
        budgets = ((_weight_bits, self.request.weight_bits), (_activation_bits, self.request.activation_bits))
        return [SumLimit(measure, budget) for measure, budget in budgets if budget is not None]

    def _explore(self, trade_off: float, least: float) -> None:
        """Find the noise that the target bears at one trade-off, and repair the first plan beyond it."""
        goal = self._goal(trade_off)
        most = sum(max(choice.noise for choice in unit) for unit in self.menu)
        levels = [least * (1 + 1e-6)]
        while levels[-1] < most:
            levels.append(levels[-1] * _RATIO)
        plans: dict[int, Widths | None] = {}

        def plan(count: int) -> Widths | None:
            if count not in plans:
                chosen = self._solve(goal, [SumLimit(_noise, levels[count - 1])])
                plans[count] = None if chosen is None else self._widths(chosen)
            return plans[count]

        def holds(count: int) -> bool:
            widths = plan(count)
            about = f"total noise at most {levels[count - 1]:.1e}"
            return widths is None or self._keeps(f"trade-off {trade_off:g}", about, widths)

        count = longest_run(len(levels), holds)
        beyond = plan(count + 1) if count < len(levels) else None
        if beyond is not None and not self.bench.fitted_noise:
            self._repair(trade_off, beyond)

    def _repair(self, trade_off: float, widths: Widths) -> None:
        """Widen a plan that misses the target, where that takes most noise away for its memory, until it keeps it."""
        goal = self._goal(trade_off)
        for _ in range(REPAIRS):
            wider = self._wider(goal, widths)
            while wider is not None and self._measure([wider]):
                wider = self._wider(goal, widths)
            if wider is None:
                return
            index, width = wider.unit, wider.width
            widths = widths.with_width(index, width)
            if self.excess(widths) is not None:
                return
            if self._keeps(f"repair {trade_off:g}", f"{self.units[index].name} to {width} bits", widths):
                return

    def _wider(self, goal: Measure, widths: Widths) -> UnitChoice | None:
        """The next width of the unit in which it takes most noise away for its memory; None where all are widest.

        Units that take less than :data:`_RELIEF` of all noise away do not count where others take more: a tensor of a
        few elements costs nothing and would come first without helping.
        """
        options: list[tuple[bool, float, int, UnitChoice]] = []
        enough = _RELIEF * self.predicted(widths)
        for index, choices in enumerate(self.menu):
            at = next(i for i, choice in enumerate(choices) if choice.width == widths.bits[index])
            if at + 1 < len(choices):
                more = goal(choices[at + 1]) - goal(choices[at])
                relief = choices[at].noise - choices[at + 1].noise
                options.append((relief >= enough, relief / more if more > 0 else math.inf, index, choices[at + 1]))
        return max(options, key=lambda option: option[:3])[3] if options else None

    def within(self, noise: float) -> QuantPlan | None:
        """See :class:`caplet.quant.search.allocate.Frontier`; weights and activations count alike."""
        if not self.fitted:
            self.fitted = True
            flash = [index for index, unit in enumerate(self.units) if unit.storage is Storage.FLASH]
            firsts = [(index, self.units[index].at_most(FIRST_WIDTH)) for index in flash]
            self.sensitivity.measure(firsts, fitted=True)
            for index, width in firsts:
                self.noises[index] = {width: self._noise_of(index, width)}
            self.menu = [self._choices(index) for index in range(len(self.units))]
        chosen = self._solve(self._goal(0.5), [SumLimit(_noise, noise)])
        return None if chosen is None else self.plan(self._widths(chosen))

    def _goal(self, trade_off: float) -> Measure:
        """The memory to keep small: fractions of the 32-bit float size, weighed."""
        weights, activations = trade_off / self.weights, (1 - trade_off) / self.activations
        return lambda choice: weights * choice.weight_bits + activations * choice.activation_bits

    def predicted(self, widths: Widths) -> float:
        """The additive model's noise of all units."""
        by_width = [{choice.width: choice.noise for choice in choices} for choices in self.menu]
        return math.fsum(noises[width] for noises, width in zip(by_width, widths.bits, strict=True))

    def _solve(self, goal: Measure, limits: Sequence[SumLimit]) -> tuple[UnitChoice, ...] | None:
        """The program's solution, in which no noise is a guess: what it uses is measured, and it is solved again."""
        while True:
            chosen = self._fitting(goal, limits)
            if chosen is None or not self._measure(chosen):
                return chosen

    def _fitting(self, goal: Measure, limits: Sequence[SumLimit]) -> tuple[UnitChoice, ...] | None:
        """The program's solution that also fits the arena: each misfit adds a linear cut on the buffers of its peak.

        A cut may exclude a plan that would fit, where the arena has gaps or a cap on widths is needed.
        """
        for _ in range(_CUTS):
            chosen = allocate(self.menu, goal, [*limits, *self.budgets, *self.cuts])
            if chosen is None or self.request.ram_bytes is None:
                return chosen
            found = self.footprint(self._widths(chosen))
            if found.ram_bytes <= self.request.ram_bytes:
                return chosen
            self.cuts.append(self._cut(chosen, dict(found.peak), found.ram_bytes))
        return None

    def _cut(self, chosen: Sequence[UnitChoice], peak: dict[str, int], ram_bytes: int) -> SumLimit:
        """A limit that ``chosen``, whose arena is too large, breaks.

        The tensors in use at the peak must shrink by what the arena is too large, or as far as their containers allow.
        Where they are in their smallest containers already, the accumulators beside them are what is too wide: then no
        width may be as large as the largest one now.
        """
        assert self.request.ram_bytes is not None
        specs, hardware = self.specs, self.request.hardware

        def measure(choice: UnitChoice) -> float:
            keys = [key for key in self.units[choice.unit].points if key in peak]
            return sum(specs[key].elements * hardware.container(specs[key], max(choice.width, 2)) / 8 for key in keys)

        now = math.fsum(map(measure, chosen))
        least = math.fsum(min(map(measure, choices)) for choices in self.menu)
        if least < now:
            return SumLimit(measure, max(least, now - max(1.0, float(ram_bytes - self.request.ram_bytes))))
        widest = max(choice.width for choice in chosen)
        return SumLimit(lambda choice: float(choice.width >= widest), 0.0)

    def _widths(self, chosen: Sequence[UnitChoice]) -> Widths:
        return Widths(tuple(unit.name for unit in self.units), tuple(choice.width for choice in chosen))

    def _keeps(self, step: str, about: str, widths: Widths) -> bool:
        """Evaluate widths, once, and put them on the front; whether they keep the target."""
        if widths in self.known:
            return self.known[widths]
        kept = self.known[widths] = self.evaluate(step, about, widths)
        if self.misfit(widths) is None:
            ram_bytes = self.footprint(widths).ram_bytes
            self.front.append(FrontPoint(self.candidate(widths), ram_bytes, self.predicted(widths)))
        return kept

    def _result(self, reason: str) -> SearchResult:
        balanced = self._goal(0.5)

        def size(candidate: Candidate) -> float:
            chosen = zip(self.menu, candidate.widths.bits, strict=True)
            return math.fsum(balanced(c) for choices, width in chosen for c in choices if c.width == width)

        kept = sorted(self.keeping, key=size)
        others = []
        if not kept:
            limited = bool(self.budgets) or self.request.ram_bytes is not None
            widest = Widths.uniform(self.units, MAX_BITS)
            nearest = most_accurate(self.front) if self.front else self.candidate(widest)
            others = [("memory" if limited else "accuracy", nearest)]
        front = [point.to_json(self.reference.correct) for point in pareto_front(self.front)]
        satisfied = kept[0] if kept else None
        found = self.result(Method.ILP, satisfied, reason, kept[1:], others, self.sensitivity.cost, {"front": front})
        if satisfied is None or not self.request.explore:
            return found
        return replace(found, frontier=Frontier(self.predicted(satisfied.widths), self.within))
