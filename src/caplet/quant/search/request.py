"""What a search is asked for, and what every search answers: the shapes that all methods share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.quant.choices import Granularity
from caplet.quant.measure.evaluator import Evaluator, PlanResult
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.target import HARDWARE, FootprintOf, Hardware
from caplet.quant.search.result import Candidate, Step

SENSITIVITY_IMAGES = 64
"""Calibration images on which one-at-a-time sensitivities are measured."""
_TINY = 1e-9  # a tolerance of exactly k images must allow k


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

    def allowed(self, reference: PlanResult) -> float:
        """Images that may be lost against the float model's result."""
        scale = reference.accuracy if self.relative else 1.0
        return self.tolerance / 100 * scale * reference.n

    def needed(self, reference: PlanResult, share: float = 1.0) -> int:
        """Images that must be classified correctly where ``share`` of the tolerance may be spent.

        >>> import numpy as np
        >>> Request(tolerance=0.3).needed(PlanResult("float", np.arange(1000) < 900, 0.0, 1.0))
        897
        """
        return reference.correct - math.floor(share * self.allowed(reference) + _TINY)


@dataclass(frozen=True)
class Workbench:
    """What a search works with.

    Attributes:
        evaluator: measures plans on the calibration split.
        source: chooses formats.
        footprint_of: lowers a plan and looks at the integers, for RAM budgets and restricted hardware.
        on_step: called after every decision.
        cache: sensitivities that an interrupted run of the same model measured; None for none.
    """

    evaluator: Evaluator
    source: FormatSource
    footprint_of: FootprintOf
    on_step: Callable[[Step[Any]], None] = lambda step: None
    cache: MeasurementCache | None = None


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search, by any method.

    Attributes:
        method: its name.
        met: whether a plan within all limits keeps the target on the evaluator's images.
        satisfied: that plan, None where ``met`` is false.
        fallbacks: plans within all limits that were measured to keep the target too, the smallest first; for when the
            integers of ``satisfied`` miss the target by an image.
        others: by role, what to ship where no plan is satisfied, the most useful first.
        reference: the float model's result.
        needed: images that must be classified correctly to keep the target.
        rounding: of the plans.
        reason: one sentence on the outcome: what was found, or what binds.
        cost: full passes spent outside the evaluator (sensitivities).
        record: the search's whole story as JSON values.
    """

    method: str
    met: bool
    satisfied: Candidate[Any] | None
    fallbacks: tuple[Candidate[Any], ...]
    others: tuple[tuple[str, Candidate[Any]], ...]
    reference: PlanResult
    needed: int
    rounding: Rounding
    reason: str
    cost: float
    record: dict[str, Any]

    @property
    def best(self) -> Candidate[Any]:
        """The plan to use: the satisfied one, else the most useful other."""
        return self.others[0][1] if self.satisfied is None else self.satisfied
