"""What a run promised for new images: what the images that decide say, on disk and in words."""

from dataclasses import dataclass
from typing import Any

from caplet.runs.folder import typed


@dataclass(frozen=True)
class Look:
    """What fresh images say about a plan.

    Attributes:
        n: images looked at.
        lost, gained: of these, only the float model, or only the plan, classifies correctly; ``gained`` as far as they
            were looked for.
        loss, limit: of accuracy, in percentage points: here, and its upper limit for new images.
        error: probability of accepting a plan whose loss is above the tolerance.
        accepted: whether the limit is within the tolerance, and held-out images, if any, agree.
    """

    n: int
    lost: int
    gained: int
    loss: float
    limit: float
    error: float
    accepted: bool

    def __str__(self) -> str:
        verdict = "accepted" if self.accepted else "rejected"
        return (
            f"{self.n:,} fresh images: {self.lost:,} lost, {self.gained:,} gained; loss {self.loss:+.2f} points,"
            f" at most {self.limit:.2f} on new images: {verdict}"
        )


@dataclass(frozen=True)
class FreshRecord:
    """The images that decide; the network was trained on ``familiar`` ones."""

    about: str
    available: int
    familiar: bool


@dataclass(frozen=True)
class PromiseMetrics:
    """A tolerance that was promised for new images: what to expect of them, and whether the test split kept it."""

    tolerance: float
    confidence: float
    images: FreshRecord
    kept: bool
    expected: Look | None = None

    def verdict(self, test: float) -> str:
        """Asked, expected, measured on the test split (a loss of ``test`` points), kept or not."""
        asked = f"asked: a loss of at most {self.tolerance:.2f} points"
        kept = f"measured on the test split: {test:+.2f}: {'kept' if self.kept else 'not kept'}"
        if (found := self.expected) is None:
            return f"{asked}; no network was accepted; {kept}"
        images = f"{found.n:,} {self.images.about}"
        return f"{asked}; expected on new images: {found.loss:+.2f}, at most {found.limit:.2f} ({images}); {kept}"


def verdict_of(promise: Any, test: float) -> str | None:
    """The verdict on a promise in JSON values, with a loss of ``test`` points; None where nothing was promised."""
    return None if promise is None else typed(PromiseMetrics, promise, "the promise").verdict(test)
