"""The promise of a tolerance: a plan is accepted on images that its search has not seen.

A search chooses among many plans, so the chosen one is lucky on the images it was chosen on. Acceptance therefore looks
at other images, as many as the question needs, and asks for the upper limit of the loss, not for the loss itself.
The limit is that of :data:`NEW_IMAGES` further images together: it holds their chance, too.

Several plans looked at on the same images are a fixed sequence: from a plan that should do to ever smaller ones, as
long as each is accepted. The first plan that breaks the promise is accepted by mistake with the error of one decision,
and after a rejection no smaller plan is looked at, so the error of the whole sequence is that of one decision. Where
the first plan is rejected, larger ones are looked at, in growing strides and each with half of the error that is left,
the largest with all of it.

Sources: fixed sequences are due to Maurer, Hothorn and Lehmacher (1995); "Learn then Test" (Angelopoulos et al. 2021)
uses them for models; their use for width plans is caplet's.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.jobs.quantize.fresh import FreshImages
from caplet.progress import Note, silent
from caplet.runs.promised import Look

NEW_IMAGES = 10_000
"""A limit of the loss is for so many new images together."""
FIRST_IMAGES = 2_000
"""Fewest images of a first look, where there are as many."""
MANY_IMAGES = 20_000
"""Most images of a first look: beyond, the chance of the new images themselves counts most."""
_FIRST_ERROR = 0.3  # of a decision's error, what its first look may spend where there is a second
_NEARLY = 0.8  # of all images: with as many in the first look, there is one look at all of them
_RESERVE = 1.5  # images of a first look, relative to what should be enough
_SEQUENCE_ERROR = 0.9  # of all error, what the first sequence may spend; the rest is for larger plans

Correct = NDArray[np.bool_]


def new_loss_limit(n: int, lost: int, gained: int, error: float) -> float:
    """Upper limit of the loss on :data:`NEW_IMAGES` new images together, in percentage points.

    A normal limit of a paired difference, for as many new images, whose rate of changed answers is not taken to be
    smaller than the ``n`` images can tell (``z ** 2`` more changes than were seen).

    >>> round(new_loss_limit(5000, 18, 14, 0.05), 2), round(new_loss_limit(5000, 0, 0, 0.05), 2)
    (0.32, 0.07)
    """
    z, loss = float(norm.ppf(1 - error)), (lost - gained) / n
    rate = min(1.0, (lost + gained + z**2) / n)
    return 100 * min(1.0, loss + z * math.sqrt(max(rate - loss**2, 0.0) * (1 / n + 1 / NEW_IMAGES)))


def smallest_tolerance(n: int, error: float) -> float:
    """The smallest tolerance, in percentage points, that ``n`` images can prove: for a plan that changes no answer.

    >>> round(smallest_tolerance(5_000, 0.05), 3), round(smallest_tolerance(100, 0.05), 2)
    (0.066, 2.72)
    """
    return new_loss_limit(n, 0, 0, error)


def check_tolerance(tolerance: float, n: int, error: float, about: str) -> None:
    """Raise ConfigError where ``n`` images, ``about`` in words, could not show that any plan keeps a tolerance."""
    first = 0.0 if _NEARLY * n <= FIRST_IMAGES else _FIRST_ERROR
    spent = _SEQUENCE_ERROR * (1 - first) * error  # by the last look at the first plan
    least = smallest_tolerance(n, spent)
    if tolerance < least:
        raise ConfigError(
            f"{n:,} {about} cannot show a loss of at most {tolerance:g} points ({100 * (1 - error):g} % confidence):"
            f" {math.ceil(100 * least) / 100:.2f} is the smallest tolerance they can; give more images"
            " (--calibration-size, --validation), or decide by the images of the search (--accept measured)"
        )


def images_needed(changed: float, loss: float, tolerance: float, error: float) -> float:
    """How many images should show that a plan keeps a tolerance; infinite where no number would.

    Args:
        changed: fraction of the answers that are right with one model only.
        loss, tolerance: in percentage points.

    >>> round(images_needed(0.004, 0.05, 0.2, 0.05)), images_needed(0.004, 0.2, 0.2, 0.05)
    (9267, inf)
    """
    slack = (tolerance - loss) / 100
    if slack <= 0:
        return math.inf
    per_image = (slack / float(norm.ppf(1 - error))) ** 2 / max(changed, 1e-9) - 1 / NEW_IMAGES
    return 1 / per_image if per_image > 0 else math.inf


class Promise:
    """Looks at plans on fresh images.

    Args:
        fresh: the images.
        reference: which images of a set the float model classifies correctly, bool (n,).
        tolerance: accepted loss in percentage points.
        error: probability of accepting a plan that loses more.
        note: called with a line of text.

    Attributes:
        searched: which of the search's images the reference classifies correctly, where it is not the model searched.

    Raises:
        ConfigError: no plan could keep the tolerance on so few images; the smallest possible one is named.
    """

    def __init__(
        self,
        fresh: FreshImages,
        reference: Callable[[ImageSet], Correct],
        tolerance: float,
        error: float = 0.05,
        note: Note = silent,
    ) -> None:
        self.fresh, self.tolerance, self.error, self._note = fresh, tolerance, error, note
        self._reference, self._float = reference, np.zeros(0, dtype=bool)
        self._held_out: Correct | None = None
        self.searched: Correct | None = None
        check_tolerance(tolerance, len(fresh.images), error, fresh.about)

    def with_error(self, error: float) -> "Promise":
        """The same promise, to be kept with another error."""
        other = copy(self)
        other.error = error
        return other

    def to_json(self) -> dict[str, Any]:
        """What is asked, and of which images: JSON values."""
        images = {"about": self.fresh.about, "available": len(self.fresh.images), "familiar": self.fresh.familiar}
        asked = {"tolerance": self.tolerance, "confidence": 1 - self.error, "new_images": NEW_IMAGES}
        return {**asked, "images": images}

    def look(
        self, correct: Callable[[ImageSet], Correct], error: float, changed: float = 0.01, loss: float = 0.0
    ) -> Look:
        """Decide about a plan, on as many images as it takes.

        Args:
            correct: which images of a set the plan classifies correctly, bool (n,).
            error: of the decision.
            changed, loss: what is expected, as for :func:`images_needed`; only the number of images depends on it.
        """
        look = self._look(correct, error, changed, loss)
        images = self.fresh.held_out
        if not look.accepted or images is None:
            return look
        if self._held_out is None:
            self._held_out = self._reference(images)
        lost = self._held_out.astype(int) - correct(images)
        loss, chance = 100 * float(lost.mean()), 100 * math.sqrt(np.abs(lost).sum()) / len(lost)
        agree = loss - chance <= self.tolerance
        verdict = "accepted" if agree else "rejected"
        self._note(f"{len(images):,} held-out images: loss {loss:+.2f} points, give or take {chance:.2f}: {verdict}")
        return replace(look, accepted=agree)

    def _look(self, correct: Callable[[ImageSet], Correct], error: float, changed: float, loss: float) -> Look:
        total = len(self.fresh.images)
        needed = images_needed(changed, max(loss, 0.0), self.tolerance, _FIRST_ERROR * error)
        first = max(FIRST_IMAGES, math.ceil(min(_RESERVE * needed, MANY_IMAGES)))
        if first >= _NEARLY * total:
            return self._judge(correct(self._first(total)), error)
        answers = correct(self._first(first))
        look = self._judge(answers, _FIRST_ERROR * error)
        if look.accepted or look.loss - (look.limit - look.loss) / 2 > self.tolerance:  # hopeless
            return look
        rest = correct(self.fresh.images.subset(range(first, total)))
        return self._judge(np.concatenate([answers, rest]), (1 - _FIRST_ERROR) * error)

    def _first(self, n: int) -> ImageSet:
        return self.fresh.images if n == len(self.fresh.images) else self.fresh.images.subset(range(n))

    def _judge(self, plan: Correct, error: float) -> Look:
        n, known = len(plan), len(self._float)
        if n > known:
            more = self._reference(self.fresh.images.subset(range(known, n)))
            self._float = np.concatenate([self._float, more])
        before = self._float[:n]
        lost, gained = int((before & ~plan).sum()), int((~before & plan).sum())
        limit = new_loss_limit(n, lost, gained, error)
        look = Look(n, lost, gained, 100 * (lost - gained) / n, limit, error, limit <= self.tolerance)
        self._note(str(look))
        return look


def smallest_accepted(rungs: int, start: int, look: Callable[[int, float], bool], error: float) -> int | None:
    """Which of ``rungs`` plans, the largest first, is the smallest that is accepted; None where none is.

    Args:
        start: the plan to begin with, chosen without a look at the fresh images.
        look: decides about plan number ``index`` with an error: ``look(index, error)``.
        error: of the whole sequence.

    >>> smallest_accepted(5, 2, lambda index, error: index <= 3, 0.05)
    3
    >>> smallest_accepted(5, 2, lambda index, error: index <= 0, 0.05)
    0
    """
    if rungs == 0:
        return None
    if look(start, _SEQUENCE_ERROR * error):
        while start + 1 < rungs and look(start + 1, _SEQUENCE_ERROR * error):
            start += 1
        return start
    remaining, step = (1 - _SEQUENCE_ERROR) * error, 1
    while start > 0:
        start, step = max(0, start - step), 4 * step
        spent = remaining / 2 if start else remaining
        remaining -= spent
        if look(start, spent):
            return start
    return None
