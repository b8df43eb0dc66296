"""Exponents by their effect: the format of a point that disturbs the class capsules least.

The squared error of a tensor weighs all its elements alike. In a sum of many votes rounding errors average out while
clipped votes, which point the same way, do not; and what a squash saturates anyway may be clipped. So the exponents
around the one of least squared error are tried on a few images, one point at a time, all others in float, and the one
with the least change of the class-capsule lengths is taken.
"""

from dataclasses import replace

from torch import Tensor

from caplet.fixed import AnyFormat, FixedFormat, Rounding
from caplet.models.base import CapsNet
from caplet.nn.points import Role
from caplet.quant.choices import Exponents
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.plan.calibrate import Calibration
from caplet.quant.plan.formats import FormatRule

DEFAULT_IMAGES = 64
WIDEST = 10
"""Wider formats are taken by squared error: there the exponent hardly matters."""
_FARTHEST = 2


class Tuner:
    """Chooses formats on top of a calibration; each answer is computed when first asked for, and remembered.

    Points with a declared bound, biases (they keep many bits, and their exponents never moved where it was tried),
    powers of two, the paper's formats and widths above :data:`WIDEST` are the calibration's.

    Args:
        images: uint8 (N, C, H, W), a few dozen calibration images.
        cache: of measurements of the same model; None for none.

    Raises:
        ConfigError: no images. ModelError: images of another size.
    """

    def __init__(
        self, model: CapsNet, calibration: Calibration, images: Tensor, cache: MeasurementCache | None = None
    ) -> None:
        self.calibration = calibration
        self.perturber = Perturber(model, images, cache=cache)
        self._known: dict[tuple[str, int, FormatRule, Rounding], AnyFormat] = {}

    @property
    def spent(self) -> float:
        """Cost of all that was computed, in passes of one image through the whole model (multiply-accumulates)."""
        return self.perturber.spent

    def format(
        self, key: str, width: int, rule: FormatRule = FormatRule(), rounding: Rounding = Rounding.NEAREST
    ) -> AnyFormat:
        """The format of point ``key`` at ``width`` bits that changes the class-capsule lengths least."""
        start = self.calibration.format(key, width, rule, rounding)
        spec = self.calibration.specs[key]
        settled = spec.role is Role.BIAS or (spec.bound is not None and rule.exponents is Exponents.BOUND)
        if settled or rule.exponents is Exponents.PAPER or start.bits > WIDEST or not isinstance(start, FixedFormat):
            return start
        if (key, width, rule, rounding) not in self._known:
            self._known[key, width, rule, rounding] = self._climb(key, start, rounding)
        return self._known[key, width, rule, rounding]

    def _climb(self, key: str, start: FixedFormat, rounding: Rounding) -> FixedFormat:
        """The best neighbour, step by step in the direction that helps."""
        best, error = start, self.perturber.noise({key: start}, rounding)
        for direction in (-1, 1):
            for distance in range(1, _FARTHEST + 1):
                tried = replace(start, frac_bits=start.frac_bits + direction * distance)
                found = self.perturber.noise({key: tried}, rounding)
                if found >= error:
                    break
                best, error = tried, found
            if best != start:
                break
        return best
