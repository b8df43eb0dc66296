"""What a search by target and budget returns: candidates, the steps that led there, and why it stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from caplet.fixed import Rounding
from caplet.models.base import CapsNet
from caplet.quant.measure.evaluator import PlanResult
from caplet.quant.plan.memory import MemoryRow
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import UnitWidths
from caplet.quant.plan.widths import Widths, describe

W = TypeVar("W", bound=Widths | UnitWidths)


@dataclass(frozen=True)
class Step(Generic[W]):
    """One probe of a search and what was decided.

    Attributes:
        step: the part of the algorithm, e.g. ``"3A"``.
        about: what was tried, e.g. ``"activations from primary on"``.
        widths: the widths that were tried.
        correct, needed: images classified correctly (an estimate where not all were looked at), and how many the
            decision asked for.
        accepted: whether the widths were kept.
        cost: of the evaluation in full passes, 0 where the answer was known.
        low, high: bounds on ``correct``.
        seen: images looked at; 0 where the hardware cannot run the widths.
    """

    step: str
    about: str
    widths: W
    correct: int
    needed: int
    accepted: bool
    cost: float
    low: int
    high: int
    seen: int

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def probed_step(step: str, about: str, widths: W, needed: int, probe: PlanResult) -> Step[W]:
    """The step that a probe decides: accepted where at least ``needed`` images are correct."""
    accepted = probe.low >= needed
    return Step(
        step, about, widths, probe.correct, needed, accepted, probe.cost, probe.low, probe.high, probe.looked_at
    )


@dataclass(frozen=True)
class Candidate(Generic[W]):
    """A plan that a search proposes.

    Attributes:
        widths: of the groups or units, from which the plan was made.
        probe: its result on the evaluator's images.
        memory: the papers' count for the whole model under the plan.
    """

    widths: W
    plan: QuantPlan
    probe: PlanResult
    memory: MemoryRow

    def to_json(self) -> dict[str, Any]:
        """Plain data; the plan by its digest."""
        return {
            "widths": asdict(self.widths),
            "plan": self.plan.digest(),
            "correct": self.probe.correct,
            "n": self.probe.n,
            "low": self.probe.low,
            "high": self.probe.high,
            "seen": self.probe.looked_at,
            "memory": self.memory.to_json(),
        }


def width_table(model: CapsNet, candidate: Candidate[Any]) -> dict[str, dict[str, int | str]]:
    """A candidate's widths for tables: layer group -> weights, activations, routing; a range where they differ.

    Of group widths the widths themselves, of unit widths the bits in use; a group without routing has none then.
    """
    if isinstance(candidate.widths, Widths):
        widths = candidate.widths
        rows = zip(model.groups(), widths.weights, widths.activations, widths.routing, strict=True)
        return {name: {"weights": w, "activations": a, "routing": r} for name, w, a, r in rows}
    return {
        group: {kind: bits[0] if len(bits) == 1 else f"{bits[0]}-{bits[-1]}" for kind, bits in kinds.items()}
        for group, kinds in describe(model, candidate.plan).items()
    }


@dataclass(frozen=True)
class QCapsNetsResult:
    """The outcome of a Q-CapsNets search with one rounding scheme.

    Attributes:
        met: whether a plan within the budget keeps the accuracy target on the evaluator's images.
        satisfied: that plan (the papers' model_satisfied), None where ``met`` is false.
        memory: the plan of step 2, within the budget (model_memory); the target may be missed.
        accuracy: the plan of step 3B, which ignores the budget (model_accuracy), None in branch A. It may miss the
            target only where step 1 found no width that keeps it.
        reference: the float model's result.
        needed: images that must be classified correctly to keep the target.
        steps: every decision, in order.
        reason: one sentence on the outcome.
        others: results with the other rounding schemes, where several were tried.
    """

    rounding: Rounding
    met: bool
    satisfied: Candidate[Widths] | None
    memory: Candidate[Widths]
    accuracy: Candidate[Widths] | None
    reference: PlanResult
    needed: int
    steps: tuple[Step[Widths], ...]
    reason: str
    others: tuple[QCapsNetsResult, ...] = ()

    @property
    def best(self) -> Candidate[Widths]:
        """The plan to use: the satisfied one, else the one that keeps the accuracy."""
        found = self.satisfied or self.accuracy
        return self.memory if found is None else found

    @property
    def cost(self) -> float:
        """Cost of all probes of this scheme, in full passes."""
        return sum(step.cost for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a run's record."""
        return {
            "rounding": str(self.rounding),
            "met": self.met,
            "reason": self.reason,
            "satisfied": self.satisfied and self.satisfied.to_json(),
            "memory": self.memory.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "reference": {"correct": self.reference.correct, "n": self.reference.n},
            "needed": self.needed,
            "cost": self.cost,
            "steps": [step.to_json() for step in self.steps],
            "others": [other.to_json() for other in self.others],
        }
