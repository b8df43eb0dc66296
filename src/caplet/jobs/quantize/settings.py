"""The settings of a quantization run."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    ValidationError,
    model_validator,
)

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.quant.choices import Exponents, Granularity, Method
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.target import find_hardware
from caplet.quant.reconstruct.settings import Part
from caplet.quant.search.request import Request

Scheme = Literal["nearest", "truncate", "stochastic", "all"]


class QuantizeSettings(BaseModel):
    """Settings of a quantization run, immutable and JSON-able.

    Attributes:
        method: the search.
        tolerance: accepted loss of accuracy in percentage points; with ``relative`` in percent of the float accuracy.
        budget: bytes for all weights; None for a fifth of their size in 32-bit float with the method qcapsnets, and for
            no limit with the others.
        activation_budget: bytes for all computed tensors of one image (elements x bits); None for no limit.
        ram: bytes for the arena with all votes stored; None for no limit.
        granularity: which tensors share a width, with the methods progressive and ilp.
        hardware: what the plan must run on: a name of :data:`caplet.quant.plan.target.HARDWARE` or a .json file.
        rounding: one scheme, or ``all``: try each, keep the smallest result that meets the target.
        log2_weights: weights are signed powers of two.
        paper_formats: one integer bit everywhere, as in the paper, instead of calibrated exponents.
        tune: choose exponents by their effect on the lengths of the class capsules (see
            :mod:`caplet.quant.measure.tune`), instead of by the squared error of the tensor alone.
        reconstruct: parts of reconstruction (:class:`caplet.quant.reconstruct.settings.Part`) that fit every plan which
            the search proposes, before its integers are accepted. A plan within the budgets that missed the target
            with nearest rounding may keep it when fitted.
        narrow: lower the widths of the accepted fit further, as long as its fits keep the target.
        explore: the method ilp looks for plans smaller than the budgets; without it, it proposes the plan of least
            noise within them and no other.
        exact: every decision of the search looks at all calibration images and computes every stage: no early
            decisions, no kept stage outputs. For comparison; it takes several times as long.
        confidence: accept a plan only where the loss on images like the calibration images is at most the tolerance
            with this one-sided confidence (0.5..1, e.g. 0.95); None accepts by the loss on these very images.
        simplify_routing: first try fewer routing iterations and constant couplings (see
            :mod:`caplet.quant.search.simplify_routing`); what they cost is taken off the tolerance.
        seed: of stochastic rounding, 0 .. 2**32 - 1.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Method.QCAPSNETS
    tolerance: float = 0.2
    relative: bool = False
    budget: PositiveInt | None = None
    activation_budget: PositiveInt | None = None
    ram: PositiveInt | None = None
    granularity: Granularity = Granularity.LAYER
    hardware: str = "portable"
    rounding: Scheme = "nearest"
    log2_weights: bool = False
    paper_formats: bool = False
    tune: bool = True
    simplify_routing: bool = False
    reconstruct: tuple[Part, ...] = ()
    narrow: bool = False
    explore: bool = True
    exact: bool = False
    confidence: float | None = Field(default=None, ge=0.5, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(f"quantize: {name}: {first['msg']} (found {first['input']!r:.100})") from None

    def request(self) -> Request:
        """What the search is asked for. Raises ConfigError for values out of range, or unknown hardware."""
        schemes = tuple(Rounding) if self.rounding == "all" else (Rounding(self.rounding),)
        return Request(
            self.tolerance,
            None if self.budget is None else 8 * self.budget,
            None if self.activation_budget is None else 8 * self.activation_budget,
            self.ram,
            self.relative,
            schemes,
            FormatRule(Exponents.PAPER if self.paper_formats else Exponents.BOUND, self.log2_weights),
            self.seed,
            self.granularity,
            find_hardware(self.hardware),
            self.explore,
        )
