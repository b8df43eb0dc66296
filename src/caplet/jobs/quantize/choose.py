"""Which plan of a search ships: the smallest that keeps its promise on fresh images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from caplet.jobs.quantize.promise import Look, Promise, smallest_accepted
from caplet.metrics import loss_limit
from caplet.progress import Note
from caplet.quant.search.search import Candidate, Request, SearchResult

TIGHTER = (0.5, 0.25, 0.0)
"""Fractions of the tolerance that further searches may lose on their own images, where fresh ones will ask for more."""
RUNGS = 6
"""Plans on the ladder that are smaller than the first one looked at."""


@dataclass(frozen=True)
class Rung:
    """A plan of the ladder.

    Attributes:
        candidate: the plan, with its result on the search's images.
        changed: fraction of the answers that are right with one model only, there.
        loss: there, in percentage points.
        limit: what fresh images may be expected to say, in percentage points.
    """

    candidate: Candidate
    changed: float
    loss: float
    limit: float

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
    expected = round(lost * fresh / n), round(min(gained, lost) * fresh / n)  # a search credits itself with luck
    return Rung(
        candidate, (lost + gained) / n, 100 * (lost - gained) / n, loss_limit(fresh, *expected, 1 - promise.error)
    )


def search_to_the_promise(
    search: Callable[[Request], SearchResult], request: Request, promise: Promise, note: Note
) -> list[SearchResult]:
    """Search, then again for less loss as long as fresh images will probably reject what was found."""
    results = [search(request)]
    for fraction in TIGHTER:
        last = results[-1]
        if last.satisfied is None or rung(last.satisfied, last, promise).limit <= promise.tolerance:
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
    likely = [index for index, one in enumerate(ordered) if one.limit <= promise.tolerance]
    start = likely[-1] if likely else 0
    smaller = ordered[start + 1 :]
    step = -(-len(smaller) // RUNGS) or 1
    return [*ordered[: start + 1], *smaller[step - 1 :: step]], start


def keep_the_promise(
    rungs: Sequence[Rung], start: int, promise: Promise, look: Callable[[Rung, float], Look | None]
) -> tuple[Rung, Look] | None:
    """The smallest plan of a ladder that fresh images accept, with what they said; None where they accept none.

    Args:
        look: a decision about a plan with an error; None where the plan does not run on the hardware.
    """
    looks: dict[int, Look] = {}

    def accepted(index: int, error: float) -> bool:
        found = look(rungs[index], error)
        if found is not None:
            looks[index] = found
        return found is not None and found.accepted

    if not rungs:
        return None
    index = smallest_accepted(len(rungs), start, accepted, promise.error)
    return None if index is None else (rungs[index], looks[index])
