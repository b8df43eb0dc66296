"""What all searches share: the request, the workbench, evaluated widths, and the result; a search is `run` on top.

Every method is a function ``(Workbench, Request) -> SearchResult`` that runs one :class:`PlanSearch` for each rounding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from caplet.acceptance import Acceptance
from caplet.errors import ConfigError, PlanError
from caplet.fixed import Rounding
from caplet.quant.choices import Granularity, Method
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.evaluator import Evaluator, PlanResult
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.memory import MemoryRow
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import HARDWARE, Footprint, FootprintOf, Hardware, fit_shifts
from caplet.quant.plan.units import Unit, Widths, make_plan, make_units, width_memory
from caplet.quant.search.allocate import FittedWeights, Frontier
from caplet.workers.team import Team


@dataclass(frozen=True)
class Request:
    """The target and the limits of a search, whatever the method.

    Attributes:
        tolerance: accepted loss of accuracy in percentage points; with ``relative`` in percent of the float accuracy.
        weight_bits: budget for all constants (elements x bits), None for no limit.
        activation_bits: budget for all computed tensors of one image (elements x bits), None for no limit.
        ram_bytes: budget for the arena with all votes stored, None for no limit.
        roundings: the schemes to try; the smallest result that meets the target wins.
        rule: how widths become formats.
        seed: of stochastic rounding.
        granularity: which points share a width, where the method has a choice.
        hardware: what plans must run on.
        explore: whether a method that can fill given budgets (ilp) looks for smaller plans too.

    Raises:
        ConfigError: a negative, infinite or NaN tolerance; a budget that is not above 0; no scheme, or one twice.
    """

    tolerance: float
    weight_bits: float | None = None
    activation_bits: float | None = None
    ram_bytes: int | None = None
    relative: bool = False
    roundings: tuple[Rounding, ...] = (Rounding.NEAREST,)
    rule: FormatRule = field(default_factory=FormatRule)
    seed: int = 0
    granularity: Granularity = Granularity.LAYER
    hardware: Hardware = HARDWARE["portable"]
    explore: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.tolerance) or self.tolerance < 0:
            raise ConfigError(f"tolerance is {self.tolerance}; the rule is a number of percentage points, 0 or more")
        budgets = {"weight": self.weight_bits, "activation": self.activation_bits, "RAM": self.ram_bytes}
        for name, budget in budgets.items():
            if budget is not None and not (math.isfinite(budget) and budget > 0):
                raise ConfigError(f"the {name} budget is {budget}; the rule is a number above 0")
        if not self.roundings or len(set(self.roundings)) < len(self.roundings):
            raise ConfigError(f"rounding schemes {[*map(str, self.roundings)]}; give at least one, each once")

    def check_budgets(self, **smallest: float) -> None:
        """Raise ConfigError where the budget for weights or activations is below the smallest possible bits."""
        budgets = {"weight": self.weight_bits, "activation": self.activation_bits}
        for name, bits in smallest.items():
            budget = budgets[name]
            if budget is not None and budget < bits:
                raise ConfigError(
                    f"the {name} budget of {budget / 8:,.0f} bytes is below the smallest possible one for this model,"
                    f" {math.ceil(bits / 8):,} bytes ({bits:,.0f} bits); raise the budget"
                )

    def acceptance(self, reference: PlanResult) -> Acceptance:
        """What a plan must reach against the float model's result.

        >>> import numpy as np
        >>> Request(tolerance=0.3).acceptance(PlanResult("float", np.arange(1000) < 900, 1000, 900, 900)).needed()
        897
        """
        return Acceptance(reference.correct_images, self.tolerance, self.relative)


@dataclass(frozen=True)
class Step:
    """One evaluation of a search and what was decided.

    Attributes:
        step: the part of the algorithm, e.g. ``"3A"``.
        about: what was evaluated, e.g. ``"activations from primary on"``.
        widths: the widths that were evaluated.
        correct, needed: images classified correctly (an estimate where not all were looked at), and how many the
            decision asked for.
        accepted: whether they are correct.
        cost: of the evaluation in full passes, 0 where the answer was known.
        low, high: bounds on ``correct``.
        seen: images looked at; 0 where the hardware cannot run the widths.
    """

    step: str
    about: str
    widths: Widths
    correct: int
    needed: int
    accepted: bool
    cost: float
    low: int
    high: int
    seen: int


@dataclass(frozen=True)
class Candidate:
    """A plan that a search proposes.

    Attributes:
        widths: of the units, from which the plan was made.
        evaluation: its result on the evaluator's images.
        memory: the papers' count for the whole model under the plan.
    """

    widths: Widths
    plan: QuantPlan
    evaluation: PlanResult
    memory: MemoryRow

    def to_json(self) -> dict[str, Any]:
        """Plain data; the plan by its digest."""
        found = self.evaluation
        counts = {"correct": found.correct, "n": found.n, "low": found.low, "high": found.high, "seen": found.seen}
        return {"widths": asdict(self.widths), "plan": self.plan.digest(), **counts, "memory": self.memory.to_json()}


@dataclass(frozen=True)
class Workbench:
    """What a search works with.

    Attributes:
        evaluator: measures plans on the calibration split.
        source: chooses formats.
        footprint_of: lowers a plan and looks at the integers, for RAM budgets, restricted hardware, and the front.
        on_step: called after every decision.
        cache: sensitivities of an interrupted run of the same model; None for none.
        fitted_noise: None where plans are not fitted; else ilp only looks for the noise that the target bears.
        sensitivity_images: how many of the evaluator's images sensitivities are measured on, at even distances.
        team: measures lists of sensitivities; None for this process alone.
        perturbers: those that ``source`` measures with.
    """

    evaluator: Evaluator
    source: FormatSource
    footprint_of: FootprintOf
    on_step: Callable[[Step], None] = lambda step: None
    cache: MeasurementCache | None = None
    fitted_noise: FittedWeights | None = None
    sensitivity_images: int = 64
    team: Team | None = None
    perturbers: tuple[Perturber, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search, by any method.

    Attributes:
        method: its name.
        satisfied: a plan within all limits that keeps the target on the evaluator's images; None where none was found.
        fallbacks: plans within all limits that were measured to keep the target too, in the order in which they are
            worth a look; for when the integers of ``satisfied`` miss the target by an image.
        others: by role, what to ship where no plan is satisfied, the most useful first.
        reference: the float model's result.
        needed: images that must be classified correctly to keep the target.
        rounding: of the plans.
        reason: one sentence on the outcome: what was found, or what binds.
        cost: full passes spent outside the evaluator (sensitivities).
        record: the search's whole story as JSON values.
        frontier: where plans to fit come from; None where the method knows none, or nothing is satisfied.
    """

    method: Method
    satisfied: Candidate | None
    fallbacks: tuple[Candidate, ...]
    others: tuple[tuple[str, Candidate], ...]
    reference: PlanResult
    needed: int
    rounding: Rounding
    reason: str
    cost: float
    record: dict[str, Any]
    frontier: Frontier | None = None

    @property
    def met(self) -> bool:
        """Whether a plan within all limits keeps the target."""
        return self.satisfied is not None

    @property
    def best(self) -> Candidate:
        """The plan to use: the satisfied one, else the most useful other."""
        return self.others[0][1] if self.satisfied is None else self.satisfied


class PlanSearch(ABC):
    """One search with one rounding scheme: it evaluates widths and remembers what was decided.

    Args:
        units: whose widths it sets; None for those of the request's granularity, without the widths above the largest
            uniform one that the hardware can run.
        patience: images after which an evaluation that early decisions did not settle counts as a no; None for all.

    Attributes:
        specs: the model's points by key.
        reference: the float model's result.
        acceptance: what a plan must reach.
        needed: images that must be classified correctly to keep the target.
        steps: every decision, in order.
        keeping: candidates that keep the target and all limits, in order.

    Raises:
        ConfigError: the hardware cannot run even the narrowest widths; the message says why.
    """

    def __init__(
        self,
        bench: Workbench,
        request: Request,
        rounding: Rounding,
        units: Sequence[Unit] | None = None,
        patience: int | None = None,
    ) -> None:
        self.bench, self.request, self.rounding, self.patience = bench, request, rounding, patience
        self.model = bench.evaluator.model
        self.specs = self.model.points()
        self.reference = bench.evaluator.float_result()
        self.acceptance = request.acceptance(self.reference)
        self.needed = self.acceptance.needed()
        self.steps: list[Step] = []
        self.keeping: list[Candidate] = []
        self._plans: dict[Widths, QuantPlan] = {}
        self._footprints: dict[Widths, Footprint] = {}
        self.units = tuple(units or make_units(self.model, request.granularity, request.hardware, request.rule))
        self.units = self._units_that_run()

    @abstractmethod
    def run(self) -> SearchResult:
        """Search."""

    def _units_that_run(self) -> tuple[Unit, ...]:
        """The units without the widths above the largest uniform one that the hardware can run."""
        if self.request.hardware.is_free:
            return self.units
        problem = None
        for width in sorted({width for unit in self.units for width in unit.widths}, reverse=True):
            problem = self.misfit(Widths.uniform(self.units, width))
            if problem is None:
                return tuple(
                    replace(unit, widths=tuple(w for w in unit.widths if w <= max(width, unit.widths[0])))
                    for unit in self.units
                )
        name = self.request.hardware.name
        raise ConfigError(f"model {self.model.family} does not run on hardware {name}: {problem}")

    def plan(self, widths: Widths) -> QuantPlan:
        """The plan of these widths: exponents by the rule, moved where the hardware's shifts ask for it."""
        if widths not in self._plans:
            request = self.request
            plan = make_plan(self.bench.source, self.units, widths, request.rule, self.rounding, request.seed)
            self._plans[widths] = fit_shifts(plan, request.hardware, self.bench.footprint_of)
        return self._plans[widths]

    def footprint(self, widths: Widths) -> Footprint:
        """What the plan of these widths takes on the device. Raises PlanError where it has no integer form."""
        if widths not in self._footprints:
            self._footprints[widths] = self.bench.footprint_of(self.plan(widths))
        return self._footprints[widths]

    def memory(self, widths: Widths) -> MemoryRow:
        """The papers' memory count of the whole model."""
        return width_memory(self.model, self.units, widths, self.request.rule).total

    def misfit(self, widths: Widths) -> str | None:
        """Why the hardware cannot run these widths, or None. Lowers the plan only where the hardware restricts it."""
        if self.request.hardware.is_free:
            return None
        try:
            return self.footprint(widths).problem(self.request.hardware)
        except PlanError as error:
            return str(error)

    def excess(self, widths: Widths) -> str | None:
        """Which budget these widths exceed, as a sentence, or None."""
        memory, request = self.memory(widths), self.request
        for name, bits, budget in (
            ("weights", memory.weight_bits, request.weight_bits),
            ("activations", memory.activation_bits, request.activation_bits),
        ):
            if budget is not None and bits > budget:
                return f"the {name} take {bits / 8:,.0f} bytes, above their budget of {budget / 8:,.0f}"
        if request.ram_bytes is not None and self.footprint(widths).ram_bytes > request.ram_bytes:
            found = self.footprint(widths).ram_bytes
            return f"the arena takes {found:,} bytes of RAM, above its budget of {request.ram_bytes:,}"
        return None

    def evaluate(
        self, step: str, about: str, widths: Widths, needed: int | None = None, *, counted: bool = False
    ) -> bool:
        """Whether at least ``needed`` images are correct; False, unmeasured, where the hardware cannot run the widths.

        Args:
            needed: by default what keeps the target.
            counted: ask for the very number of correct images.
        """
        needed = self.needed if needed is None else needed
        problem = self.misfit(widths)
        if problem is not None:
            self._decide(Step(step, f"{about}: {problem}", widths, 0, needed, False, 0.0, 0, 0, 0))
            return False
        plan, evaluator = self.plan(widths), self.bench.evaluator
        found = evaluator.count(plan) if counted else evaluator.decide(plan, needed, self.patience)
        accepted, more = found.low >= needed, (found.cost, found.low, found.high, found.seen)
        self._decide(Step(step, about, widths, found.correct, needed, accepted, *more))
        known = any(candidate.widths == widths for candidate in self.keeping)
        if found.low >= self.needed and not known and self.excess(widths) is None:
            self.keeping.append(self.candidate(widths))
        return accepted

    def _decide(self, step: Step) -> None:
        self.steps.append(step)
        self.bench.on_step(step)

    def candidate(self, widths: Widths) -> Candidate:
        """These widths as a proposal, with their measured result."""
        plan = self.plan(widths)
        return Candidate(widths, plan, self.bench.evaluator.latest(plan), self.memory(widths))

    def result(
        self,
        method: Method,
        satisfied: Candidate | None,
        reason: str,
        fallbacks: Iterable[Candidate] = (),
        others: Sequence[tuple[str, Candidate]] = (),
        cost: float = 0.0,
        record: Mapping[str, Any] | None = None,
    ) -> SearchResult:
        """The outcome and its record.

        Args:
            others: what to ship where no plan is satisfied.
            cost: what was spent on sensitivities, in full passes.
            record: what the method adds to the record, JSON values.
        """
        proposed = satisfied or (others[0][1] if others else None)
        story = {
            "method": str(method),
            "met": satisfied is not None,
            "rounding": str(self.rounding),
            "granularity": str(self.request.granularity),
            "hardware": self.request.hardware.model_dump(mode="json"),
            "reason": reason,
            "needed": self.needed,
            "reference": {"correct": self.reference.correct, "n": self.reference.n},
            "result": proposed and proposed.to_json(),
            "cost": sum(step.cost for step in self.steps) + cost,
            "sensitivity_cost": cost,
            "steps": [asdict(step) for step in self.steps],
            **(record or {}),
        }
        plans = satisfied, tuple(fallbacks), tuple(others)
        return SearchResult(method, *plans, self.reference, self.needed, self.rounding, reason, cost, story)


def run_each(searches: Iterable[PlanSearch], order: Callable[[SearchResult], int] = lambda result: 0) -> SearchResult:
    """Run one search after the other and take the best result; its record has those of the others.

    The best is one that is met with the smallest memory, weights first; where none is, the one nearest to its target.
    Of equal ones the first by ``order`` wins.
    """

    def preference(result: SearchResult) -> tuple[bool, bool, int, int, int]:
        best = result.best
        missed = best.evaluation.low < result.needed
        return not result.met, missed, best.memory.weight_bits, best.memory.activation_bits, order(result)

    first, *rest = sorted([search.run() for search in searches], key=preference)
    if not rest:
        return first
    record = {**first.record, "others": [result.record for result in rest]}
    return replace(first, record=record, cost=math.fsum(result.cost for result in (first, *rest)))
