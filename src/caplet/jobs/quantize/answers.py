"""Which images a plan's integers and the float model have right, the latter asked only where it can count.

The float model costs more than the integers, and of most images it would say nothing new: where the integers are right
by a clear margin, it is right, too. It is asked about all images that the integers have wrong, as any of them may be
lost, and about those that they have right by little more than the margins of lost ones. An answer that is gained beyond
that is not credited, so a loss is never taken to be smaller than it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.program import Program
from caplet.runtime.engine import Engine, results

Correct = NDArray[np.bool_]
CLOSE = 0.05
"""The fraction of all images, of least margin, about which the float model is asked in any case."""
FARTHER = 1.25
"""How far beyond the largest margin of a lost answer gained ones are looked for."""


@dataclass(frozen=True, eq=False)
class PlanAnswers:
    """What a plan's integers answer.

    Attributes:
        correct: which images they classify correctly, bool (n,).
        margin: by how much the longest class capsule is longer than the next one, in codes, float32 (n,); None where
            that says nothing of the float model, which is then asked about every image.
    """

    correct: Correct
    margin: NDArray[np.float32] | None = None

    def then(self, more: "PlanAnswers") -> "PlanAnswers":
        """These, then those of further images."""
        margins = (self.margin, more.margin)
        margin = None if margins[0] is None or margins[1] is None else np.concatenate([margins[0], margins[1]])
        return PlanAnswers(np.concatenate([self.correct, more.correct]), margin)


def answers_of(program: Program, images: ImageSet, engine: Engine | str = Engine.AUTO) -> PlanAnswers:
    """What the integers of ``program`` answer on images."""
    found, _ = results(program, images.images.numpy(), engine)
    correct = np.asarray(found.predictions == images.labels.numpy())
    longest = np.sqrt(np.partition(found.lengths, -2, axis=1)[:, -2:].astype(np.float64))
    return PlanAnswers(correct, (longest[:, 1] - longest[:, 0]).astype(np.float32))


class FloatAnswers:
    """Which of some images the float model classifies correctly, each asked about at most once.

    Args:
        reference: which images of a set it classifies correctly, bool (n,).
        images: of which plans answer the first ones.

    Attributes:
        asked: bool (n,), about which of the images it has been asked.
    """

    def __init__(self, reference: Callable[[ImageSet], Correct], images: ImageSet) -> None:
        self._reference, self._images = reference, images
        self._correct, self.asked = (np.zeros(len(images), dtype=bool) for _ in range(2))

    def beside(self, plan: PlanAnswers) -> Correct:
        """Which of the first images the float model has right, bool (n,), to be compared with ``plan``, of n images:
        right as the plan is where it need not be asked."""
        correct, margin = plan.correct, plan.margin
        self._ask(np.ones_like(correct) if margin is None else ~correct)
        if margin is not None:
            lost = margin[self._correct[: len(correct)] & ~correct]
            reach = max(FARTHER * float(lost.max(initial=0.0)), float(np.quantile(margin, CLOSE)))
            self._ask(margin <= reach)
        n = len(correct)
        return np.where(self.asked[:n], self._correct[:n], correct)

    def _ask(self, wanted: Correct) -> None:
        new = torch.from_numpy(wanted & ~self.asked[: len(wanted)]).nonzero().flatten()
        if len(new):
            self._correct[new] = self._reference(self._images.subset(new))
            self.asked[new] = True
