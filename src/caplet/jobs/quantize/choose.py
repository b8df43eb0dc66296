"""Which plan of a search ships: the one that its own images accept, or the smallest that keeps its promise on new ones.

Fake-quant and integers may differ in single images, so the integers decide. Where they miss the target by one of them,
the next larger plan that the search had accepted is the answer. With reconstruction, a plan within the budgets that
missed the target is looked at too: fitted, it may keep it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from caplet.acceptance import Acceptance
from caplet.data import Splits
from caplet.jobs.quantize.accept import Choice, Shipper
from caplet.jobs.quantize.promise import Look, Promise, new_loss_limit, smallest_accepted
from caplet.progress import Note
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import Widths
from caplet.quant.search.search import Candidate, Request, SearchResult

Correct = NDArray[np.bool_]
Narrowed = Callable[[QuantPlan], Sequence[QuantPlan]] | None
"""Plans like one with smaller widths, the smallest first."""
TIGHTER = (0.5, 0.25, 0.0)
"""Fractions of the tolerance that further searches may lose on their own images, where fresh ones will ask for more."""
LIKELY = 0.8
"""The first plan looked at should use at most this much of the tolerance: from there on, smaller ones cost no error."""
RUNGS = 6
"""Plans on the ladder that are smaller than the first one looked at."""


@dataclass(frozen=True)
class Rung:
    """A plan of the ladder.

    Attributes:
        candidate: the plan, with its result on the search's images.
        found: the search.
        changed: fraction of the answers that are right with one model only, there.
        loss: there, in percentage points.
        limit: what fresh images may be expected to say, in percentage points.
    """

    candidate: Candidate
    found: SearchResult
    changed: float
    loss: float
    limit: float

    @property
    def plan(self) -> QuantPlan:
        """The candidate's."""
        return self.candidate.plan

    @property
    def size(self) -> float:
        """Weights and activations counted alike, as fractions of their size in float."""
        memory = self.candidate.memory
        return 1 / memory.weight_reduction + 1 / memory.activation_reduction


def rung(candidate: Candidate, found: SearchResult, promise: Promise) -> Rung:
    """A candidate of a search with what its images let expect of fresh ones."""
    before, after = found.reference.correct_images, candidate.evaluation.correct_images
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    n, fresh = len(before), len(promise.fresh.images)
    expected = round(lost * fresh / n), round(min(gained, lost) / 2 * fresh / n)  # a search's gains are luck, in part
    limit = new_loss_limit(fresh, *expected, promise.error)
    return Rung(candidate, found, (lost + gained) / n, 100 * (lost - gained) / n, limit)


def search_to_the_promise(
    search: Callable[[Request], SearchResult], request: Request, promise: Promise, note: Note
) -> list[SearchResult]:
    """Search, then again for less loss as long as fresh images will probably reject what was found."""
    results = [search(request)]
    for fraction in TIGHTER:
        last = results[-1]
        if last.satisfied is None or rung(last.satisfied, last, promise).limit <= LIKELY * promise.tolerance:
            break
        points = fraction * promise.tolerance
        note(
            f"{last.satisfied.evaluation.correct:,} of {last.reference.n:,} images are correct, but new ones would"
            f" probably lose more than {promise.tolerance:.2f} points: searching for at most {points:.2f} here"
        )
        results.append(search(replace(request, tolerance=points, relative=False)))
    return results


def ladder(results: Sequence[SearchResult], promise: Promise) -> tuple[list[Rung], int]:
    """The plans that searches accepted, the largest first, and which of them to look at first; none where none did."""
    rungs: dict[str, Rung] = {}
    for found in results:
        for candidate in (found.satisfied, *found.fallbacks):
            if candidate is not None:
                rungs.setdefault(candidate.plan.digest(), rung(candidate, found, promise))
    ordered = sorted(rungs.values(), key=lambda one: one.size, reverse=True)
    likely = [index for index, one in enumerate(ordered) if one.limit <= LIKELY * promise.tolerance]
    start = likely[-1] if likely else 0
    smaller = ordered[start + 1 :]
    return [*ordered[: start + 1], *_thinned(smaller)], start


def _thinned(smaller: Sequence[Rung]) -> list[Rung]:
    """At most :data:`RUNGS` of them, evenly spaced, the last one among them."""
    step = max(1, math.ceil(len(smaller) / RUNGS))
    return list(smaller[::-1][::step][::-1])


def as_promised(
    shipper: Shipper,
    results: Sequence[SearchResult],
    promise: Promise,
    narrowed: Narrowed,
    note: Note,
) -> Choice:
    """The smallest plan that fresh images accept.

    Where none is within the budgets, and a search found one that ignores them, the reason says what that takes.
    """
    rungs, start = ladder(results, promise)
    if not rungs:
        rungs = [rung(candidate, results[0], promise) for candidate in _proposed(results[0], shipper)]
    elif narrowed is not None:
        known = rungs[start]
        smaller = [replace(known, candidate=_with(shipper, known.candidate, plan)) for plan in narrowed(known.plan)]
        rungs = [*rungs[: start + 1], *_thinned(smaller[::-1])]
    looks: dict[int, Look] = {}

    def accepts(one: Rung, error: float) -> Look | None:
        if problem := shipper.misfit(one.candidate):
            note(f"the plan does not run on {shipper.hardware.name}: {problem}")
            return None
        program = shipper.program(one.candidate)
        return promise.look(lambda images: shipper.hits(program, images), error, one.changed, one.loss)

    def accepted(index: int, error: float) -> bool:
        found = accepts(rungs[index], error)
        if found is not None:
            looks[index] = found
        return found is not None and found.accepted

    index = smallest_accepted(len(rungs), start, accepted, promise.error) if rungs else None
    record = {**promise.to_json(), "looks": [asdict(look) for look in looks.values()]}
    if index is not None:
        chosen, images = rungs[index], shipper.splits.calibration
        correct = shipper.hits(shipper.program(chosen.candidate), images)
        record["expected"] = asdict(looks[index])
        reason = f"the smallest of {len(looks)} plans looked at on fresh images that keeps the tolerance"
        return Choice(True, (("satisfied", chosen.candidate, correct),), chosen.found, reason, record)
    first, reason = results[0], "no plan keeps the tolerance on fresh images"
    beyond = [rung(other, first, promise) for role, other in first.others if role == "accuracy"]
    for one in beyond:
        found = accepts(one, promise.error)
        if found is not None and found.accepted:
            needed = math.ceil(one.candidate.memory.weight_bits / 8)
            reason = f"no plan within the budget keeps the tolerance; {needed:,} bytes of weights probably do"
    reason = reason if first.met or beyond else first.reason
    return Choice(False, _missing(shipper, first, shipper.splits), first, reason, record)


def as_measured(shipper: Shipper, request: Request, found: SearchResult, narrowed: Narrowed, note: Note) -> Choice:
    """Decide by the calibration images that the search saw.

    Where the fit of an accepted plan misses the target, the same plan is looked at with weights rounded to nearest.
    """
    splits = shipper.splits
    acceptance = Acceptance(found.reference.correct_images, request.tolerance, request.relative)
    for candidate in _proposed(found, shipper):
        kept = _kept(shipper, candidate, acceptance, note)
        if kept is None and shipper.fitter.active and found.satisfied is not None:
            # With nearest rounding the search had accepted it.
            shipper.fitter.leave(candidate.plan)
            note("the same plan with weights rounded to nearest:")
            kept = _kept(shipper, candidate, acceptance, note)
            if kept is None:
                shipper.fitter.take_up(candidate.plan)
        if kept is not None:
            if narrowed is not None:
                candidate, kept = _smaller(shipper, candidate, kept, acceptance, narrowed, note)
            if warning := acceptance.warning(kept):
                note(warning)
            fitted = "the plan of the budget keeps the target once it is reconstructed"
            return Choice(True, (("satisfied", candidate, kept),), found, found.reason if found.met else fitted)
    missed = "the integers of every plan that the search accepted miss the target"
    return Choice(False, _missing(shipper, found, splits), found, missed if found.met else found.reason)


def _proposed(found: SearchResult, shipper: Shipper) -> tuple[Candidate, ...]:
    if found.satisfied is not None:
        return (found.satisfied, *found.fallbacks)
    return tuple(other for role, other in found.others if role == "memory" and shipper.fitter.active)


def _missing(shipper: Shipper, found: SearchResult, splits: Splits) -> tuple[tuple[str, Candidate, Correct], ...]:
    """What ships where nothing keeps the target: what is as near as it gets."""
    roles = found.others or (("accuracy", found.best),)
    return tuple((role, other, shipper.hits(shipper.program(other), splits.calibration)) for role, other in roles)


def _kept(shipper: Shipper, candidate: Candidate, acceptance: Acceptance, note: Note) -> NDArray[np.bool_] | None:
    """Which calibration images the candidate's integers have right; None where it does not run or misses the target."""
    problem = shipper.misfit(candidate)
    if problem is not None:
        note(f"the reconstructed plan does not run on {shipper.hardware.name}: {problem}")
        return None
    hits = shipper.hits(shipper.program(candidate), shipper.splits.calibration)
    met = acceptance.accepts(hits)
    note(f"integers on the calibration split: {acceptance.describe(hits)}: {'accepted' if met else 'rejected'}")
    return hits if met else None


def _with(shipper: Shipper, candidate: Candidate, plan: QuantPlan) -> Candidate:
    """The candidate with another plan, whose result on the search's images is not known."""
    widths = Widths(tuple(plan.points), tuple(fmt.bits for fmt in plan.points.values()))
    return replace(candidate, widths=widths, plan=plan, memory=count_memory(shipper.model, plan).total)


def _smaller(
    shipper: Shipper,
    candidate: Candidate,
    kept: NDArray[np.bool_],
    acceptance: Acceptance,
    narrowed: Callable[[QuantPlan], Sequence[QuantPlan]],
    note: Note,
) -> tuple[Candidate, NDArray[np.bool_]]:
    """The smallest narrowed candidate whose integers keep the target on all calibration images, else the candidate."""
    for plan in narrowed(candidate.plan):
        smaller = _with(shipper, candidate, plan)
        problem = shipper.misfit(smaller)
        if problem is not None:
            note(f"a narrowed plan does not run on {shipper.hardware.name}: {problem}")
            continue
        hits = shipper.hits(shipper.program(smaller), shipper.splits.calibration)
        met = acceptance.accepts(hits)
        note(f"integers of a narrowed plan: {acceptance.describe(hits)}: {'accepted' if met else 'rejected'}")
        if met:
            return smaller, hits
    return candidate, kept
