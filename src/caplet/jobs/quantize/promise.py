"""The promise of a tolerance: a plan is accepted on images that its search has not seen.

A search chooses among many plans, so the chosen one is lucky on the images it was chosen on. Acceptance therefore looks
at other images, as many as the question needs, and asks for the upper limit of the loss, not for the loss itself.
The limit is that of :data:`NEW_IMAGES` further images together: it holds their chance, too.

Several plans looked at on the same images are a fixed sequence: from a plan that should do to ever smaller ones, as
long as each is accepted. The first plan that breaks the promise is accepted by mistake with the error of one decision,
and after a rejection no smaller plan is looked at, so the error of the whole sequence is that of one decision. Where
the first plan is rejected, the error that was kept for this case is spent on a second such sequence: from the largest
plan of all, each time half of the way to the rejected one.

The images are new to the search and, where that can be had, to the network.

Sources: fixed sequences are due to Maurer, Hothorn and Lehmacher (1995); "Learn then Test" (Angelopoulos et al. 2021)
uses them for models; their use for width plans is caplet's.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from caplet.data import Splits
from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.data.splits import cut, in_turns
from caplet.data.validation import load_validation
from caplet.errors import ConfigError
from caplet.jobs.quantize.answers import Correct, FloatAnswers, PlanAnswers
from caplet.jobs.run import float_predictions, held_out
from caplet.models.base import CapsNet
from caplet.progress import Note, silent
from caplet.runs.promised import Look

SEARCH_FRACTION = 0.4
"""Of calibration images that were held out from training, those that the search sees; the others decide."""
TRIAL_IMAGES = 10_000
"""Training images on which fitted plans are compared, where there are at least twice as many; the others decide."""
NEW_IMAGES = 10_000
"""A limit of the loss is for so many new images together."""
FIRST_IMAGES = 2_000
"""Fewest images of a first look, where there are as many."""
MANY_IMAGES = 20_000
"""Most images of a first look: beyond, the chance of the new images themselves counts most."""
_FIRST_ERROR = 0.1  # of a decision's error, what its first look may spend where there is a second
_NEARLY = 0.8  # of all images: with as many in the first look, there is one look at all of them
_LUCKIER = 1.5  # standard errors of a first look: a plan that needs more luck in further images has 2 % chances
_RESERVE = 1.5  # images of a first look, relative to what should be enough
_SEQUENCE_ERROR = 0.95  # of all error, what the first sequence may spend; the rest is for larger plans


@dataclass(frozen=True, eq=False)
class FreshImages:
    """Images on which plans are accepted.

    Attributes:
        images: in an order of which every first part has the classes evenly.
        about: what they are, for messages, such as ``"training images"``.
        familiar: the network was trained on them: its answers change less than on new images.
        held_out: fewer images that it was not trained on: less their standard error, the loss on these must be within
            the tolerance, too.
        trial: more such images, which neither searches nor fits see: they say which fitted plan to look at first.
    """

    images: ImageSet
    about: str
    familiar: bool = False
    held_out: ImageSet | None = None
    trial: ImageSet | None = None

    @cached_property
    def as_is(self) -> Correct | None:
        """Which images are not moved, bool (n,): on these alone the loss must be within the tolerance, too; None where
        there are too few to ask for that."""
        return ~moved(self.images) if self.familiar and len(self.images) >= 2 * FIRST_IMAGES else None

    @property
    def least(self) -> int:
        """Images of the smallest set that must accept a plan alone."""
        return len(self.images) if self.as_is is None else int(self.as_is.sum())


def divide(model: CapsNet, splits: Splits, validation: str | None, trained: bool = False) -> tuple[Splits, FreshImages]:
    """The splits with the calibration images that the search may see, and the images that decide.

    All training images but those for trials decide. A calibration split that was held out from training (a network
    trained by caplet says so) is divided: the part that the search does not see must agree. Otherwise the search sees
    the calibration split; with a calibration size that was asked for, no images beyond it are taken, and that split is
    divided, too.

    Args:
        validation: a folder of new images; ``calibration`` or ``train`` for a split that the user knows to be new to
            the network; None where nothing is known beyond the model's file.
        trained: the network will be trained further on the training images, so only others decide.

    Raises:
        ConfigError: the test split is asked for, or training images that are trained on.
        DataError: see :func:`caplet.data.validation.load_validation`.
    """
    if validation == "test":
        raise ConfigError("validation: the test split is for the final report; give calibration, train or a folder")
    if validation == "train" and trained:
        raise ConfigError("validation: fine-tuning sees the training images; give calibration or a folder")
    if validation == "train":
        images, trial = _apart(splits.train)
        return splits, FreshImages(_even(images), "training images new to the network", trial=trial)
    if validation not in (None, "calibration"):
        images, labelled = load_validation(Path(validation), splits)
        if not labelled:  # a changed answer counts as a loss
            images = replace(images, labels=torch.from_numpy(float_predictions(model, images)))
        about = "validation images" if labelled else "unlabelled validation images"
        return splits, FreshImages(images, about)
    new = validation == "calibration" or held_out(model, splits)
    if not new and not trained and splits.info.get("calibration_size") is None:
        searched = replace(splits, calibration=varied(splits.calibration))
        return searched, _familiar(splits.train)
    first = max(len(splits.train.classes), round(SEARCH_FRACTION * len(splits.calibration)))
    search, rest = (splits.calibration.subset(part) for part in _cut(len(splits.calibration), first))
    if trained:  # pruned networks' folders keep the ids and hashes of the search's images as they are
        about = "held-out calibration images" if new else "calibration images"
        return replace(splits, calibration=search), FreshImages(rest if new else varied(rest), about, familiar=not new)
    if validation == "calibration":
        return replace(splits, calibration=search), FreshImages(rest, "held-out calibration images")
    if new:
        return replace(splits, calibration=search), _familiar(splits.train, rest)
    return replace(splits, calibration=varied(search)), FreshImages(varied(rest), "calibration images", familiar=True)


def _cut(n: int, first: int) -> tuple[range, range]:
    if first >= n:
        raise ConfigError(
            f"{n} calibration images are too few to search on some and decide on others; give more"
            " (--calibration-size), or decide by the images of the search (--accept measured)"
        )
    return range(first), range(first, n)


def _familiar(train: ImageSet, held_out: ImageSet | None = None) -> FreshImages:
    images, trial = _apart(train)
    trial = None if trial is None else varied(trial)
    return FreshImages(varied(_even(images)), "training images", familiar=True, held_out=held_out, trial=trial)


def _apart(images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The images that decide, and those for trials."""
    if len(images) < 2 * TRIAL_IMAGES:
        return images, None
    return cut(images, TRIAL_IMAGES, seed=0, rest_name=images.name, cut_name=images.name)


def _even(images: ImageSet) -> ImageSet:
    return images.subset(in_turns(images.labels, images.ids, seed=0))


def moved(images: ImageSet) -> Correct:
    """Which images :func:`varied` moves, bool (n,): every second one of each class."""
    order, counts = images.labels.argsort(stable=True), torch.tensor(images.class_counts())
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    found: Correct = (number % 2 == 1).numpy()
    return found


def varied(images: ImageSet) -> ImageSet:
    """Every second image of each class moved by up to a pixel each way: a network knows those less well than what it
    has seen."""
    pixels, generator = images.images.clone(), torch.Generator().manual_seed(0)
    for part in torch.split(torch.from_numpy(moved(images)).nonzero().flatten(), 500):
        pixels[part] = (255 * augment(to_float(pixels[part]), generator, shift=1)).round().to(torch.uint8)
    return replace(images, images=pixels)


def new_loss_limit(n: int, lost: int, gained: int, error: float) -> float:
    """Upper limit of the loss on :data:`NEW_IMAGES` new images together, in percentage points.

    A normal limit of a paired difference, for as many new images, whose rate of changed answers is not taken to be
    smaller than the ``n`` images can tell (``z ** 2`` more changes than were seen).

    >>> round(new_loss_limit(5000, 18, 14, 0.05), 2), round(new_loss_limit(5000, 0, 0, 0.05), 2)
    (0.32, 0.07)
    """
    z, loss = float(ndtri(1 - error)), (lost - gained) / n
    rate = min(1.0, (lost + gained + z**2) / n)
    return 100 * min(1.0, loss + z * math.sqrt(max(rate - loss**2, 0.0) * (1 / n + 1 / NEW_IMAGES)))


def worst_limit(before: Correct, after: Correct, error: float, as_is: Correct | None, n: int | None = None) -> float:
    """The larger limit of the loss: that of all images, or of those ``as_is`` alone, where others were moved.

    On moved images a network may be so wrong that quantization gains as many answers as it loses.

    Args:
        before, after: which images the float model, and the plan, classify correctly, bool (m,).
        as_is: bool (m,); None: all.
        n: images that are to decide, of which these let expect no gain, but a loss; None: these decide.
    """
    limits, scale = [], 1.0 if n is None else n / len(before)
    for chosen in (None, as_is):
        old, new = (before, after) if chosen is None else (before[chosen], after[chosen])
        lost, gained = int((old & ~new).sum()), int((~old & new).sum())
        gained = gained if n is None else min(gained, lost)
        limits.append(new_loss_limit(round(scale * len(old)), round(scale * lost), round(scale * gained), error))
    return max(limits)


def smallest_tolerance(n: int, error: float) -> float:
    """The smallest tolerance, in percentage points, that ``n`` images can prove: for a plan that changes no answer.

    >>> round(smallest_tolerance(5_000, 0.05), 3), round(smallest_tolerance(100, 0.05), 2)
    (0.066, 2.72)
    """
    return new_loss_limit(n, 0, 0, error)


def provable_tolerance(n: int, error: float) -> float:
    """The smallest tolerance that looks at ``n`` images can decide on, in hundredths of percentage points."""
    first = 0.0 if _NEARLY * n <= FIRST_IMAGES else _FIRST_ERROR
    spent = _SEQUENCE_ERROR * (1 - first) * error  # by the last look at the first plan
    return math.ceil(100 * smallest_tolerance(n, spent)) / 100


def check_tolerance(tolerance: float, n: int, error: float, about: str) -> None:
    """Raise ConfigError where ``n`` images, ``about`` in words, could not show that any plan keeps a tolerance."""
    least = provable_tolerance(n, error)
    if tolerance < least - 1e-9:
        raise ConfigError(
            f"{n:,} {about} cannot show a loss of at most {tolerance:g} points ({100 * (1 - error):g} % confidence):"
            f" {least:.2f} is the smallest tolerance they can; give more images"
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
    per_image = (slack / float(ndtri(1 - error))) ** 2 / max(changed, 1e-9) - 1 / NEW_IMAGES
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
        self._reference, self._float = reference, FloatAnswers(reference, fresh.images)
        self._held_out: Correct | None = None
        self.searched: Correct | None = None
        about = fresh.about if fresh.as_is is None else f"{fresh.about} as they are"
        check_tolerance(tolerance, fresh.least, error, about)

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
        self, plan: Callable[[ImageSet], PlanAnswers], error: float, changed: float = 0.01, loss: float = 0.0
    ) -> Look:
        """Decide about a plan, on as many images as it takes.

        Args:
            plan: what the plan answers on a set of n images.
            error: of the decision.
            changed, loss: what is expected, as for :func:`images_needed`; only the number of images depends on it.
        """
        look = self._look(plan, error, changed, loss)
        images = self.fresh.held_out
        if not look.accepted or images is None:
            return look
        if self._held_out is None:
            self._held_out = self._reference(images)
        lost = self._held_out.astype(int) - plan(images).correct
        loss, chance = 100 * float(lost.mean()), 100 * math.sqrt(np.abs(lost).sum()) / len(lost)
        agree = loss - chance <= self.tolerance
        verdict = "accepted" if agree else "rejected"
        self._note(f"{len(images):,} held-out images: loss {loss:+.2f} points, give or take {chance:.2f}: {verdict}")
        return replace(look, accepted=agree)

    def _look(self, plan: Callable[[ImageSet], PlanAnswers], error: float, changed: float, loss: float) -> Look:
        total = len(self.fresh.images)
        needed = images_needed(changed, max(loss, 0.0), self.tolerance, _FIRST_ERROR * error)
        parts = 1 if self.fresh.as_is is None else 2
        first = max(parts * FIRST_IMAGES, math.ceil(min(parts * _RESERVE * needed, MANY_IMAGES)))
        if first >= _NEARLY * total:
            return self._judge(plan(self.fresh.images), error)
        answers, left = plan(self.fresh.images.subset(range(first))), (1 - _FIRST_ERROR) * error
        look = self._judge(answers, _FIRST_ERROR * error)
        if look.accepted or self._hopeless(look, left):
            return look
        return self._judge(answers.then(plan(self.fresh.images.subset(range(first, total)))), left)

    def _hopeless(self, look: Look, error: float) -> bool:
        """Whether all images would accept the plan only with a loss by :data:`_LUCKIER` standard errors smaller."""
        total = len(self.fresh.images)
        lost, gained = (round(count * total / look.n) for count in (look.lost, look.gained))
        limit = new_loss_limit(total, lost, gained, error)
        return limit - 100 * _LUCKIER * math.sqrt((look.lost + look.gained) / look.n**2) > self.tolerance

    def _judge(self, plan: PlanAnswers, error: float) -> Look:
        before, after = self._float.beside(plan), plan.correct
        n, lost, gained = len(after), int((before & ~after).sum()), int((~before & after).sum())
        as_is = self.fresh.as_is
        limit = worst_limit(before, after, error, None if as_is is None else as_is[:n])
        look = Look(n, lost, gained, 100 * (lost - gained) / n, limit, error, limit <= self.tolerance)
        self._note(str(look))
        return look


def smallest_accepted(rungs: int, start: int, look: Callable[[int, float], bool | None], error: float) -> int | None:
    """Which of ``rungs`` plans, the largest first, is the smallest that is accepted; None where none is.

    Args:
        start: the plan to begin with, chosen without a look at the fresh images.
        look: decides about plan number ``index`` with an error: ``look(index, error)``; None, with no look at the
            images, for a plan that cannot run: as if it were not there.
        error: of the whole sequence.

    >>> smallest_accepted(5, 2, lambda index, error: index <= 3, 0.05)
    3
    >>> smallest_accepted(9, 8, lambda index, error: index <= 6, 0.05)
    6
    """
    spent, accepted = _SEQUENCE_ERROR * error, None
    for index in (*range(start, -1, -1), *range(start + 1, rungs)) if rungs else ():
        if (accepted := look(index, spent)) is not None:
            start = index
            break
    if accepted is None:
        return None
    if accepted:
        for index in range(start + 1, rungs):
            verdict = look(index, spent)
            if verdict is False:
                break
            start = start if verdict is None else index
        return start
    left, rejected, chosen, at = error - spent, start, None, 0
    while at < rejected and (verdict := look(at, left)) is not False:
        if verdict:
            chosen = at
        elif chosen is not None:
            rejected = at
        at = at + 1 if chosen is None else max(chosen + 1, (chosen + rejected) // 2)
    return chosen
