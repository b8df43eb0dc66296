"""Which plan of a search ships: the one that its own images accept, or the smallest that keeps its promise on new ones.

Fake-quant and integers may differ in single images, so the integers decide. Where they miss the target by one of them,
the next larger plan that the search had accepted is the answer. With reconstruction, a plan within the budgets that
missed the target is looked at too: fitted, it may keep it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain

from caplet.acceptance import Acceptance
from caplet.jobs.quantize.accept import Choice, Shipper
from caplet.jobs.quantize.answers import Correct, PlanAnswers
from caplet.jobs.quantize.promise import Promise, moved, new_loss_limit, smallest_accepted, worst_limit
from caplet.jobs.quantize.trials import MISFITS, Fits, Lazy, T, with_plan
from caplet.jobs.run import correct_images
from caplet.progress import Note
from caplet.quant.choices import Method
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import find_hardware
from caplet.quant.plan.units import uniform_plan
from caplet.quant.search.search import Candidate, Request, SearchResult
from caplet.runs.promised import Look

Search = Callable[[Request], SearchResult]
TIGHTER = (0.5, 0.25, 0.0)
"""Fractions of the tolerance that further searches may lose on their own images, where fresh ones will ask for more."""
LIKELY = 0.8
"""The first plan looked at should use at most this much of the tolerance: from there on, smaller ones cost no error."""
RUNGS = 6
"""Plans on the ladder that are smaller than the first one looked at."""
LUCK = 0.5
"""Of the answers that a search's plan gains on the images of the search, the fraction that new ones may confirm."""
RESERVE = 1
"""Plans from the smallest that other images accept to the first that fresh ones see."""
NOTABLE = 0.98
"""A plan larger than so much of the last one accepted is not worth a fit and a look."""
HOPELESS = 3.0
"""A plan that trials let expect so many times the tolerance, and smaller ones, are not looked at."""
WIDE = (16, 12, 10)
"""Bits everywhere, where no plan that a search proposes is accepted, and no budget forbids it."""


@dataclass(frozen=True)
class Rung:
    """A plan of the ladder.

    Attributes:
        candidate: the plan, with its memory.
        found: the search.
        changed: fraction of the answers that are right with one model only, on the images of the search.
        loss: there, in percentage points.
        limit: what fresh images may be expected to say, in percentage points.
    """

    candidate: Candidate
    found: SearchResult
    changed: float
    loss: float
    limit: float


def _size(candidate: Candidate) -> float:
    """Weights and activations counted alike, as fractions of their size in float."""
    return 1 / candidate.memory.weight_reduction + 1 / candidate.memory.activation_reduction


def rung(
    candidate: Candidate, found: SearchResult, promise: Promise, integers: tuple[Correct, Correct] | None = None
) -> Rung:
    """A plan with what other images let expect of fresh ones.

    Args:
        integers: images that the reference and the fitted integers classify correctly; None for the search's result.
    """
    before = found.reference.correct_images if promise.searched is None else promise.searched
    after, luck = candidate.evaluation.correct_images, LUCK
    if integers is not None:
        before, after, luck = *integers, 1.0
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    n, fresh = len(before), len(promise.fresh.images) if integers is not None else promise.fresh.least
    expected = round(lost * fresh / n), round(luck * min(gained, lost) * fresh / n)
    limit = new_loss_limit(fresh, *expected, promise.error)
    return Rung(candidate, found, (lost + gained) / n, 100 * (lost - gained) / n, limit)


def search_tighter(search: Search, results: list[SearchResult], promise: Promise, request: Request, note: Note) -> None:
    """Search again for less loss as long as fresh images will probably reject what was found."""
    for fraction in TIGHTER:
        last = results[-1]
        if last.satisfied is None or rung(last.satisfied, last, promise).limit <= LIKELY * promise.tolerance:
            break
        points = fraction * min(promise.tolerance, request.tolerance)
        note(
            f"{last.satisfied.evaluation.correct:,} of {last.reference.n:,} images are correct, but new ones would"
            f" probably lose more than {promise.tolerance:.2f} points: searching for at most {points:.2f} here"
        )
        results.append(search(replace(request, tolerance=points, relative=False)))


def ladder(results: list[SearchResult], promise: Promise, shipper: Shipper, request: Request) -> tuple[list[Rung], int]:
    """The plans that searches propose, the largest first, and which of them to look at first."""
    rungs: dict[str, Rung] = {}
    for found in [one for one in results if one.met] or results[:1]:
        for candidate in _proposed(found, shipper, request):
            rungs.setdefault(candidate.plan.digest(), rung(candidate, found, promise))
    wide = [rung(candidate, results[0], promise) for candidate in _wide(results[0], shipper, request)]
    ordered = [*wide, *sorted(rungs.values(), key=lambda one: -_size(one.candidate))]
    start = max((index for index, one in enumerate(ordered) if one.limit <= LIKELY * promise.tolerance), default=0)
    whole = max(start + 1, len(wide))
    return [*ordered[:whole], *_thinned(ordered[whole:])], start


def fitted_ladder(fits: Fits, found: SearchResult, promise: Promise) -> tuple[Lazy[Rung], int]:
    """The same of plans to be fitted. The first one to look at is larger than other images ask for, where one is known:
    a rejection there costs error, smaller plans do not."""
    fresh, images = promise.fresh, fits.images
    partly_moved = fresh.as_is is not None and (fresh.trial is not None or fresh.held_out is None)
    as_is, n = (~moved(images), len(fresh.images)) if partly_moved else (None, fresh.least)

    def expected(candidate: Candidate) -> Rung:
        known = fits.known(candidate.plan)
        return rung(candidate, found, promise, None if known is None else (fits.before.beside(known), known.correct))

    def verdict(answers: PlanAnswers) -> float:
        before, correct = fits.before.beside(answers), answers.correct
        one = rung(found.best, found, promise, (before, correct))
        limit = one.limit + 100 * math.sqrt(one.changed / len(correct))
        worst = worst_limit(before, correct, promise.error, as_is, n)
        return max(limit, worst) / promise.tolerance

    others = [*_wide(found, fits.shipper, fits.request), *_proposed(found, fits.shipper, fits.request)]
    plans, at = fits.plans(found, sorted(others, key=lambda one: -_size(one)))
    last = fits.smallest(plans, at, verdict)
    if last is not None:
        fits.settle(plans[last], verdict)
    if last is not None and fits.lower:
        whole = [*(plans[index] for index in range(last + 1)), *_thinned(fits.lowered(plans[last], verdict))]
        plans = Lazy(len(whole), whole.__getitem__)
    start, limit = max(0, (last or 0) - RESERVE), HOPELESS * promise.tolerance
    beyond = (i for i in sorted(plans.made) if i > start and fits.known(plans[i].plan) is not None)
    end = next((i for i in beyond if expected(plans[i]).limit > limit), len(plans))
    return Lazy(end, lambda index: expected(plans[index])), start


def _thinned(smaller: Sequence[T]) -> list[T]:
    """At most :data:`RUNGS` of them, evenly spaced, the last one among them."""
    step = max(1, math.ceil(len(smaller) / RUNGS))
    return list(smaller[::-1][::step][::-1])


def each_once(
    rungs: Sequence[Rung] | Lazy[Rung], accepts: Callable[[Rung, float], bool | None]
) -> Callable[[int, float], bool | None]:
    """How :func:`smallest_accepted` looks at ``rungs``: at no plan twice (neighbours may be equal), nor at one that is
    hardly smaller than the last one accepted, nor on and on at plans that cannot run."""
    verdicts: dict[QuantPlan, bool | None] = {}
    last = math.inf

    def look(index: int, error: float) -> bool | None:
        nonlocal last
        plan, size = rungs[index].candidate.plan, _size(rungs[index].candidate)
        if plan not in verdicts:
            if size > NOTABLE * last:
                return None
            hopeless = [*verdicts.values()].count(None) >= MISFITS
            verdicts[plan] = False if hopeless else accepts(rungs[index], error)
        last = size if verdicts[plan] else last
        return verdicts[plan]

    return look


def as_promised(
    shipper: Shipper, search: Search, request: Request, promise: Promise, fits: Fits | None, note: Note
) -> tuple[Choice, list[SearchResult]]:
    """The smallest plan that fresh images accept, and all searches, the first one for the whole tolerance.

    Where none is within the budgets, and a search found one that ignores them, the reason says what that takes.
    """
    if shipper.reference is not shipper.model:
        promise.searched = correct_images(shipper.reference, shipper.splits.calibration)
    looks: list[tuple[Rung, Look]] = []

    def smallest(asked: Request) -> tuple[Rung | None, list[SearchResult]]:
        results = [search(asked)]
        if fits is None:
            search_tighter(search, results, promise, asked, note)
            found, start = ladder(results, promise, shipper, asked)
            rungs = Lazy(len(found), found.__getitem__)
        else:
            rungs, start = fitted_ladder(fits, results[0], promise)
        look = each_once(rungs, accepts)
        index = smallest_accepted(len(rungs), start, look, promise.error)
        return (None if index is None else rungs[index]), results

    def accepts(one: Rung, error: float) -> bool | None:
        program = shipper.program(one.candidate.plan)
        if problem := shipper.misfit(program):
            note(f"the plan does not run on {shipper.hardware.name}: {problem}")
            return None
        looks.append((one, promise.look(partial(shipper.answers, program), error, one.changed, one.loss)))
        return looks[-1][1].accepted

    chosen, results = smallest(request)
    record = {**promise.to_json(), "looks": [asdict(look) for _, look in looks]}
    if chosen is not None:
        correct = shipper.hits(shipper.program(chosen.candidate.plan), shipper.splits.calibration)
        record["expected"] = asdict(next(look for _, look in looks[::-1] if look.accepted))
        reason = f"the smallest of {len(looks)} plans looked at on fresh images that keeps the tolerance"
        return Choice(True, (("satisfied", chosen.candidate, correct),), chosen.found, reason, record), results
    first, reason = results[0], "no plan keeps the tolerance on fresh images"
    missing: Sequence[tuple[str, Candidate, Correct]]
    if looks and not first.others:
        near, look = min(looks, key=lambda pair: pair[1].limit)
        record["expected"] = asdict(look)
        correct = shipper.hits(shipper.program(near.candidate.plan), shipper.splits.calibration)
        missing = (("accuracy", near.candidate, correct),)
    else:
        missing = _missing(shipper, first)
    beyond = next((rung(other, first, promise) for role, other in first.others if role == "accuracy"), None)
    if beyond is not None and (_unlimited(request, first) or not accepts(beyond, promise.error)):
        beyond = None
    elif beyond is None and not _unlimited(request, first):
        note("no plan within the budgets is accepted; what it would take:")
        free = replace(request, weight_bits=None, activation_bits=None, ram_bytes=None, explore=True)
        beyond, *_ = smallest(free)
    if beyond is not None:
        bits = (beyond.candidate.memory.weight_bits, beyond.candidate.memory.activation_bits)
        weights, activations = (f"{math.ceil(count / 8):,} bytes" for count in bits)
        reason = "no plan within the budgets keeps the tolerance;"
        reason += f" {weights} of weights and {activations} of activations probably do"
    elif not first.met:
        reason = first.reason
    return Choice(False, tuple(missing), first, reason, record), results


def as_measured(shipper: Shipper, request: Request, found: SearchResult, fits: Fits | None, note: Note) -> Choice:
    """Decide by the calibration images that the search saw.

    Where the fit of an accepted plan misses the target, the same plan is looked at with weights rounded to nearest.
    """
    acceptance = Acceptance(found.reference.correct_images, request.tolerance, request.relative)
    plain = [(False, candidate) for candidate in _proposed(found, shipper, request)]
    fitted = ((True, candidate) for candidate in _fitted(fits, found, acceptance))
    for by_fit, candidate in chain(fitted, plain):
        kept = _kept(shipper, candidate, acceptance, note)
        if kept is None and shipper.fitter.active and found.satisfied is not None and not by_fit:
            # With nearest rounding the search had accepted it.
            shipper.fitter.leave(candidate.plan)
            note("the same plan with weights rounded to nearest:")
            kept = _kept(shipper, candidate, acceptance, note)
            if kept is None:
                shipper.fitter.take_up(candidate.plan)
        if kept is not None:
            if warning := acceptance.warning(kept):
                note(warning)
            reason = found.reason if found.met else "the plan of the budget keeps the target once it is reconstructed"
            if by_fit:
                reason = "the smallest plan whose fitted integers keep the target"
            return Choice(True, (("satisfied", candidate, kept),), found, reason)
    missed = "the integers of every plan that the search accepted miss the target"
    return Choice(False, _missing(shipper, found), found, missed if found.met else found.reason)


def _fitted(fits: Fits | None, found: SearchResult, acceptance: Acceptance) -> Iterator[Candidate]:
    """Plans whose fitted integers keep the target on the search's images, the smallest first."""
    if fits is None:
        return
    allowed = int(acceptance.reference.sum()) - acceptance.needed()

    def verdict(answers: PlanAnswers) -> float:
        lost = int(acceptance.reference.sum()) - int(answers.correct.sum())
        return (max(lost, 0) + 1) / (allowed + 1)

    proposed = _proposed(found, fits.shipper, fits.request)
    plans, at = fits.plans(found, proposed[:1] if fits.lower else ())
    last = fits.smallest(plans, at, verdict)
    if last is None:
        return
    if fits.lower:
        yield from fits.lowered(plans[last], verdict)[::-1]
    yield from (plans[index] for index in range(last, -1, -1))


def _unlimited(request: Request, found: SearchResult) -> bool:
    """Whether there is no budget to keep to; Q-CapsNets always has one."""
    budgets = (request.weight_bits, request.activation_bits, request.ram_bytes)
    return found.method is not Method.QCAPSNETS and budgets == (None, None, None)


def _proposed(found: SearchResult, shipper: Shipper, request: Request) -> tuple[Candidate, ...]:
    """The plans that a search accepted; where it accepted none, what is within the budgets and may be once fitted."""
    if found.satisfied is not None:
        return (found.satisfied, *found.fallbacks)
    roles = ("memory", "accuracy") if _unlimited(request, found) else ("memory",) if shipper.fitter.active else ()
    return tuple(other for role, other in found.others if role in roles)


def _wide(found: SearchResult, shipper: Shipper, request: Request) -> list[Candidate]:
    """Plans of :data:`WIDE` widths, the largest first; none where limits may forbid them, or fits need none."""
    known = shipper.fitter.active and found.frontier is not None
    if known or not _unlimited(request, found) or request.hardware != find_hardware("portable"):
        return []
    widen = partial(uniform_plan, shipper.model, shipper.source, rule=request.rule, rounding=found.rounding)
    return [with_plan(shipper, found.best, widen(bits, seed=request.seed)) for bits in WIDE]


def _missing(shipper: Shipper, found: SearchResult) -> tuple[tuple[str, Candidate, Correct], ...]:
    """What ships where nothing keeps the target: what is as near as it gets."""
    roles, splits = found.others or (("accuracy", found.best),), shipper.splits
    return tuple((role, other, shipper.hits(shipper.program(other.plan), splits.calibration)) for role, other in roles)


def _kept(shipper: Shipper, candidate: Candidate, acceptance: Acceptance, note: Note) -> Correct | None:
    """Which calibration images the candidate's integers have right; None where it does not run or misses the target."""
    program = shipper.program(candidate.plan)
    problem = shipper.misfit(program)
    if problem is not None:
        note(f"the reconstructed plan does not run on {shipper.hardware.name}: {problem}")
        return None
    hits = shipper.hits(program, shipper.splits.calibration)
    met = acceptance.accepts(hits)
    note(f"integers on the calibration split: {acceptance.describe(hits)}: {'accepted' if met else 'rejected'}")
    return hits if met else None
