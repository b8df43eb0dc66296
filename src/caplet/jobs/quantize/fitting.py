"""Reconstruction inside a quantization run: plans become fitted models."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.models.base import CapsNet
from caplet.progress import Note
from caplet.quant.choices import Part
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.reconstruct import Reconstruction, Reconstructor
from caplet.quant.reconstruct.reduce_bitwidths import WidthStep
from caplet.quant.reconstruct.settings import DEFAULT_IMAGES, ReconstructSettings
from caplet.quant.search.search import Request

_REPORTS = 8
"""Notes on the way through a part of many steps."""


def check_request(parts: tuple[Part, ...], request: Request) -> None:
    """Raise ConfigError where reconstruction cannot work for what is asked."""
    if not parts:
        return
    if any(rounding.alone is not Rounding.NEAREST for rounding in request.roundings):
        found = ", ".join(request.roundings)
        raise ConfigError(
            f"reconstruction: rounding {found}; fitted weights must round to nearest (--rounding nearest)"
        )
    if request.rule.log2_weights:
        raise ConfigError("reconstruction works for fixed-point weights; leave out --reconstruct or --log2-weights")


class Fitter:
    """Fits plans of one model and remembers the fits; without parts a plan's model is the float model itself.

    Attributes:
        steps: lower widths of single points that were looked at.

    Args:
        images: the calibration split.
        folder: of the run; keeps the last fit of every block.
        note: called with a line of text.
    """

    def __init__(
        self, model: CapsNet, images: ImageSet, parts: tuple[Part, ...], folder: Path, note: Note, seed: int = 0
    ) -> None:
        self._model, self._images, self._parts, self._note = model, images, parts, note
        self._known: dict[QuantPlan, Reconstruction] = {}
        self._plain: set[QuantPlan] = set()
        self.steps: list[WidthStep] = []
        self._fitter: Reconstructor | None = None
        if parts:
            self._chosen = images.evenly_spaced(DEFAULT_IMAGES).images
            self._settings = ReconstructSettings(parts, seed=seed)
            self._fitter = Reconstructor(model, self._chosen, self._settings, folder=folder, progress=self._report)
            self._whole: Callable[[QuantPlan], Reconstruction] = self._fitter.fit

    @property
    def active(self) -> bool:
        """Whether plans are fitted at all."""
        return self._fitter is not None

    @property
    def identity(self) -> str:
        """A digest of all that fits depend on, apart from the plan; empty where nothing is fitted."""
        return "" if self._fitter is None else self._fitter.store.identity

    def fit(self, plan: QuantPlan) -> Reconstruction:
        """The model for a plan, and the plan with the exponents that fitting chose."""
        if self._fitter is None or plan in self._plain:
            return Reconstruction(self._model, plan, ())
        if plan not in self._known:
            self._note(f"reconstructing: {', '.join(self._parts)}")
            self._known[plan] = self._whole(plan)
        return self._known[plan]

    @cached_property
    def draft(self) -> Callable[[QuantPlan], Reconstruction]:
        """Fits without the end-to-end part, which takes minutes: of the many plans that are looked at on the way."""
        alone = tuple(part for part in self._parts if part is not Part.END_TO_END)
        if alone == self._parts:
            return self.fit
        if not alone:
            return lambda plan: Reconstruction(self._model, plan, ())
        settings = self._settings.model_copy(update={"parts": alone})
        return Reconstructor(self._model, self._chosen, settings).fit

    def only_draft(self) -> None:
        """From now on fits are without the end-to-end part."""
        self._whole, self._known, self.draft = self.draft, {}, self.fit
        self._parts = tuple(part for part in self._parts if part is not Part.END_TO_END)

    def leave(self, plan: QuantPlan) -> None:
        """From now on the plan's model is the float model itself: its weights round to nearest."""
        self._plain.add(plan)

    def take_up(self, plan: QuantPlan) -> None:
        """Undo :meth:`leave`."""
        self._plain.discard(plan)

    def _report(self, name: str, done: int, total: int) -> None:
        if done == total or done % math.ceil(total / _REPORTS) == 0:
            self._note(f"reconstructing: {name}, {done:,} of {total:,}")

    def record(self, plan: QuantPlan) -> dict[str, Any] | None:
        """What was done for ``plan`` as JSON values; None without reconstruction."""
        if self._fitter is None:
            return None
        return {
            "parts": [str(part) for part in self._parts],
            "left": plan in self._plain,
            "blocks": [asdict(block) for block in self.fit(plan).blocks],
            "narrowing": [step.to_json() for step in self.steps],
        }
