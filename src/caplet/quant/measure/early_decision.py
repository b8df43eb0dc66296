"""Early decisions: how many of a fixed set of images a plan classifies correctly, bounded from a part of them.

Three kinds of bounds are combined, the tightest counts: certain ones; sampled ones, from the random images among those
looked at; and ones by margins, which take the chance that a margin moves by more than m to be at most exp(1 - m / b),
with b the upper confidence limit of the mean absolute move, or more where the largest move asks for it. Images with
margins of up to twice those looked at are taken to move no more than these, all others no more than the random ones.
docs/evaluation.md says what follows if that does not hold; a search's final plan is accepted on all images.

Sources: the sampled bound is the textbook confidence limit of a finite population; the split of the error over
evaluations, looks and bounds is a union bound. The bound by margins is caplet's own.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from caplet.settings import Many, Seed, Settings

NEIGHBOURS = 2
"""Plans measured before, at most, that an evaluation may lean on."""
_EARLY = 16  # evaluations that get half of the error probability
_SAMPLED = 0.01  # of a look's error probability, for each of the four sampled bounds
_MARGIN = (1 - 4 * _SAMPLED) / 4 / (1 + NEIGHBOURS)  # for each bound by margins: two scales, losses, gains, by base
_LARGEST = 0.05  # the largest of exponential moves is above b * log(n / this) so often


class EarlyRule(Settings):
    """How early decisions are made.

    Attributes:
        error: probability that any bound of a whole search is wrong, under the assumption above; split over
            evaluations, looks and bounds.
        random_fraction: of the images, those taken at random instead of by their margin.
        first: images before the first look.
        growth: images looked at by each look, relative to the look before.
        seed: of the random images.

    Raises:
        ConfigError: a probability outside 0..0.5, a fraction outside 0..1, a growth of 1 or less, ...
    """

    where = "early decisions"

    error: float = Field(default=1e-2, gt=0, lt=0.5)
    random_fraction: float = Field(default=0.15, gt=0, lt=1, serialization_alias="random_share")  # as logs have it
    first: Many = 100
    growth: float = Field(default=1.2, ge=1.001, le=1000)
    seed: Seed = 0

    def looks(self, n: int, step: int = 1) -> list[int]:
        """How many of ``n`` images are looked at by each look, in multiples of ``step``; the last look has all.

        >>> EarlyRule(first=100, growth=1.5).looks(1000, 50)
        [100, 150, 250, 400, 600, 900, 1000]
        """
        counts = [min(math.ceil(self.first / step) * step, n)]
        while counts[-1] < n:
            counts.append(min(n, max(counts[-1] + step, math.ceil(counts[-1] * self.growth / step) * step)))
        return counts

    def evaluation_error(self, evaluation: int) -> float:
        """The probability that the answer of evaluation 1, 2, ... is wrong; all of them sum up to ``error``.

        Half of it goes to the first ``_EARLY`` evaluations, about as many as a search makes, in parts of similar size.
        """
        return self.error * _EARLY / ((evaluation + _EARLY - 1) * (evaluation + _EARLY))


@dataclass(frozen=True)
class Answers:
    """A model at the first places of the order of looking.

    Attributes:
        correct: bool (n,): classified correctly.
        margins: float64 (n,): length of the true class's capsule minus the longest other one.
    """

    correct: NDArray[np.bool_]
    margins: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.correct)


@dataclass(frozen=True)
class Reference(Answers):
    """The float model at all places, and the order in which plans look at them.

    Attributes:
        at_random: bool (n,): taken at random, not by its margin.
        order: int64 (n,): which image is at each place.
    """

    at_random: NDArray[np.bool_]
    order: NDArray[np.int64]


def make_reference(correct: NDArray[np.bool_], margins: NDArray[np.float64], rule: EarlyRule) -> Reference:
    """Decide the order of looking: the smallest margins first, mixed with random images.

    Args:
        correct, margins: the float model's, by image.
    """
    n = len(correct)
    hard = iter(np.argsort(np.abs(margins), kind="stable").tolist())
    random = iter(np.random.default_rng(rule.seed).permutation(n).tolist())
    taken = np.zeros(n, dtype=bool)
    order, at_random = np.empty(n, dtype=np.int64), np.zeros(n, dtype=bool)
    due = 0.0
    for place in range(n):
        due += rule.random_fraction
        source = random if due >= 1 else hard
        due -= due >= 1
        image = next(index for index in source if not taken[index])
        taken[image] = True
        order[place], at_random[place] = image, source is random
    return Reference(correct[order], margins[order].astype(np.float64), at_random, order)


@dataclass(frozen=True)
class Bounds:
    """How many images a plan classifies correctly.

    Attributes:
        low, high: bounds with the error probability asked for.
        sure_low, sure_high: bounds without any error.
        assumed: bool: the likeliest answers at the places that were not looked at.
    """

    low: int
    high: int
    sure_low: int
    sure_high: int
    assumed: NDArray[np.bool_]


def bound(reference: Reference, plan: Answers, error: float, neighbours: Sequence[Answers] = ()) -> Bounds:
    """Bound the number of correct images of all from those looked at.

    Args:
        error: probability that any of the bounds is wrong.
        neighbours: plans measured at more places, at most :data:`NEIGHBOURS`; those measured at fewer tell nothing.
    """
    seen, n = len(plan), len(reference)
    found = int(plan.correct.sum())
    if seen == n:
        return Bounds(found, found, found, found, plan.correct[:0])
    low, high = _sampled_bounds(reference, plan, _SAMPLED * error)
    bases = [_base(reference, plan, reference, _MARGIN * error)]
    for other in neighbours[:NEIGHBOURS]:
        if len(other) > seen:
            near = _base(reference, plan, other, _MARGIN * error)
            rest = slice(len(other) - seen, None)
            correct = np.concatenate([near.correct, bases[0].correct[rest]])
            bases.append(_Base(correct, np.concatenate([near.distance, bases[0].distance[rest]])))
    ranges = [base.range(_MARGIN * error) for base in bases]
    best = min(range(len(bases)), key=lambda index: ranges[index][1] - ranges[index][0])
    low = max(0, low, *(base[0] for base in ranges))
    high = min(n - seen, high, *(base[1] for base in ranges))
    return Bounds(found + low, found + high, found, found + n - seen, bases[best].correct)


@dataclass(frozen=True)
class _Base:
    """Answers expected at the places that were not looked at, and how many scales each is away from a change."""

    correct: NDArray[np.bool_]
    distance: NDArray[np.float64]

    def range(self, error: float) -> tuple[int, int]:
        """Bounds on the correct ones; each is wrong with probability at most ``error``."""
        changes = np.exp(np.minimum(1 - self.distance, 0))
        lost, gained = (float(changes[self.correct == before].sum()) for before in (True, False))
        expected = int(self.correct.sum())
        return expected - _at_most(lost, error), expected + _at_most(gained, error)


def _base(reference: Reference, plan: Answers, other: Answers, error: float) -> _Base:
    """What another plan, or the float model, says about the places where it was measured and ``plan`` was not.

    Images with margins of up to twice those looked at in order are taken to move like these; the others like the random
    ones, if that is more.
    """
    seen = len(plan)
    moves = np.abs(plan.margins - other.margins[:seen])
    random = reference.at_random[:seen]
    largest = float(moves.max()) / math.log(seen / _LARGEST)
    near = max(_mean_limit(moves[~random], error), largest, np.finfo(np.float64).tiny)
    far = max(_mean_limit(moves[random], error), near)
    margins = np.abs(reference.margins[seen : len(other)])
    scale = np.where(margins <= 2 * margins.min(), near, far)
    return _Base(other.correct[seen:], np.abs(other.margins[seen:]) / scale)


def _at_most(expected: float, error: float) -> int:
    """How many of many unlikely independent events happen at most: a Poisson quantile (Hoeffding 1956)."""
    from scipy.stats import poisson  # takes long to import

    return int(poisson.isf(error, expected)) if expected > 0 else 0


def _mean_limit(moves: NDArray[np.float64], error: float) -> float:
    """Upper confidence limit of an exponential distribution's mean; infinite without any draw."""
    if not len(moves):
        return math.inf
    from scipy.stats import chi2

    return float(moves.sum()) * 2 / float(chi2.ppf(error, 2 * len(moves)))


def _sampled_bounds(reference: Reference, plan: Answers, error: float) -> tuple[int, int]:
    """Bounds on the correct ones at the places that were not looked at, from the random ones before them.

    Images with margins above the smallest remaining one were looked at only where they were drawn at random.
    """
    seen = len(plan)
    frontier = np.abs(reference.margins[seen:]).min()
    drawn = reference.at_random[:seen] & (np.abs(reference.margins[:seen]) >= frontier)
    ranges = []
    for before in (True, False):
        sample = plan.correct[drawn & (reference.correct[:seen] == before)]
        rest = int((reference.correct[seen:] == before).sum())
        ranges.append(hypergeometric_bounds(rest, len(sample), int((sample != before).sum()), error))
    (lost_low, lost_high), (gained_low, gained_high) = ranges
    expected = int(reference.correct[seen:].sum())
    return expected - lost_high + gained_low, expected - lost_low + gained_high


def hypergeometric_bounds(rest: int, drawn: int, marked: int, error: float) -> tuple[int, int]:
    """Bounds on the marked ones among ``rest`` items, after ``drawn`` random ones of all held ``marked``.

    Each of the two is wrong with probability at most ``error``. All means the ``rest`` and the drawn ones together.

    >>> hypergeometric_bounds(900, 100, 0, 0.01), hypergeometric_bounds(900, 0, 0, 0.01)
    ((0, 42), (0, 900))
    """
    if drawn == 0:
        return 0, rest
    from scipy.stats import hypergeom

    total, counts = rest + drawn, range(rest + 1)
    low = bisect_left(counts, True, key=lambda k: bool(hypergeom.sf(marked - 1, total, marked + k, drawn) > error))
    high = bisect_left(counts, True, key=lambda k: bool(hypergeom.cdf(marked, total, marked + k, drawn) <= error))
    return min(low, rest), high - 1
