"""Trials of fitted plans: their integers on images that neither the fits nor the fresh look see.

Fits take most of the noise out of weights, so the plans of a search are wider than they need be. Where the search knows
the plans of least memory for every noise, smaller ones are fitted and looked at.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Generic, TypeVar

from caplet.data.imageset import ImageSet
from caplet.jobs.quantize.accept import Shipper
from caplet.jobs.quantize.answers import FloatAnswers, PlanAnswers, answers_of
from caplet.jobs.run import correct_images
from caplet.progress import Note
from caplet.quant.measure.log import EvaluationLog, MeasuredImages
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import Widths
from caplet.quant.reconstruct.reduce_bitwidths import reduce_bitwidths
from caplet.quant.search.search import Candidate, Request, SearchResult

FINER = math.sqrt(2)
"""Ratio of the total noises of neighbouring plans whose fits may be looked at."""
QUIETEST, LOUDEST = -32, 4
"""The first and the last of such plans, counted from the noise that the search accepted."""
MISFITS = 4
"""Fitted plans that the hardware cannot run, after which no further ones are fitted."""
_GROWTH, _SLOPES = 0.15, (0.05, 0.5)
"""The logarithm of what a trial says grows by so much from a plan to the next: where nothing is known, and within."""
_DRAWN = 4.0  # as much as trials of two plans, three steps apart, say
_RANGE, _FARTHEST = (1e-3, 1e3), 10
"""What trials say is taken to be within; the next trial is at most so many plans farther on."""

Verdict = Callable[[PlanAnswers], float]
"""What a trial says of the answers to its images: a plan is accepted up to 1, and rejected beyond."""
T = TypeVar("T")


class Lazy(Generic[T]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make, self.made = count, make, dict[int, T]()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index not in self.made:
            self.made[index] = self._make(index)
        return self.made[index]


def last_accepted(count: int, start: int, trial: Callable[[int], float | None]) -> int | None:
    """The last of ``count`` plans of rising noise that a trial accepts, or the one before; None where none is accepted.

    The logarithm of what trials say rises about linearly from plan to plan, so a few trials, each where the line
    through earlier ones crosses the limit, do for many plans; where it does so before the next plan, the search ends.

    Args:
        start: the first plan to try.
        trial: what the trial of plan number ``index`` says: accepted up to 1; None for one that cannot run: as if it
            were not there, up to :data:`MISFITS` of them.

    >>> tried = []
    >>> last_accepted(30, 25, lambda index: tried.append(index) or 1.2 ** (index - 12.5)), tried
    (12, [25, 15, 12])
    """
    known: dict[int, float] = {}
    left, low, high, at, misfits, slope = [*range(count)], -1, count, start, 0, _GROWTH
    while True:
        said, step = trial(at), 0
        left.remove(at)
        misfits += said is None
        if said is not None:
            here = known[at] = math.log(min(max(said, _RANGE[0]), _RANGE[1]))
            low, high = (at, high) if here <= 0 else (low, at)
            slope = min(max(_slope(known), _SLOPES[0]), _SLOPES[1])
            step = min(max(math.ceil(here / slope), -_FARTHEST), _FARTHEST)
        left = [index for index in left if low < index < high]
        between = low >= 0 and high < count
        if misfits == MISFITS or len(left) <= between or (between and known[low] > -slope):
            return low if low >= 0 else None
        at = min(left, key=lambda index: (abs(index - (at - step)), index))


def _slope(known: Mapping[int, float]) -> float:
    """Of the line through what is known, drawn towards :data:`_GROWTH` as far as that is near together: trials of
    neighbours differ more by chance than by noise."""
    mean, middle = (math.fsum(of) / len(known) for of in (known, known.values()))
    spread = math.fsum((index - mean) ** 2 for index in known)
    rise = math.fsum((index - mean) * (one - middle) for index, one in known.items())
    return (rise + _DRAWN * _GROWTH) / (spread + _DRAWN)


@dataclass(frozen=True)
class Fits:
    """Looks at the integers of fitted plans, on the images of the search or on those for trials.

    Attributes:
        lower: widths fall point by point, too.
        images: looked at.
        log: what fitted integers answer; plans of an interrupted run are not fitted again.
    """

    shipper: Shipper
    request: Request
    lower: bool
    images: ImageSet
    note: Note
    log: EvaluationLog

    @cached_property
    def before(self) -> FloatAnswers:
        """What the float model answers."""
        return FloatAnswers(partial(correct_images, self.shipper.reference), self.images)

    def known(self, plan: QuantPlan) -> PlanAnswers | None:
        """What the plan's fitted integers answer; None where they were not asked."""
        lines = self.log.measured.get(plan.digest())
        return None if lines is None else self.shipper.comparable(PlanAnswers(lines[0].correct, lines[0].margins))

    def integers(self, candidate: Candidate, about: str) -> PlanAnswers | None:
        """What the fitted integers answer; None where the hardware cannot run them."""
        plan, memory, began = candidate.plan, candidate.memory, time.perf_counter()
        if (found := self.known(plan)) is not None:
            return found
        program = self.shipper.program(plan, draft=True)
        size = f"fitted, {about}: W {memory.weight_reduction:.2f}x, A {memory.activation_reduction:.2f}x"
        if problem := self.shipper.misfit(program):
            self.note(f"{size}: the plan does not run on {self.shipper.hardware.name}: {problem}")
            return None
        found = answers_of(program, self.images, self.shipper.engine)
        seconds = time.perf_counter() - began
        assert found.margin is not None
        line = MeasuredImages(plan.digest(), 0, found.correct, found.margin, seconds, 1.0)
        self.log.add(line, {"plan": plan.to_json()})
        self.note(f"{size}: {int(found.correct.sum()):,} of {len(found.correct):,} correct")
        return self.shipper.comparable(found)

    def plans(self, found: SearchResult, others: Sequence[Candidate]) -> tuple[Lazy[Candidate], int]:
        """Plans of rising noise and falling memory, and which of them to try first: that of the noise that the search
        accepted, the last of ``others`` where it knows no such plans."""
        base, frontier = found.satisfied, found.frontier
        if base is None or frontier is None:
            return Lazy(len(others), others.__getitem__), len(others) - 1

        def make(index: int) -> Candidate:
            plan = frontier.plan(frontier.noise * FINER ** (QUIETEST + index))
            if plan is not None:
                return with_plan(self.shipper, base, plan)
            return plans[index + 1] if index < -QUIETEST else base  # so quiet a plan exceeds the budgets

        plans = Lazy(LOUDEST - QUIETEST + 1, make)
        return plans, -QUIETEST

    def smallest(self, plans: Lazy[Candidate], start: int, verdict: Verdict) -> int | None:
        """The last of plans whose integers are accepted, as :func:`last_accepted` finds it."""

        def trial(index: int) -> float | None:
            found = self.integers(plans[index], f"plan {index + 1} of {len(plans)}")
            return None if found is None else verdict(found)

        return last_accepted(len(plans), start, trial) if len(plans) else None

    def settle(self, candidate: Candidate, verdict: Verdict) -> None:
        """Leave the end-to-end part of fits out where the plan's integers do no better with it."""
        known, shipper = self.known(candidate.plan), self.shipper
        if known is None or shipper.fitter.draft == shipper.fitter.fit:
            return
        if verdict(shipper.answers(shipper.program(candidate.plan), self.images)) >= verdict(known):
            self.note("fits end to end do no better on these images: left out")
            shipper.fitter.only_draft()

    def lowered(self, base: Candidate, verdict: Verdict) -> list[Candidate]:
        """The plan with lower widths, point by point, whose fitted integers are accepted; the largest first."""
        accepted: list[Candidate] = []

        def holds(plan: QuantPlan, about: str) -> bool:
            candidate = with_plan(self.shipper, base, plan)
            found = self.integers(candidate, about)
            if met := found is not None and verdict(found) <= 1:
                accepted.append(candidate)
            return met

        request, model = self.request, self.shipper.model
        steps = reduce_bitwidths(model, base.plan, self.shipper.source, request.rule, holds, request.hardware)
        self.shipper.fitter.steps.extend(steps)
        return accepted


def with_plan(shipper: Shipper, candidate: Candidate, plan: QuantPlan) -> Candidate:
    """The candidate with another plan, whose result on the search's images is not known."""
    widths = Widths(tuple(plan.points), tuple(fmt.bits for fmt in plan.points.values()))
    return replace(candidate, widths=widths, plan=plan, memory=count_memory(shipper.model, plan).total)
