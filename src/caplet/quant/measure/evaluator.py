"""The one evaluator that all searches share: plans in, measured probes out, nothing computed twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
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
    Bounds,
    EarlyRule,
    Measured,
    Reference,
    bound,
    make_reference,
)
from caplet.quant.measure.evaluations import FLOAT, Part, Probe, ProbeLog
from caplet.quant.measure.identity import images_digest, model_identity
from caplet.quant.measure.staged import PrefixRunner
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.widths import describe
from caplet.quant.simulate.fake_quant import FakeQuant, WeightCache

DEFAULT_CACHE_BYTES = 3 << 29
"""Called with (images done, images to do) after every batch of a measurement."""


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


class Evaluator:
    """Measures plans on one model and one set of images.

    A plan is measured once; a second question is answered from memory or from the log. Only stages downstream of what
    changed are computed: the output of stage k depends on the plan at the points of stages 1..k alone, and such outputs
    are kept as integer codes (:mod:`caplet.quant.measure.staged`), so the answer is the same, image by image, as a full
    evaluation's.

    :meth:`evaluate` looks at all images. :meth:`decide` and :meth:`count` look at as many as the question needs, where
    an early rule is given; a later question about the same plan goes on where the earlier one stopped. Their answers
    depend on the images, the rule, and the questions asked before, and not on what a log already knew.

    The model must not change while the evaluator is in use.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        batch_size: images per forward pass.
        cache_bytes: limit of the kept stage outputs; 0 keeps none.
        log_path: JSON-lines log of all probes; if it exists, its probes are known from the start.
        integer: see :class:`caplet.quant.simulate.fake_quant.FakeQuant`.
        progress: called after every batch.
        early: how early decisions are made; None looks at all images for every question.

    Attributes:
        spent: cost of everything computed by this object, in full passes of all images; where it goes on with an
            interrupted run, more than the probes' cost by what was lost with the run's memory.

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
        integer: bool = True,
        progress: Progress | None = None,
        early: EarlyRule | None = None,
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
        self.spent = 0.0
        self._batch = batch_size
        self._integer = integer
        self._progress = progress
        self._specs = model.points()
        self._weights = WeightCache()
        self._runner = PrefixRunner(model, cache_bytes)
        self._log = ProbeLog(log_path, self._identity())
        for plan, part in self._log.measured:
            self._runner.replay(plan, batch_size, part.start, part.stop)
        self._charged: dict[str, int] = {}  # parts by digest whose cost was counted to a question already
        self._answers: dict[str, Probe] = {}
        self._questions = 0
        self._reference: Reference | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def probes(self) -> dict[str, Probe]:
        """Everything measured so far, here or by the interrupted run whose log this is, by plan digest, in order.

        Costs and seconds are those of all parts together.
        """
        return {digest: self._probe(digest, self._log.known(digest), 0) for digest in self._log.parts}

    def float_result(self) -> Probe:
        """The float model's result on the same images; measured once."""
        return self._whole(FLOAT, None)

    def evaluate(self, plan: QuantPlan) -> Probe:
        """The result of the model under ``plan`` on all images.

        Raises:
            PlanError: the plan does not fit the model.
            ArtefactError: the log cannot be written.
        """
        plan.check(self.model)
        return self._whole(plan.digest(), plan)

    def decide(self, plan: QuantPlan, needed: int, most: int | None = None) -> Probe:
        """Whether at least ``needed`` images are correct under ``plan``: then ``low`` of the answer reaches it.

        Where they are not, ``high`` does not reach it. Raises as :meth:`evaluate`.

        Args:
            most: images after which a question that is not settled is left open: then ``low`` is below ``needed`` and
                ``high`` is not. None, or no early rule: never.
        """
        return self._ask(plan, {"needed": needed}, lambda low, high: low >= needed or high < needed, most)

    def count(self, plan: QuantPlan) -> Probe:
        """How many images are correct under ``plan``, as soon as the bounds agree. Raises as :meth:`evaluate`."""
        return self._ask(plan, {"count": True}, lambda low, high: low == high)

    def latest(self, plan: QuantPlan) -> Probe:
        """The last answer about ``plan``; its count where nothing was asked before."""
        return self._answers.get(plan.digest()) or self.count(plan)

    def _ask(
        self, plan: QuantPlan, asked: Mapping[str, Any], settled: Callable[[int, int], bool], most: int | None = None
    ) -> Probe:
        """Look at more and more images until the bounds settle the question."""
        if self.early is None:
            return self.evaluate(plan)
        digest = plan.digest()
        known = self._answers.get(digest)
        if known is not None and settled(known.low, known.high):
            return replace(known, seconds=0.0, cost=0.0, cached=True)
        plan.check(self.model)
        reference = self._order()
        self._questions += 1
        looks = self.early.looks(len(self), self._batch)
        error = self.early.question_error(self._questions)
        before = self._charged.get(digest, 0)
        others = self._neighbours(digest)
        computed = False
        for look in (looks[0], *(look for look in looks[1:] if most is None or look <= most)):
            computed |= self._extend(digest, plan, look)
            found = bound(reference, self._known(digest, look), error / len(looks), others)
            if settled(found.low, found.high):
                break
        sure = settled(found.sure_low, found.sure_high)
        probe = self._answer(digest, look, before, computed, found, 0.0 if sure else error)
        self._log.decided(self._questions, {**asked, "settled": settled(found.low, found.high)}, probe)
        return probe

    def _neighbours(self, digest: str) -> list[Measured]:
        """Plans that questions were asked about before: the last one, and of the others the one measured farthest."""
        asked = [other for other in self._answers if other not in (FLOAT, digest)]
        others = sorted(asked[:-1], key=lambda other: self._charged[other])[1 - NEIGHBOURS :]
        return [self._known(other, self._charged[other]) for other in (*asked[-1:], *reversed(others))]

    def _whole(self, digest: str, plan: QuantPlan | None) -> Probe:
        """The answer from all images."""
        before = self._charged.get(digest, 0)
        if plan is not None and self.early is not None:
            self._order()
        computed = self._extend(digest, plan, len(self))
        return self._answer(digest, len(self), before, computed)

    def _order(self) -> Reference:
        """The order in which plans look at the images, from the float model's margins."""
        assert self.early is not None
        if self._reference is None:
            self.float_result()
            found = self._known(FLOAT, len(self))
            self._reference = make_reference(found.hits, found.margins, self.early)
        return self._reference

    def _places(self, digest: str) -> NDArray[np.int64]:
        """The images in the order in which this plan looks at them."""
        if digest == FLOAT or self.early is None:
            return np.arange(len(self))
        return self._order().order

    def _known(self, digest: str, stop: int) -> Measured:
        """What was measured at the first ``stop`` places of the order."""
        parts = self._log.parts[digest]
        hits, margins = np.concatenate([p.hits for p in parts]), np.concatenate([p.margins for p in parts])
        return Measured(hits[:stop], margins[:stop].astype(np.float64))

    def _extend(self, digest: str, plan: QuantPlan | None, stop: int) -> bool:
        """Measure the images up to ``stop`` of the order that are not known yet; whether there were any."""
        start = self._log.known(digest)
        if start >= stop:
            return False
        began = time.perf_counter()
        hits, margins, cost = self._measure(plan, self._places(digest), start, stop)
        part = Part(digest, start, hits, margins, time.perf_counter() - began, cost)
        more: dict[str, Any] = {}
        if plan is not None and start == 0:
            more = {"widths": describe(self.model, plan), "plan": plan.to_json()}
        self._log.add(part, more)
        return True

    def _answer(
        self, digest: str, seen: int, before: int, computed: bool, found: Bounds | None = None, error: float = 0.0
    ) -> Probe:
        """The answer from the first ``seen`` images, its cost counted from image ``before`` on."""
        probe = self._probe(digest, seen, before)
        if found is not None and seen < len(self):
            hits = probe.hits.copy()
            hits[self._places(digest)[seen:]] = found.assumed
            probe = replace(probe, hits=hits, bounds=(found.low, found.high), error=error)
        self._charged[digest] = max(before, seen)
        self._answers.pop(digest, None)  # the last answer comes last
        self._answers[digest] = replace(probe, cached=not computed)
        return self._answers[digest]

    def _probe(self, digest: str, seen: int, before: int) -> Probe:
        """What ``seen`` images say, the float model's answer for the others; the cost is counted from ``before`` on."""
        parts = [part for part in self._log.parts[digest] if part.start >= before and part.stop <= seen]
        seconds, cost = sum(part.seconds for part in parts), sum(part.cost for part in parts)
        hits = np.zeros(len(self), dtype=bool)
        order = self._places(digest)
        hits[order[:seen]] = self._known(digest, seen).hits
        if seen == len(self):
            return Probe(digest, hits, seconds, cost)
        hits[order[seen:]] = self._order().hits[seen:]
        return Probe(digest, hits, seconds, cost, seen=seen)

    def _measure(
        self, plan: QuantPlan | None, order: NDArray[np.int64], start: int, stop: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], float]:
        """Run the images at places ``start`` to ``stop`` - 1 of ``order``: hits, margins, and the cost in full passes.

        ``start`` is a multiple of the batch size, so that a batch always holds the same images.
        """
        hits, margins = np.zeros(stop - start, dtype=bool), np.zeros(stop - start, dtype=np.float32)
        cost = spent = 0.0
        prefixes = [] if plan is None else self._runner.prefixes(plan)
        handler = None if plan is None else FakeQuant(plan, self._specs, integer=self._integer, weights=self._weights)
        with torch.inference_mode(), nullcontext() if handler is None else self.model.handle(handler):
            for low in range(start, stop, self._batch):
                chosen = torch.from_numpy(order[low : min(low + self._batch, stop)])
                images = to_float(self.images[chosen])
                counted = first = 0
                if plan is None:
                    capsules = self._runner.run_float(images)
                else:
                    capsules, counted, first = self._runner.run(plan, prefixes, low // self._batch, images)
                labels = torch.from_numpy(self.labels)[chosen]
                place = slice(low - start, low - start + len(chosen))
                hits[place] = (predict(capsules) == labels).numpy()
                margins[place] = class_margins(capsules, labels).numpy()
                cost += len(chosen) / len(self) * float(self._runner.tail_cost[counted])
                spent += len(chosen) / len(self) * float(self._runner.tail_cost[first])
                if self._progress is not None:
                    self._progress(low - start + len(chosen), stop - start)
        self.spent += spent
        return hits, margins, cost

    def _identity(self) -> dict[str, Any]:
        """What the answers depend on besides the plan."""
        return {
            **model_identity(self.model),
            "images": images_digest(self.images, torch.from_numpy(self.labels)),
            "n": len(self),
            "integer": self._integer,
            "early": None if self.early is None else self.early.to_json(),
            "batch_size": self._batch,
        }
