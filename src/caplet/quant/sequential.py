"""Early decisions: how many of a fixed set of images a plan classifies correctly, bounded from a part of them.

The images are fixed, so nothing is inferred about other ones; what is unknown is only how the plan does on the images
that were not looked at yet. Three kinds of bounds are combined, the tightest counts:

1. *Certain.* An image not looked at is correct or not. No error is possible.
2. *Sampled.* A share of the images looked at is a simple random sample of all, drawn without replacement. From it the
   number of losses and gains among the images that were not looked at is bounded by inverting the hypergeometric
   distribution. Valid whatever the plan does to the images; wide, so it settles what is plainly bad.
3. *Margins.* A prediction changes only where rounding moves the *margin* (length of the true class's capsule minus the
   longest other one) across 0. On the images looked at the moves are measured, and the margins of the float model are
   known for all. The chance that a move is larger than m is taken to be at most exp(-m / b), with b the upper
   confidence limit of the mean absolute move. This settles most questions after the few hundred images of smallest
   margin. It rests on an assumption, that the moves' tail is no heavier than exponential and that images with large
   margins do not move more than the measured ones; so the error probability holds under that assumption only.

The order of looking serves all three: of every batch, the most part are the images with the smallest float margins that
are left, the rest are random ones.

Sources: bound 2 is the textbook confidence limit of a finite population; the split of the error over questions, looks
and bounds is a union bound. Bound 3 is caplet's own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, hypergeom, poisson

from caplet.errors import ConfigError

_PIECES = 7  # bounds of one look that can be wrong
_LEAST = 20  # images of a kind below which their mean move is not looked at


@dataclass(frozen=True)
class EarlyRule:
    """How early decisions are made.

    Attributes:
        error: probability that any bound of a whole search is wrong, under the assumption above; split over questions,
            looks and bounds.
        random_share: of the images, those taken at random instead of by their margin.
        safety: factor on the measured moves.
        first: images before the first look.
        growth: images looked at by each look, relative to the look before.
        seed: of the random images.

    Raises:
        ConfigError: a probability outside 0..0.5, a share outside 0..1, a growth of 1 or less, ...
    """

    error: float = 1e-3
    random_share: float = 0.2
    safety: float = 1.0
    first: int = 100
    growth: float = 1.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.error < 0.5:
            raise ConfigError(f"early decisions: error is {self.error}; the rule is a probability in (0, 0.5)")
        if not 0 < self.random_share < 1 or self.safety < 1 or self.first < 1 or self.growth <= 1:
            raise ConfigError(
                f"early decisions: {self}; the rule is a random share in (0, 1), a safety factor of 1 or more, at least"
                " 1 image before the first look, a growth above 1"
            )

    def looks(self, n: int, step: int = 1) -> list[int]:
        """How many of ``n`` images are looked at by each look, in multiples of ``step``; the last look has all.

        >>> EarlyRule(first=100, growth=1.5).looks(1000, 50)
        [100, 150, 250, 400, 600, 900, 1000]
        """
        counts = [min(math.ceil(self.first / step) * step, n)]
        while counts[-1] < n:
            counts.append(min(n, max(counts[-1] + step, math.ceil(counts[-1] * self.growth / step) * step)))
        return counts

    def question_error(self, question: int) -> float:
        """The probability that an answer to question 1, 2, ... is wrong; all of them sum up to ``error``."""
        return self.error / (question * (question + 1))

    def share(self, question: int, looks: int) -> float:
        """The error probability of one bound at one of so many looks."""
        return self.question_error(question) / looks / _PIECES

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """The float model on all images, and the order in which plans look at them.

    Attributes:
        hits: bool (n,): classified correctly.
        margins: float64 (n,): length of the true class's capsule minus the longest other one.
        order: int64 (n,): images in the order of looking.
        at_random: bool (n,), by place in the order: taken at random, not by its margin.
    """

    hits: NDArray[np.bool_]
    margins: NDArray[np.float64]
    order: NDArray[np.int64]
    at_random: NDArray[np.bool_]


def make_reference(hits: NDArray[np.bool_], margins: NDArray[np.float64], rule: EarlyRule) -> Reference:
    """Decide the order of looking: the smallest margins first, mixed with random images."""
    n = len(hits)
    hard = iter(np.argsort(np.abs(margins), kind="stable").tolist())
    lucky = iter(np.random.default_rng(rule.seed).permutation(n).tolist())
    taken = np.zeros(n, dtype=bool)
    order, at_random = np.empty(n, dtype=np.int64), np.zeros(n, dtype=bool)
    due = 0.0
    for place in range(n):
        due += rule.random_share
        source = lucky if due >= 1 else hard
        due -= due >= 1
        image = next(index for index in source if not taken[index])
        taken[image] = True
        order[place], at_random[place] = image, source is lucky
    return Reference(hits, margins.astype(np.float64), order, at_random)


@dataclass(frozen=True)
class Bounds:
    """How many images a plan classifies correctly.

    Attributes:
        low, high: bounds with the error probability asked for.
        sure_low, sure_high: bounds without any error.
        estimate: the images looked at, and the float model's result on the others.
    """

    low: int
    high: int
    sure_low: int
    sure_high: int
    estimate: int


def bound(
    reference: Reference, hits: NDArray[np.bool_], margins: NDArray[np.float64], error: float, safety: float = 1.0
) -> Bounds:
    """Bound the number of correct images from the first ``len(hits)`` ones in the order of looking.

    Args:
        hits, margins: the plan's, of the images looked at, in the order of looking.
        error: probability of each single bound to be wrong (seven are used).
    """
    seen, n = len(hits), len(reference.hits)
    found = int(hits.sum())
    rest = reference.order[seen:]
    estimate = found + int(reference.hits[rest].sum())
    if seen == n:
        return Bounds(found, found, found, found, found)
    scale = safety * _mean_move(reference, margins, error)
    frontier = float(np.abs(reference.margins[rest]).min())
    sample = reference.order[:seen][reference.at_random[:seen]]
    plan_hits = hits[reference.at_random[:seen]]
    beyond = np.abs(reference.margins[sample]) >= frontier
    lost = _changed(reference, rest, sample[beyond], plan_hits[beyond], True, scale, error)
    gained = _changed(reference, rest, sample[beyond], plan_hits[beyond], False, scale, error)
    low, high = estimate - lost[1] + gained[0], estimate - lost[0] + gained[1]
    return Bounds(max(low, found), min(high, found + len(rest)), found, found + len(rest), estimate)


def _mean_move(reference: Reference, margins: NDArray[np.float64], error: float) -> float:
    """Upper confidence limit of the mean absolute move of a margin, were the moves exponential."""
    seen = len(margins)
    moves = np.abs(margins - reference.margins[reference.order[:seen]])
    groups = (moves, moves[reference.at_random[:seen]], moves[~reference.at_random[:seen]])
    mean = max(float(group.mean()) for group in groups if len(group) >= min(_LEAST, seen))
    return mean * 2 * seen / float(chi2.ppf(error, 2 * seen))


def _changed(
    reference: Reference,
    rest: NDArray[np.int64],
    sample: NDArray[np.int64],
    hits: NDArray[np.bool_],
    correct: bool,
    scale: float,
    error: float,
) -> tuple[int, int]:
    """Bounds on how many of the images not looked at change, of those that the float model has right or wrong."""
    concerned = rest[reference.hits[rest] == correct]
    drawn = hits[reference.hits[sample] == correct]
    changed = int((drawn != correct).sum())
    low, high = hypergeometric_bounds(len(concerned), len(drawn), changed, error)
    with np.errstate(divide="ignore", under="ignore"):
        expected = float(np.exp(-np.abs(reference.margins[concerned]) / scale).sum()) if scale > 0 else 0.0
    return low, min(high, int(poisson.isf(error, expected)) if expected > 0 else 0)


def hypergeometric_bounds(rest: int, drawn: int, marked: int, error: float) -> tuple[int, int]:
    """Bounds on the marked ones among ``rest`` items, after ``drawn`` random ones of all held ``marked``.

    Each of the two is wrong with probability at most ``error``. All means the ``rest`` and the drawn ones together.

    >>> hypergeometric_bounds(900, 100, 0, 0.01), hypergeometric_bounds(900, 0, 0, 0.01)
    ((0, 40), (0, 900))
    """
    if drawn == 0:
        return 0, rest
    total = rest + drawn

    def too_few(count: int) -> bool:
        return float(hypergeom.sf(marked - 1, total, marked + count, drawn)) <= error

    def too_many(count: int) -> bool:
        return float(hypergeom.cdf(marked, total, marked + count, drawn)) <= error

    counts = range(rest + 1)
    low = bisect_left(counts, True, key=lambda count: not too_few(count))
    high = bisect_left(counts, True, key=too_many) - 1
    return min(low, rest), high
