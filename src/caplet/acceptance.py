"""One rule of acceptance: what a plan or a smaller network must reach, on which images, and why it was rejected."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caplet.errors import ConfigError
from caplet.metrics import Accuracy, Paired, accuracy, images_to_resolve, loss_limit, paired

CONFIDENCE = 0.95
"""Of the limit of the loss that is reported in any case."""
_TINY = 1e-9  # a tolerance of exactly k images must allow k


@dataclass(frozen=True, eq=False)
class Acceptance:
    """What a candidate must reach against the float model, image by image.

    Attributes:
        reference: images that the float model classifies correctly, bool (n,).
        tolerance: accepted loss of accuracy in percentage points; with ``relative`` in percent of the float accuracy.
        images: what the images are, for sentences.
        interval: the upper end of the paired 95 % interval decides, instead of the loss itself.

    Raises:
        ConfigError: a tolerance that is negative or not finite.

    >>> acceptance = Acceptance(np.arange(1000) < 900, 0.3)
    >>> acceptance.needed(), acceptance.reason(np.arange(1000) < 896)
    (897, '896 of 1,000 calibration images are correct, 897 are needed')
    """

    reference: NDArray[np.bool_]
    tolerance: float
    relative: bool = False
    images: str = "calibration images"
    interval: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.tolerance) or self.tolerance < 0:
            raise ConfigError(f"tolerance is {self.tolerance}; the rule is a number of percentage points, 0 or more")

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.reference)

    @property
    def accuracy(self) -> Accuracy:
        """The float model's."""
        return accuracy(int(self.reference.sum()), self.n)

    @property
    def allowed(self) -> float:
        """Images that may be lost; not rounded."""
        scale = int(self.reference.sum()) / self.n if self.relative else 1.0
        return self.tolerance / 100 * scale * self.n

    @property
    def points(self) -> float:
        """The accepted loss in percentage points of all images."""
        return 100 * self.allowed / self.n

    def needed(self, fraction: float = 1.0) -> int:
        """Images that must be classified correctly where ``fraction`` of the tolerance may be spent."""
        return int(self.reference.sum()) - math.floor(fraction * self.allowed + _TINY)

    def accepts(self, correct: NDArray[np.bool_]) -> bool:
        """Whether a candidate that classifies ``correct``, bool (n,), correctly is accepted."""
        return self.reason(correct) is None

    def reason(self, correct: NDArray[np.bool_]) -> str | None:
        """Why a candidate is rejected, in one sentence; None where it is accepted."""
        found = int(correct.sum())
        if self.interval:
            high = self.paired(correct).high
            if high > self.points:
                return f"the loss on {self.n:,} {self.images} may be {high:.2f} points, {self.points:.2f} are allowed"
            return None
        if found < self.needed():
            return f"{found:,} of {self.n:,} {self.images} are correct, {self.needed():,} are needed"
        return None

    def paired(self, correct: NDArray[np.bool_]) -> Paired:
        """The float model and the candidate on the same images."""
        return paired(self.reference, correct)

    def limit(self, correct: NDArray[np.bool_]) -> float:
        """One-sided upper limit of the loss on other images like these (:data:`CONFIDENCE`), percentage points."""
        pair = self.paired(correct)
        return loss_limit(pair.n, pair.n10, pair.n01, CONFIDENCE)

    def describe(self, correct: NDArray[np.bool_]) -> str:
        """The figures of the decision, for messages."""
        if self.interval:
            pair = self.paired(correct)
            return f"loss {pair.loss:+.2f} points, at most {pair.high:+.2f}, {self.points:.2f} allowed"
        return f"{int(correct.sum()):,} correct, {self.needed():,} needed"

    def warning(self, correct: NDArray[np.bool_]) -> str | None:
        """What to say where the images are too few to be sure that other ones lose no more than the tolerance."""
        limit = self.limit(correct)
        if self.interval or limit <= self.points or self.allowed <= 0:
            return None
        pair = self.paired(correct)
        enough = images_to_resolve(pair.n, pair.n10, pair.n01, self.points, CONFIDENCE)
        advice = f"; about {enough:,} images would tell {self.points:g} points from none (--calibration-size)"
        return (
            f"warning: on these {pair.n:,} images the loss is {pair.loss:.2f} points; on others like them it may be"
            f" {limit:.2f} ({100 * CONFIDENCE:g} % confidence), more than the tolerance of {self.points:g}"
            f"{advice if enough > pair.n else ''}; --accept confidence decides by images that the search has not seen"
        )

    def to_json(self, correct: NDArray[np.bool_]) -> dict[str, Any]:
        """The paired comparison and the decision, for a run's record."""
        limits = {f"loss_limit_{100 * CONFIDENCE:g}": self.limit(correct)}
        return {**asdict(self.paired(correct)), **limits, "accepted": self.accepts(correct)}
