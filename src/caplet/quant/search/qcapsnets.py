"""The Q-CapsNets search: widths per layer group for an accuracy target and a weight-memory budget.

Source: Marchisio et al., "Q-CapsNets: A Specialized Framework for Quantizing Capsule Networks", DAC 2020, section III,
and its public code where the paper is silent (a step's later groups move together; one floor for all of step 3A).

Differs from the paper and its code: the search sees the evaluator's images (a calibration split), not the test set; the
input image, residual sums, biases and batch norm are quantized too; rounding to nearest is exact (half up) and all
formats saturate; softmax and squash are integer functions; widths stay within 1..16 (a signed computed tensor has at
least 2); exponents are chosen per tensor and biases keep at least 8 bits, unless ``Exponents.PAPER``; the tolerance is
in percentage points unless ``relative``; where the plan of step 3B happens to fit the budget, it counts as satisfied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.models.base import CapsNet
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.widths import Widths, group_points, is_routing, make_plan, width_memory
from caplet.quant.search.result import Candidate, QCapsNetsResult, Step, probed_step

UNIFORM_SHARE = 0.05
"""Share of the tolerance that step 1 may spend."""
ACTIVATION_SHARE = 0.55
"""Share of what step 2 left of the tolerance that step 3A may spend."""
DEEPEST_DROP = 4
"""How far the weight widths of step 2 fall from the first group to the last ones."""
Kind = Literal["weights", "activations", "routing"]
SIMPLEST_FIRST = (Rounding.TRUNCATE, Rounding.NEAREST, Rounding.STOCHASTIC)
_TINY = 1e-9  # a tolerance of exactly k images must allow k


@dataclass(frozen=True)
class QCapsNetsSettings:
    """What to search for.

    Attributes:
        tolerance: accepted loss of accuracy in percentage points; with ``relative`` in percent of the float accuracy
            (the paper's).
        budget_bits: bits for all weights, biases and batch-norm constants (5 MB = 5e6 bytes = 4e7 bits).
        roundings: the schemes to try; the smallest result that meets the target wins, the simplest on a tie.
        rule: how widths become formats.
        seed: of stochastic rounding.

    Raises:
        ConfigError: a negative, infinite or NaN tolerance or budget; no scheme, or one twice.
    """

    tolerance: float
    budget_bits: float
    relative: bool = False
    roundings: tuple[Rounding, ...] = (Rounding.NEAREST,)
    rule: FormatRule = field(default_factory=FormatRule)
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.tolerance) or self.tolerance < 0:
            raise ConfigError(f"tolerance is {self.tolerance}; the rule is a number of percentage points, 0 or more")
        if not math.isfinite(self.budget_bits) or self.budget_bits <= 0:
            raise ConfigError(f"the weight budget is {self.budget_bits} bits; the rule is a number above 0")
        if not self.roundings or len(set(self.roundings)) < len(self.roundings):
            raise ConfigError(f"rounding schemes {[*map(str, self.roundings)]}; give at least one, each once")


def check_budget(model: CapsNet, settings: QCapsNetsSettings) -> None:
    """Raise ConfigError, saying the smallest possible budget, where the budget is below 1 bit per weight."""
    smallest = width_memory(model, Widths.uniform(len(model.groups()), 1), settings.rule).total.weight_bits
    if settings.budget_bits < smallest:
        raise ConfigError(
            f"the weight budget of {settings.budget_bits / 8:,.0f} bytes is below the smallest possible one for this"
            f" model, {math.ceil(smallest / 8):,} bytes ({smallest:,} bits); raise the budget"
        )


def search_qcapsnets(
    evaluator: Evaluator,
    source: FormatSource,
    settings: QCapsNetsSettings,
    on_step: Callable[[Step], None] | None = None,
) -> QCapsNetsResult:
    """Run the search; deterministic, and resumed for free where the evaluator's log already holds the answers.

    Args:
        source: chooses the formats: a calibration, or a tuner on top of one.
        on_step: called after every decision.

    Returns:
        The result of the winning rounding scheme; ``met`` says whether target and budget are both kept.

    Raises:
        ConfigError: the budget is below the smallest possible one, 1 bit per weight (and 8 per bias); the message says
            how much that is.
    """
    check_budget(evaluator.model, settings)
    results = [_Search(evaluator, source, settings, scheme, on_step).run() for scheme in settings.roundings]
    results.sort(key=_preference)
    return replace(results[0], others=tuple(results[1:]))


def _preference(result: QCapsNetsResult) -> tuple[bool, bool, int, int, int]:
    kept = result.best.probe.low >= result.needed
    memory = result.best.memory
    simplicity = SIMPLEST_FIRST.index(result.rounding)
    return not result.met, not kept, memory.weight_bits, memory.activation_bits, simplicity


def weight_profile(groups: int, fits: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...] | None:
    """Step 2: the largest widths N, N-1, N-2, N-3, N-4, N-4, ... that fit, flatter where one would fall under 1.

    Returns None where not even one bit everywhere fits.

    >>> weight_profile(6, lambda widths: sum(widths) <= 30)
    (7, 6, 5, 4, 3, 3)
    >>> weight_profile(6, lambda widths: sum(widths) <= 11)
    (3, 2, 1, 1, 1, 1)
    """
    for deepest in range(DEEPEST_DROP, -1, -1):
        drops = [min(group, deepest) for group in range(groups)]
        for width in range(MAX_BITS, max(drops), -1):
            widths = tuple(width - drop for drop in drops)
            if fits(widths):
                return widths
    return None


class _Search:
    """One search with one rounding scheme."""

    def __init__(
        self,
        evaluator: Evaluator,
        source: FormatSource,
        settings: QCapsNetsSettings,
        rounding: Rounding,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        self.evaluator, self.source, self.settings, self.rounding = evaluator, source, settings, rounding
        self.on_step = on_step
        self.model = evaluator.model
        self.names = self.model.groups()
        self.routed = [any(map(is_routing, points.values())) for points in group_points(self.model).values()]
        self.reference = evaluator.float_result()
        scale = self.reference.accuracy if settings.relative else 1.0
        self.allowed = settings.tolerance / 100 * scale * self.reference.n  # images that may be lost
        self.needed = self._needed(self.allowed)
        self.steps: list[Step] = []

    def run(self) -> QCapsNetsResult:
        start = self._uniform()
        profile = weight_profile(len(self.names), lambda widths: self._fits(replace(start, weights=widths)))
        assert profile is not None  # one bit per weight fits: checked before the search
        within = replace(start, weights=profile)
        kept = self._try("2", "weights within the budget", within, self.needed, counted=True)
        memory = self._candidate(within)
        if kept:
            found = self._activations(within, memory.probe.correct)
            satisfied = self._candidate(self._routing(found))
            return self._result(satisfied, memory, None, "step 2 kept the target within the budget (branch A)")
        accuracy = self._candidate(self._weights(start))
        if accuracy.probe.low < self.needed:
            return self._result(None, memory, accuracy, "not even 16 bits everywhere keep the target")
        if self._fits(accuracy.widths):
            reason = "step 2 missed the target, but the weights of step 3B fit the budget (branch B)"
            return self._result(accuracy, memory, accuracy, reason)
        reason = "no plan found keeps both: model_memory fits the budget, model_accuracy keeps the target (branch B)"
        return self._result(None, memory, accuracy, reason)

    def _uniform(self) -> Widths:
        """Step 1, by bisection; 16 bits where no width spends as little as asked."""
        needed = self._needed(UNIFORM_SHARE * self.allowed)
        low, high = 1, MAX_BITS
        while low < high:
            middle = (low + high) // 2
            widths = Widths.uniform(len(self.names), middle)
            low, high = (
                (low, middle) if self._try("1", f"{middle} bits everywhere", widths, needed) else (middle + 1, high)
            )
        return Widths.uniform(len(self.names), high)

    def _activations(self, widths: Widths, correct: int) -> Widths:
        """Step 3A."""
        needed = correct - math.floor(ACTIVATION_SHARE * (correct - self.needed) + _TINY)
        for group in range(len(self.names)):
            widths = self._descend("3A", "activations", group, widths, needed)
        return widths

    def _routing(self, widths: Widths) -> Widths:
        """Step 4A."""
        for group, routed in enumerate(self.routed):
            if routed:
                widths = self._descend("4A", "routing", group, widths, self.needed)
        return widths

    def _weights(self, widths: Widths) -> Widths:
        """Step 3B."""
        for group in range(len(self.names)):
            widths = self._descend("3B", "weights", group, widths, self.needed)
        return widths

    def _descend(self, step: str, kind: Kind, group: int, widths: Widths, needed: int) -> Widths:
        """Lower one kind of width from a group on as long as the probes reach ``needed``."""
        about = f"{kind} from {self.names[group]} on"
        while (tried := lowered(widths, kind, group)) != widths and self._try(step, about, tried, needed):
            widths = tried
        return widths

    def _try(self, step: str, about: str, widths: Widths, needed: int, *, counted: bool = False) -> bool:
        """Whether the widths reach ``needed``; ``counted`` asks for the very number of correct images."""
        plan = self._plan(widths)
        probe = self.evaluator.count(plan) if counted else self.evaluator.decide(plan, needed)
        self.steps.append(probed_step(step, about, widths, needed, probe))
        if self.on_step is not None:
            self.on_step(self.steps[-1])
        return self.steps[-1].accepted

    def _plan(self, widths: Widths) -> QuantPlan:
        settings = self.settings
        return make_plan(self.model, self.source, widths, settings.rule, self.rounding, settings.seed)

    def _candidate(self, widths: Widths) -> Candidate:
        plan = self._plan(widths)
        total = width_memory(self.model, widths, self.settings.rule).total
        return Candidate(widths, plan, self.evaluator.latest(plan), total)

    def _fits(self, widths: Widths) -> bool:
        return width_memory(self.model, widths, self.settings.rule).total.weight_bits <= self.settings.budget_bits

    def _needed(self, allowed: float) -> int:
        return self.reference.correct - math.floor(allowed + _TINY)

    def _result(
        self, satisfied: Candidate | None, memory: Candidate, accuracy: Candidate | None, reason: str
    ) -> QCapsNetsResult:
        met = satisfied is not None
        steps = tuple(self.steps)
        return QCapsNetsResult(
            self.rounding, met, satisfied, memory, accuracy, self.reference, self.needed, steps, reason
        )


def lowered(widths: Widths, kind: Kind, first: int) -> Widths:
    """One bit less of one kind from group ``first`` on; routing widths follow activation widths.

    At least 1 bit stays, and 2 for routing widths, whose tensors are all signed.

    >>> lowered(Widths(weights=(8, 8, 1), activations=(8, 8, 8), routing=(8, 8, 8)), "weights", 1)
    Widths(weights=(8, 7, 1), activations=(8, 8, 8), routing=(8, 8, 8))
    """

    def less(bits: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
        return (*bits[:first], *(max(min(least, width), width - 1) for width in bits[first:]))

    if kind == "weights":
        return replace(widths, weights=less(widths.weights))
    if kind == "activations":
        return widths.with_activations(less(widths.activations))
    return replace(widths, routing=less(widths.routing, 2))
