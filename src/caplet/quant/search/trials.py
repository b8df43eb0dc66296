"""Trying unit widths: from widths to a plan that fits the hardware, to a measured decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caplet.errors import ConfigError, PlanError
from caplet.fixed import Rounding
from caplet.quant.plan.memory import MemoryRow
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import Footprint, fit_shifts
from caplet.quant.plan.units import Unit, UnitWidths, unit_memory, unit_point_widths
from caplet.quant.search.request import Request, Workbench
from caplet.quant.search.result import Candidate, Step, probed_step


class Trials:
    """All trials of one search with one rounding scheme.

    Args:
        patience: images after which a question that early decisions did not settle counts as a no; None for all.

    Attributes:
        reference: the float model's result.
        needed: images that must be classified correctly to keep the target.
        steps: every decision, in order.
        kept: trials that keep the target and all limits, in order.
    """

    def __init__(
        self,
        bench: Workbench,
        request: Request,
        rounding: Rounding,
        units: Sequence[Unit],
        patience: int | None = None,
    ) -> None:
        self.bench, self.request, self.rounding, self.units = bench, request, rounding, tuple(units)
        self.patience = patience
        self.model = bench.evaluator.model
        self.reference = bench.evaluator.float_result()
        self.needed = request.needed(self.reference)
        self.steps: list[Step[UnitWidths]] = []
        self.kept: list[Candidate[UnitWidths]] = []
        self._plans: dict[UnitWidths, QuantPlan] = {}
        self._footprints: dict[UnitWidths, Footprint] = {}

    def plan(self, widths: UnitWidths) -> QuantPlan:
        """The plan of these widths: exponents by the rule, moved where the hardware's shifts ask for it."""
        if widths not in self._plans:
            chosen = unit_point_widths(self.units, widths)
            rule, source = self.request.rule, self.bench.source
            formats = {key: source.format(key, width, rule, self.rounding) for key, width in chosen.items()}
            plan = QuantPlan(formats, self.rounding, self.request.seed)
            self._plans[widths] = fit_shifts(plan, self.request.hardware, self.bench.footprint_of)
        return self._plans[widths]

    def footprint(self, widths: UnitWidths) -> Footprint:
        """What the plan of these widths takes on the device. Raises PlanError where it has no integer form."""
        if widths not in self._footprints:
            self._footprints[widths] = self.bench.footprint_of(self.plan(widths))
        return self._footprints[widths]

    def memory(self, widths: UnitWidths) -> MemoryRow:
        """The papers' memory count of the whole model."""
        return unit_memory(self.model, self.units, widths, self.request.rule).total

    def misfit(self, widths: UnitWidths) -> str | None:
        """Why the hardware cannot run these widths, or None. Lowers the plan only where the hardware restricts it."""
        if self.request.hardware.is_free:
            return None
        try:
            return self.footprint(widths).problem(self.request.hardware)
        except PlanError as error:
            return str(error)

    def excess(self, widths: UnitWidths) -> str | None:
        """Which budget these widths exceed, in words, or None."""
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

    def attempt(self, step: str, about: str, widths: UnitWidths, needed: int | None = None) -> bool:
        """Measure widths, unless the hardware cannot run them; whether at least ``needed`` images are correct."""
        needed = self.needed if needed is None else needed
        problem = self.misfit(widths)
        if problem is not None:
            self._decide(Step(step, f"{about}: {problem}", widths, 0, needed, False, 0.0, 0, 0, 0))
            return False
        probe = self.bench.evaluator.decide(self.plan(widths), needed, self.patience)
        self._decide(probed_step(step, about, widths, needed, probe))
        if probe.low >= self.needed and self.excess(widths) is None:
            candidate = self.candidate(widths)
            if all(candidate.widths != other.widths for other in self.kept):
                self.kept.append(candidate)
        return self.steps[-1].accepted

    def candidate(self, widths: UnitWidths) -> Candidate[UnitWidths]:
        """These widths as a proposal, with their measured result."""
        plan = self.plan(widths)
        return Candidate(widths, plan, self.bench.evaluator.latest(plan), self.memory(widths))

    def record(self, method: str, result: Candidate[UnitWidths] | None, reason: str, cost: float) -> dict[str, Any]:
        """The search's story as JSON values; ``cost`` is what was spent on susceptibilities, in full passes."""
        return {
            "method": method,
            "rounding": str(self.rounding),
            "granularity": str(self.request.granularity),
            "hardware": self.request.hardware.to_json(),
            "reason": reason,
            "needed": self.needed,
            "reference": {"correct": self.reference.correct, "n": self.reference.n},
            "result": result and result.to_json(),
            "cost": sum(step.cost for step in self.steps) + cost,
            "susceptibility_cost": cost,
            "steps": [step.to_json() for step in self.steps],
        }

    def _decide(self, step: Step[UnitWidths]) -> None:
        self.steps.append(step)
        self.bench.on_step(step)


def fitting_units(bench: Workbench, request: Request, rounding: Rounding, units: Sequence[Unit]) -> tuple[Unit, ...]:
    """``units`` without the widths above the largest uniform one that the hardware can run.

    Raises:
        ConfigError: the hardware cannot run even the narrowest widths; the message says why.
    """
    if request.hardware.is_free:
        return tuple(units)
    trials = Trials(bench, request, rounding, units)
    problem = None
    for width in sorted({width for unit in units for width in unit.widths}, reverse=True):
        problem = trials.misfit(UnitWidths.uniform(units, width))
        if problem is None:
            return tuple(
                replace(unit, widths=tuple(w for w in unit.widths if w <= max(width, unit.widths[0]))) for unit in units
            )
    raise ConfigError(f"model {trials.model.family} does not run on hardware {request.hardware.name}: {problem}")
