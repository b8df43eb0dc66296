"""The last word on a plan: do its integers keep the target on the calibration images?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.metrics import images_to_resolve, loss_limit, paired

CONFIDENCE = 0.95
"""Of the limit that is reported in any case."""


@dataclass(frozen=True)
class Judge:
    """Accepts or rejects by the answers of a Program on all calibration images, paired with the float model's.

    Attributes:
        float_hits: bool (n,): images that the float model classifies correctly.
        needed: images that must be classified correctly.
        allowed: images that may be lost.
        confidence: where given, the loss on other images like these, too, must be within the tolerance with this
            one-sided confidence (see :func:`caplet.metrics.loss_limit`).
    """

    float_hits: NDArray[np.bool_]
    needed: int
    allowed: float
    confidence: float | None = None

    @property
    def tolerance(self) -> float:
        """The accepted loss in percentage points."""
        return 100 * self.allowed / len(self.float_hits)

    @property
    def condition(self) -> str:
        """What is asked for beyond the number of images, for messages."""
        return "" if self.confidence is None else f" at a confidence of {self.confidence:g}"

    def limit(self, hits: NDArray[np.bool_], confidence: float) -> float:
        """Upper confidence limit of the loss, percentage points."""
        pair = paired(self.float_hits, hits)
        return loss_limit(pair.n, pair.n10, pair.n01, confidence)

    def accepts(self, hits: NDArray[np.bool_]) -> bool:
        """Whether a Program with these answers keeps the target."""
        if int(hits.sum()) < self.needed:
            return False
        return self.confidence is None or self.limit(hits, self.confidence) <= self.tolerance

    def describe(self, hits: NDArray[np.bool_]) -> str:
        """The figures of the decision in words."""
        text = f"{int(hits.sum()):,} correct, {self.needed:,} needed"
        if self.confidence is None:
            return text
        limit = self.limit(hits, self.confidence)
        return f"{text}; loss at most {limit:.2f} points{self.condition}, {self.tolerance:.2f} allowed"

    def warning(self, hits: NDArray[np.bool_]) -> str | None:
        """What to say where the images are too few to be sure that other ones lose no more than the tolerance."""
        limit = self.limit(hits, CONFIDENCE)
        if self.confidence is not None or limit <= self.tolerance or self.allowed <= 0:
            return None
        pair = paired(self.float_hits, hits)
        enough = images_to_resolve(pair.n, pair.n10, pair.n01, self.tolerance, CONFIDENCE)
        advice = f"; about {enough:,} images would tell {self.tolerance:g} points from none (--calibration-size)"
        return (
            f"warning: on these {pair.n:,} images the loss is {pair.loss:.2f} points; on others like them it may be"
            f" {limit:.2f} ({100 * CONFIDENCE:g} % confidence), more than the tolerance of {self.tolerance:g}"
            f"{advice if enough > pair.n else ''}; --confidence {CONFIDENCE:g} would not accept this plan"
        )

    def record(self, hits: NDArray[np.bool_]) -> dict[str, Any]:
        """The paired comparison on the calibration images, for a run's record."""
        limits = {f"loss_limit_{100 * CONFIDENCE:g}": self.limit(hits, CONFIDENCE)}
        return {**paired(self.float_hits, hits).to_json(), **limits, "accepted": self.accepts(hits)}
