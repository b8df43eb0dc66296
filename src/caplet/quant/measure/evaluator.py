"""The one evaluator that all searches share: plans in, measured results out, nothing computed twice."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.errors import ConfigError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.progress import Progress
from caplet.quant.measure.early_decision import (
    NEIGHBOURS,
    Answers,
    Bounds,
    EarlyRule,
    Reference,
    bound,
    make_reference,
)
from caplet.quant.measure.log import FLOAT, EvaluationLog, MeasuredImages, images_digest, model_identity
from caplet.quant.measure.staged import CachedStages
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import bits_in_use
from caplet.quant.simulate.fake_quant import FakeQuant, WeightCache
from caplet.workers.team import Parcel, Team

DEFAULT_CACHE_BYTES = 3 << 29


def predict(capsules: Tensor) -> Tensor:
    """The class of the longest capsule, the first one on a tie: float (B, classes, D) -> int64 (B,).

    Compares exact squared lengths (float64), as the device does in integers.
    """
    return (capsules.double() ** 2).sum(-1).argmax(-1)


def class_margins(capsules: Tensor, labels: Tensor) -> Tensor:
    """Length of the true class's capsule minus the longest other one: float (B, classes, D), int64 (B,) -> (B,)."""
    size = lengths(capsules)
    own = size.gather(1, labels[:, None])
    others = size.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


@dataclass(frozen=True, eq=False)
class PlanResult:
    """What is known about one plan (or the float model) on an evaluator's images.

    Attributes:
        digest: of the plan, or :data:`~caplet.quant.measure.log.FLOAT`.
        correct_images: bool (n,): which images are classified correctly, in the images' own order, for paired
            comparisons; the likeliest answer for images that were not looked at (the float model's, or a similar
            plan's).
        seen: images looked at.
        low, high: bounds on the number of correct images; equal where all were looked at.
        cost: what was computed for this answer, in full passes of all images through the whole model
            (multiply-accumulates); 0 where the answer was known already.
        error: probability that the bounds are wrong (see :mod:`caplet.quant.measure.early_decision`); 0 where they are
            certain.
    """

    digest: str
    correct_images: NDArray[np.bool_]
    seen: int
    low: int
    high: int
    cost: float = 0.0
    error: float = 0.0

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct_images)

    @property
    def correct(self) -> int:
        """Number of images classified correctly; an estimate where not all were looked at."""
        return int(self.correct_images.sum())

    @property
    def accuracy(self) -> float:
        """Correct fraction, 0..1."""
        return self.correct / self.n


@dataclass(frozen=True, eq=False)
class _Glance:
    """Images to look at under a plan, or in float: batch ``number`` of the order; int64 (B,) which images."""

    plan: QuantPlan | None
    number: int
    chosen: NDArray[np.int64]


_Found = tuple[NDArray[np.bool_], NDArray[np.float32], float]
"""Which images of a batch are correct; margins; what was computed, as a fraction of the whole model's cost."""


class _Observer:
    """Looks at batches, here or where a worker is."""

    def __init__(self, model: CapsNet, images: Tensor, labels: Tensor, cache_bytes: int) -> None:
        self.stages = CachedStages(model, cache_bytes)
        self._images, self._labels, self._specs, self._weights = images, labels, model.points(), WeightCache()
        self._ready: tuple[QuantPlan, list[str], FakeQuant] | None = None

    def look(self, batch: _Glance) -> _Found:
        """Run the model on a batch."""
        chosen, plan = torch.from_numpy(batch.chosen), batch.plan
        images, labels, cost = to_float(self._images[chosen], self.stages.model.device), self._labels[chosen], 1.0
        with torch.inference_mode():
            if plan is None:
                capsules = self.stages.run_from(0, (images,))[0]
            else:
                if self._ready is None or self._ready[0] != plan:
                    handler = FakeQuant(plan, self._specs, weights=self._weights)
                    self._ready = plan, self.stages.prefixes(plan), handler
                capsules, cost = self.stages.run_plan(*self._ready[:2], batch.number, images, self._ready[2])
            capsules = capsules.cpu()
            return (predict(capsules) == labels).numpy(), class_margins(capsules, labels).numpy(), cost


class Evaluator:
    """Measures plans on one model and one set of images.

    A plan is measured once; a second evaluation is answered from memory or from the log. Only stages downstream of what
    changed are computed: the output of stage k depends on the plan at the points of stages 1..k alone, and such outputs
    are cached as integer codes (:mod:`caplet.quant.measure.staged`), so the answer is the same, image by image, as a
    full evaluation's.

    :meth:`evaluate` looks at all images. :meth:`decide` and :meth:`count` look at as many as the decision needs, where
    an early rule is given; a later evaluation of the same plan goes on where the earlier one stopped. Their answers
    depend on the images, the rule, and the evaluations before, and not on what a log already knew. Costs are those
    of what this object computed; where workers do, those of one process that computes what was asked for.

    The model must not change while the evaluator is in use. It computes on the device where it is.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per forward pass.
        cache_bytes: limit of the cached stage outputs; 0 caches none.
        log_path: JSON-lines log of all evaluations; if it exists, what it holds is known from the start.
        progress: called after every batch.
        early: how early decisions are made; None looks at all images every time.
        team: looks at the batches of images; None for this process, with all of torch's threads. A part of them is
            looked at before it is known whether the decision needs it, so that all workers have something to do.

    Attributes:
        spent: cost of everything computed by this object, in full passes of all images.
        float_spent: the float model's part of it.

    Raises:
        ConfigError: no images, another number of labels, a batch size below 1, a negative limit.
        ModelError: images of another size.
        ArtefactError: the log is unreadable, or of other images or another model.
    """

    def __init__(
        self,
        model: CapsNet,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 50,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        log_path: str | Path | None = None,
        progress: Progress | None = None,
        early: EarlyRule | None = None,
        team: Team | None = None,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise ConfigError(
                f"evaluator: {len(images)} images and {len(labels)} labels; give as many of each, 1 or more"
            )
        if batch_size < 1 or cache_bytes < 0:
            raise ConfigError(
                f"evaluator: batch size {batch_size}, cache of {cache_bytes} bytes; the rule is >= 1, >= 0"
            )
        model.check_images(images)
        self.model = model.eval()
        self.images, self.labels = images, labels.numpy()
        self.early = early
        self.spent = self.float_spent = 0.0
        self._batch = batch_size
        self._progress = progress
        self._observer, self._team = _Observer(model, images, labels, cache_bytes), team or Team()
        self._parcel: Parcel | None = None
        self._ahead: dict[tuple[str, int], _Found] = {}  # what workers saw, by digest and batch
        self._log = EvaluationLog(log_path, self._identity())
        self._seen: dict[str, int] = {}  # images of each plan that were looked at, by digest
        self._answers: dict[str, PlanResult] = {}  # the last one comes last
        self._evaluations = 0
        self._reference: Reference | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def measured(self) -> int:
        """How many plans were measured, here or by the interrupted run whose log this is; the float model counts."""
        return len(self._log.measured)

    def float_result(self) -> PlanResult:
        """The float model's result on the same images; measured once."""
        return self._whole(FLOAT, None)

    def evaluate(self, plan: QuantPlan) -> PlanResult:
        """The result of the model under ``plan`` on all images.

        Raises:
            PlanError: the plan does not fit the model.
            ArtefactError: the log cannot be written.
        """
        plan.check(self.model)
        return self._whole(plan.digest(), plan)

    def decide(self, plan: QuantPlan, needed: int, most: int | None = None) -> PlanResult:
        """Whether at least ``needed`` images are correct under ``plan``: then ``low`` of the answer reaches it.

        Where they are not, ``high`` does not reach it. Raises as :meth:`evaluate`.

        Args:
            most: images after which a decision that is not settled is left open: then ``low`` is below ``needed`` and
                ``high`` is not. None, or no early rule: never.
        """
        return self._ask(plan, {"needed": needed}, lambda low, high: low >= needed or high < needed, most)

    def count(self, plan: QuantPlan) -> PlanResult:
        """How many images are correct under ``plan``, as soon as the bounds agree. Raises as :meth:`evaluate`."""
        return self._ask(plan, {"count": True}, lambda low, high: low == high)

    def latest(self, plan: QuantPlan) -> PlanResult:
        """The last answer about ``plan``; its count where nothing was asked before."""
        return self._answers.get(plan.digest()) or self.count(plan)

    def _ask(
        self, plan: QuantPlan, asked: Mapping[str, Any], settled: Callable[[int, int], bool], most: int | None = None
    ) -> PlanResult:
        """Look at more and more images until the bounds settle it."""
        if self.early is None:
            return self.evaluate(plan)
        digest = plan.digest()
        known = self._answers.get(digest)
        if known is not None and settled(known.low, known.high):
            return replace(known, cost=0.0)
        plan.check(self.model)
        reference = self._order()
        self._evaluations += 1
        looks = self.early.looks(len(self), self._batch)
        error = self.early.evaluation_error(self._evaluations)
        others = self._neighbours(digest)
        cost = 0.0
        for look in (looks[0], *(look for look in looks[1:] if most is None or look <= most)):
            cost += self._extend(digest, plan, look)
            found = bound(reference, self._known(digest, look), error / len(looks), others)
            if settled(found.low, found.high):
                break
        error = 0.0 if settled(found.sure_low, found.sure_high) else error
        head = {"question": self._evaluations, **asked, "settled": settled(found.low, found.high), "digest": digest}
        bounds = {"low": found.low, "high": found.high, "error": error}
        self._log.decided({**head, "seen": look, "n": len(self), **bounds})
        return self._answer(digest, look, cost, found, error)

    def _neighbours(self, digest: str) -> list[Answers]:
        """Plans that were evaluated before: the last one, and of the others the one measured farthest."""
        asked = [other for other in self._answers if other not in (FLOAT, digest)]
        others = sorted(asked[:-1], key=lambda other: self._seen[other])[1 - NEIGHBOURS :]
        return [self._known(other, self._seen[other]) for other in (*asked[-1:], *reversed(others))]

    def _whole(self, digest: str, plan: QuantPlan | None) -> PlanResult:
        """The answer from all images."""
        if plan is not None and self.early is not None:
            self._order()
        return self._answer(digest, len(self), self._extend(digest, plan, len(self)))

    def _order(self) -> Reference:
        """The order in which plans look at the images, from the float model's margins."""
        assert self.early is not None
        if self._reference is None:
            self.float_result()
            found = self._known(FLOAT, len(self))
            self._reference = make_reference(found.correct, found.margins, self.early)
        return self._reference

    def _places(self, digest: str) -> NDArray[np.int64]:
        """The images in the order in which this plan looks at them."""
        if digest == FLOAT or self.early is None:
            return np.arange(len(self))
        return self._order().order

    def _known(self, digest: str, stop: int) -> Answers:
        """What was measured at the first ``stop`` places of the order."""
        lines = self._log.measured[digest]
        correct, margins = np.concatenate([x.correct for x in lines]), np.concatenate([x.margins for x in lines])
        return Answers(correct[:stop], margins[:stop].astype(np.float64))

    def _extend(self, digest: str, plan: QuantPlan | None, stop: int) -> float:
        """Measure the images up to ``stop`` of the order that are not known yet; what that cost."""
        start = self._log.known(digest)
        if start >= stop:
            return 0.0
        began = time.perf_counter()
        correct, margins, cost = self._measure(plan, self._places(digest), start, stop)
        self.spent += cost
        more: dict[str, Any] = {}
        if plan is None:
            self.float_spent += cost
        elif start == 0:
            more = {"widths": bits_in_use(self.model, plan), "plan": plan.to_json()}
        self._log.add(MeasuredImages(digest, start, correct, margins, time.perf_counter() - began, cost), more)
        return cost

    def _answer(
        self, digest: str, seen: int, cost: float, found: Bounds | None = None, error: float = 0.0
    ) -> PlanResult:
        """The answer from the first ``seen`` images; the float model's, or the likeliest one, for the others."""
        correct = np.zeros(len(self), dtype=bool)
        order = self._places(digest)
        correct[order[:seen]] = self._known(digest, seen).correct
        low = high = int(correct.sum())
        if found is not None:
            correct[order[seen:]] = found.assumed
            low, high = found.low, found.high
        result = PlanResult(digest, correct, seen, low, high, cost, error)
        self._seen[digest] = max(self._seen.get(digest, 0), seen)
        self._answers.pop(digest, None)
        self._answers[digest] = result
        return result

    def _measure(
        self, plan: QuantPlan | None, order: NDArray[np.int64], start: int, stop: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], float]:
        """Run the images at places ``start`` to ``stop`` - 1 of ``order``: what is correct, margins, and the cost in
        full passes.

        ``start`` is a multiple of the batch size, so that a batch always holds the same images.
        """
        correct, margins = np.zeros(stop - start, dtype=bool), np.zeros(stop - start, dtype=np.float32)
        total, low = 0.0, 0
        for part, margin, cost in self._look(plan, order, start, stop):
            place = slice(low, low := low + len(part))
            correct[place], margins[place] = part, margin
            total += len(part) / len(self) * cost
            if self._progress is not None:
                self._progress(low, stop - start)
        return correct, margins, total

    def _look(self, plan: QuantPlan | None, order: NDArray[np.int64], start: int, stop: int) -> Iterator[_Found]:
        """The batches of these places, one after the other."""
        size, digest = self._batch, FLOAT if plan is None else plan.digest()
        numbers, whole = range(start // size, math.ceil(stop / size)), math.ceil(len(self) / size)
        team, stages = self._team, self._observer.stages
        batches = [_Glance(plan, each, order[each * size : (each + 1) * size]) for each in range(numbers.start, whole)]
        if not team.away:
            for batch in batches[: len(numbers)]:
                with team.own_threads():
                    found = self._observer.look(batch)
                yield found
            return
        if missing := [each for each in batches[: len(numbers)] if (digest, each.number) not in self._ahead]:
            more = batches[missing[0].number - numbers.start :][: math.ceil(len(missing) / team.count) * team.count]
            if self._parcel is None:
                room = stages.cache.limit // team.count
                labels = torch.from_numpy(self.labels)
                self._parcel = team.parcel(_Observer, self.model, self.images, labels, room)
            tasks = [(self._parcel, each) for each in more]
            looked = team.map(_Observer.look, tasks, lambda each: f"images from {size * each.number} on")
            self._ahead.update(((digest, each.number), found) for each, found in zip(more, looked, strict=True))
        prefixes = [] if plan is None else stages.prefixes(plan)
        for batch in batches[: len(numbers)]:
            correct, margins, cost = self._ahead[digest, batch.number]
            if plan is not None:
                cost = stages.account(plan, prefixes, batch.number, len(correct))
            yield correct, margins, cost

    def _identity(self) -> dict[str, Any]:
        """What the answers depend on besides the plan."""
        return {
            **model_identity(self.model),
            "images": images_digest(self.images, torch.from_numpy(self.labels)),
            "n": len(self),
            "integer": True,
            "early": None if self.early is None else self.early.model_dump(by_alias=True),
            "batch_size": self._batch,
        }
