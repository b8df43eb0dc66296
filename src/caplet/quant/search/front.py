"""The Pareto front: plans of which none is at least as good as another in every respect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from caplet.quant.plan.units import UnitWidths
from caplet.quant.search.result import Candidate


@dataclass(frozen=True)
class FrontPoint:
    """A measured plan and what it costs.

    Attributes:
        candidate: the plan, its measured result, its memory count.
        ram_bytes: the arena's, with all votes stored.
        noise: the additive model's prediction (see :class:`caplet.quant.search.unit_sensitivity.Susceptibility`).
    """

    candidate: Candidate[UnitWidths]
    ram_bytes: int
    noise: float

    @property
    def costs(self) -> tuple[int, int, int, int]:
        """What to keep small: weight bits, activation bits, RAM bytes, images wrong (at most)."""
        memory, probe = self.candidate.memory, self.candidate.probe
        return memory.weight_bits, memory.activation_bits, self.ram_bytes, probe.n - probe.low

    def dominates(self, other: FrontPoint) -> bool:
        """Whether this point is at least as good in every respect, and better in one."""
        mine, theirs = self.costs, other.costs
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def to_json(self, reference: int) -> dict[str, Any]:
        """Plain data with the plan; losses are in percentage points against ``reference`` correct images.

        ``loss_at_least`` and ``loss_at_most`` differ where not all images were looked at (see
        :mod:`caplet.quant.measure.early_decision`); ``loss`` is then an estimate.
        """
        memory, probe = self.candidate.memory, self.candidate.probe
        return {
            "weight_bytes": memory.weight_bits / 8,
            "activation_bytes": memory.activation_bits / 8,
            "ram_bytes": self.ram_bytes,
            "loss": 100 * (reference - probe.correct) / probe.n,
            "loss_at_least": 100 * (reference - probe.high) / probe.n,
            "loss_at_most": 100 * (reference - probe.low) / probe.n,
            "images_seen": probe.looked_at,
            "weight_reduction": memory.weight_reduction,
            "activation_reduction": memory.activation_reduction,
            "noise": self.noise,
            "widths": dict(zip(self.candidate.widths.names, self.candidate.widths.bits, strict=True)),
            "plan": self.candidate.plan.to_json(),
        }


@dataclass
class Front:
    """All measured points, in the order in which they were added."""

    points: list[FrontPoint] = field(default_factory=list)

    def add(self, point: FrontPoint) -> None:
        """Add a point, once."""
        if all(point.candidate.widths != known.candidate.widths for known in self.points):
            self.points.append(point)

    def best(self) -> list[FrontPoint]:
        """The points that no other one dominates, the fewest weight bits first."""
        kept = [point for point in self.points if not any(other.dominates(point) for other in self.points)]
        return sorted(kept, key=lambda point: point.costs)

    def most_accurate(self) -> Candidate[UnitWidths]:
        """The plan with the most correct images, the smallest of several. Raises ValueError without any point."""
        return min(self.points, key=lambda point: (point.costs[3], point.costs)).candidate

    def to_json(self, reference: int) -> list[dict[str, Any]]:
        """The front as plain data."""
        return [point.to_json(reference) for point in self.best()]
