"""How much each unit, alone at a width, disturbs the class capsules: what orders the progressive search's steps and
makes up the integer program's loss."""

from collections.abc import Mapping, Sequence

import torch

from caplet.fixed import AnyFormat, Rounding
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.log import MeasurementCache, images_digest
from caplet.quant.plan.units import Unit
from caplet.quant.search.search import Request, Workbench


class UnitSensitivity:
    """Measured noise at the class capsules, by unit and width; each figure is measured when first asked for.

    The noise is the mean squared change of the class capsules' lengths, dimensionless, when one unit is rounded and
    everything else is float. Independent errors add up in it, which counts of changed predictions on a few hundred
    images do not: they are mostly zero. Formats are the source's own; exponents that a restricted shift moves
    (:func:`caplet.quant.plan.target.fit_shifts`) are not followed here.

    Args:
        images: how many of the evaluator's images to use, at even distances.
    """

    def __init__(
        self, bench: Workbench, request: Request, rounding: Rounding, units: Sequence[Unit], images: int
    ) -> None:
        evaluator = bench.evaluator
        self.units, self._source = tuple(units), bench.source
        self._rule, self._rounding, self._seed = request.rule, rounding, request.seed
        count = min(images, len(evaluator))
        chosen = torch.arange(count) * len(evaluator) // count
        self._perturber = Perturber(evaluator.model, evaluator.images[chosen])
        self._digest = images_digest(evaluator.images[chosen])
        self._cache = bench.cache or MeasurementCache(None, "log of sensitivities", {})
        self._all = len(evaluator)
        self._known: dict[tuple[int, int], float] = {}

    @property
    def cost(self) -> float:
        """Of all that was computed, in full passes of all the evaluator's images."""
        return self._perturber.spent / self._all

    def noise(self, index: int, width: int) -> float:
        """The noise of unit ``index`` at ``width`` bits."""
        if (index, width) not in self._known:
            keys = self.units[index].points
            self._known[index, width] = self._measure(dict.fromkeys(keys, width))
        return self._known[index, width]

    def _measure(self, widths: dict[str, int]) -> float:
        formats = {key: self._source.format(key, width, self._rule, self._rounding) for key, width in widths.items()}
        asked = {
            "formats": {key: fmt.to_json() for key, fmt in formats.items()},
            "rounding": str(self._rounding),
            "seed": self._seed,
            "images": self._digest,
        }
        return self._cache.answer(asked, lambda: self._noise(formats))

    def _noise(self, formats: Mapping[str, AnyFormat]) -> float:
        return self._perturber.noise(formats, self._rounding, self._seed)
