"""The Pareto front: plans of which none is at least as good as another in every respect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caplet.quant.search.search import Candidate


@dataclass(frozen=True)
class FrontPoint:
    """A measured plan and what it costs.

    Attributes:
        candidate: the plan, its measured result, its memory count.
        ram_bytes: the arena's, with all votes stored.
        noise: the additive model's prediction (see :class:`caplet.quant.search.unit_sensitivity.UnitSensitivity`).
    """

    candidate: Candidate
    ram_bytes: int
    noise: float

    @property
    def costs(self) -> tuple[int, int, int, int]:
        """What to keep small: weight bits, activation bits, RAM bytes, images wrong (at most)."""
        memory, found = self.candidate.memory, self.candidate.evaluation
        return memory.weight_bits, memory.activation_bits, self.ram_bytes, found.n - found.low

    def dominates(self, other: FrontPoint) -> bool:
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
            "images_seen": found.looked_at,
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
