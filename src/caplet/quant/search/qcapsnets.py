"""The Q-CapsNets search: widths per layer group for an accuracy target and a weight-memory budget.

Source: Marchisio et al., "Q-CapsNets: A Specialized Framework for Quantizing Capsule Networks", DAC 2020, section III,
and its public code where the paper is silent (a step's later groups move together; one floor for all of step 3A).

Differs from the paper and its code: the search sees the evaluator's images (a calibration split), not the test set; the
input image, residual sums, biases and batch norm are quantized too; rounding to nearest is exact (half up) and all
formats saturate; softmax and squash are integer functions; widths stay within 1..16 (a signed computed tensor has at
least 2); exponents are chosen per tensor and biases keep at least 8 bits, unless ``Exponents.PAPER``; the tolerance is
in percentage points unless ``relative``; where the plan of step 3B happens to fit the budget, it counts as satisfied.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.fixed.format import MAX_BITS
from caplet.models.base import CapsNet
from caplet.quant.choices import Method
from caplet.quant.plan.memory import FLOAT_BITS, count_memory
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import ACTIVATIONS, KINDS, ROUTING, WEIGHTS, Widths, group_units, width_memory
from caplet.quant.search.search import Candidate, PlanSearch, Request, SearchResult, Workbench, run_each

DEFAULT_COMPRESSION = 5.0
"""Without a weight budget: this many times fewer weight bits than 32-bit float."""
UNIFORM_FRACTION = 0.05
"""Fraction of the tolerance that step 1 may spend."""
ACTIVATION_FRACTION = 0.55
"""Fraction of what step 2 left of the tolerance that step 3A may spend."""
DEEPEST_DROP = 4
"""How far the weight widths of step 2 fall from the first group to the last ones."""
SIMPLEST_FIRST = (Rounding.TRUNCATE, Rounding.NEAREST, Rounding.CARRY, Rounding.STOCHASTIC)
_TINY = 1e-9  # a tolerance of exactly k images must allow k


def weight_budget(model: CapsNet, request: Request) -> float:
    """Bits for all weights: the request's, or a fifth of their size in 32-bit float."""
    if request.weight_bits is not None:
        return request.weight_bits
    return FLOAT_BITS * count_memory(model).total.weights / DEFAULT_COMPRESSION


def check_qcapsnets(model: CapsNet, request: Request) -> None:
    """Raise ConfigError for limits that the method does not know, or a budget below 1 bit per weight (8 per bias)."""
    limits = {"activation budget": request.activation_bits, "RAM budget": request.ram_bytes}
    unknown = [name for name, limit in limits.items() if limit is not None]
    if request.hardware != HARDWARE["portable"]:
        unknown.append(f"hardware {request.hardware.name}")
    if unknown:
        raise ConfigError(
            f"the method qcapsnets knows a tolerance and a weight budget, but no {' and no '.join(unknown)}; use"
            " progressive or ilp"
        )
    units = group_units(model)
    smallest = width_memory(model, units, Widths.uniform(units, 1), request.rule).total.weight_bits
    replace(request, weight_bits=weight_budget(model, request)).check_budgets(weight=smallest)


def search_qcapsnets(bench: Workbench, request: Request) -> SearchResult:
    """Run the search with every rounding scheme asked for; deterministic, resumed for free from the evaluator's log.

    Every layer group has up to three units (:func:`caplet.quant.plan.units.group_units`): the request's granularity
    does not matter.

    Returns:
        The best scheme's result, the simplest scheme's on a tie. Where no plan is satisfied, ``others`` has the papers'
        model_accuracy (the plan of step 3B, which ignores the budget) and model_memory (of step 2, within the budget).

    Raises:
        ConfigError: limits that the method does not know; a budget below the smallest possible one, 1 bit per weight
            (and 8 per bias); the message says how much that is.
    """
    check_qcapsnets(bench.evaluator.model, request)
    request = replace(request, weight_bits=weight_budget(bench.evaluator.model, request))
    searches = (QCapsNetsSearch(bench, request, rounding) for rounding in request.roundings)
    return run_each(searches, lambda result: SIMPLEST_FIRST.index(result.rounding))


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


class QCapsNetsSearch(PlanSearch):
    """One search with one rounding scheme."""

    def __init__(self, bench: Workbench, request: Request, rounding: Rounding) -> None:
        super().__init__(bench, request, rounding, group_units(bench.evaluator.model))
        self.groups = self.model.groups()
        place = {unit.name: index for index, unit in enumerate(self.units)}
        self.places = {
            kind: {group: place[name] for group in self.groups if (name := f"{group} {kind}") in place}
            for kind in KINDS
        }

    def run(self) -> SearchResult:
        start = self._uniform()
        profile = weight_profile(len(self.groups), lambda widths: self.excess(self._weighted(start, widths)) is None)
        assert profile is not None  # one bit per weight fits: checked before the search
        within = self._weighted(start, profile)
        kept = self.evaluate("2", "weights within the budget", within, counted=True)
        memory = self.candidate(within)
        if kept:
            correct = memory.evaluation.correct
            needed = correct - math.floor(ACTIVATION_FRACTION * (correct - self.needed) + _TINY)
            lower = self._descend("3A", ACTIVATIONS, within, needed)
            satisfied = self.candidate(self._descend("4A", ROUTING, lower, self.needed))
            return self._result(satisfied, memory, None, "step 2 kept the target within the budget (branch A)")
        accuracy = self.candidate(self._descend("3B", WEIGHTS, start, self.needed))
        if accuracy.evaluation.low < self.needed:
            return self._result(None, memory, accuracy, "not even 16 bits everywhere keep the target")
        if self.excess(accuracy.widths) is None:
            reason = "step 2 missed the target, but the weights of step 3B fit the budget (branch B)"
            return self._result(accuracy, memory, accuracy, reason)
        reason = "no plan found keeps both: model_memory fits the budget, model_accuracy keeps the target (branch B)"
        return self._result(None, memory, accuracy, reason)

    def _uniform(self) -> Widths:
        """Step 1, by bisection; 16 bits where no width spends as little as asked."""
        needed = self.acceptance.needed(UNIFORM_FRACTION)

        def keeps(width: int) -> bool:
            return self.evaluate("1", f"{width} bits everywhere", Widths.uniform(self.units, width), needed)

        return Widths.uniform(self.units, 1 + bisect_left(range(1, MAX_BITS), True, key=keeps))

    def _weighted(self, widths: Widths, profile: tuple[int, ...]) -> Widths:
        """Widths with one weight width for each group."""
        for group, width in zip(self.groups, profile, strict=True):
            if group in self.places[WEIGHTS]:
                widths = widths.with_width(self.places[WEIGHTS][group], width)
        return widths

    def _descend(self, step: str, kind: str, widths: Widths, needed: int) -> Widths:
        """Group by group: lower one kind of width from it on as long as ``needed`` images are correct."""
        for group in self.places[ROUTING] if kind == ROUTING else self.groups:
            about = f"{kind} from {group} on"
            while (lower := self.lowered(widths, kind, group)) != widths and self.evaluate(step, about, lower, needed):
                widths = lower
        return widths

    def lowered(self, widths: Widths, kind: str, first: str) -> Widths:
        """One bit less of one kind from a group on, where a unit can; routing widths follow activation widths."""
        for group in self.groups[self.groups.index(first) :]:
            if (index := self.places[kind].get(group)) is not None:
                bits = self.units[index].below(widths.bits[index]) or widths.bits[index]
                widths = widths.with_width(index, bits)
        if kind == ACTIVATIONS:
            for group, index in self.places[ROUTING].items():
                bits = widths.bits[self.places[ACTIVATIONS][group]]
                widths = widths.with_width(index, self.units[index].at_most(bits))
        return widths

    def _result(
        self, satisfied: Candidate | None, memory: Candidate, accuracy: Candidate | None, reason: str
    ) -> SearchResult:
        """Fall back on plans that a step had accepted before, the last ones first."""
        accepted = {step.widths for step in self.steps if step.accepted}
        fallbacks = [
            candidate
            for candidate in reversed(self.keeping)
            if satisfied is not None and candidate.widths in accepted and candidate.widths != satisfied.widths
        ]
        others = [("memory", memory)] if accuracy is None else [("accuracy", accuracy), ("memory", memory)]
        record = {role: other.to_json() for role, other in others}
        return self.result(Method.QCAPSNETS, satisfied, reason, fallbacks, others, record=record)
