"""How much each unit, alone at a width, disturbs the class capsules: what orders the progressive search's steps and
makes up the integer program's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from caplet.fixed import AnyFormat, Rounding
from caplet.quant.measure.cache import Kept
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.identity import images_digest
from caplet.quant.plan.formats import FormatRule, FormatSource
from caplet.quant.plan.units import Unit


class Susceptibility:
    """Measured noise at the class capsules, by unit and width; each figure is measured when first asked for.

    The noise is the mean squared change of the class capsules' lengths, dimensionless, when one unit is rounded and
    everything else is float. Independent errors add up in it, which counts of changed predictions on a few hundred
    images do not: they are mostly zero. Formats are the source's own; exponents that a restricted shift moves
    (:func:`caplet.quant.plan.target.fit_shifts`) are not followed here.

    Args:
        images: how many of the evaluator's images to use, at even distances.
        kept: answers of the same model; None for none.

    Attributes:
        cost: of all that was asked, in full passes of all the evaluator's images; the same where an interrupted run had
            measured it.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        source: FormatSource,
        units: Sequence[Unit],
        *,
        images: int,
        rule: FormatRule,
        rounding: Rounding,
        seed: int = 0,
        kept: Kept | None = None,
    ) -> None:
        self.units, self.source = tuple(units), source
        self._rule, self._rounding, self._seed = rule, rounding, seed
        count = min(images, len(evaluator))
        chosen = torch.arange(count) * len(evaluator) // count
        labels = torch.from_numpy(evaluator.labels)[chosen]
        self._perturber = Perturber(evaluator.model, evaluator.images[chosen], labels)
        self._digest = images_digest(evaluator.images[chosen])
        self._kept = Kept(None, "log of sensitivities", {}) if kept is None else kept
        self._classes = evaluator.model.config.classes
        self._all = len(evaluator)
        self._known: dict[tuple[int, int], float] = {}
        self.cost = 0.0

    def noise(self, index: int, width: int) -> float:
        """The noise of unit ``index`` at ``width`` bits."""
        if (index, width) not in self._known:
            keys = self.units[index].points
            if not self._known:
                self.cost += self._perturber.n / self._all  # the reference
            self.cost += self._perturber.cost(keys) / self._all
            self._known[index, width] = self._measure(dict.fromkeys(keys, width))
        return self._known[index, width]

    def _measure(self, widths: dict[str, int]) -> float:
        formats = {key: self.source.format(key, width, self._rule, self._rounding) for key, width in widths.items()}
        question = {
            "formats": {key: fmt.to_json() for key, fmt in formats.items()},
            "rounding": str(self._rounding),
            "seed": self._seed,
            "images": self._digest,
        }
        return self._kept.answer(question, lambda: self._noise(formats))

    def _noise(self, formats: Mapping[str, AnyFormat]) -> float:
        effect = self._perturber.effect(formats, self._rounding, self._seed)
        return effect.length_noise / effect.n / self._classes
