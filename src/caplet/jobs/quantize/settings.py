"""The settings of a quantization run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from caplet.quant.choices import Granularity, Method, Part
from caplet.quant.reconstruct.settings import parse_parts
from caplet.settings import Bytes, Percent, Settings, option

Scheme = Literal["nearest", "truncate", "stochastic", "carry", "all"]
TARGET, BUDGETS, SEARCH, NUMBERS, FITTING, RUN = "Target", "Budgets", "Search", "Numbers", "Fitting", "Run"
"""Headings of the options."""
_PARTS = "scales,per-channel,bias,rounding"
_EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {},
    "default": {"reconstruct": _PARTS},
    "max": {"reconstruct": f"{_PARTS},end-to-end", "narrow": True},
}
"""What each effort adds to the search by integer linear programming, one width for each tensor."""


def _parts(value: Any) -> Any:
    return parse_parts(value) if isinstance(value, str) else value


class Accepting(Settings):
    """On which images a result is accepted, and how sure that must be."""

    accept: Literal["confidence", "measured"] = option("confidence", TARGET)
    """confidence: images that the search has not seen must show that new ones lose at most the tolerance. measured:
    decide by the loss on the very images that the search chose by, as papers do."""
    confidence: float = option(0.95, TARGET, ge=0.5, lt=1)
    """How sure that must be, one-sided (0.5 to 1)."""
    validation: str | None = option(None, TARGET, examples=["new-images"])
    """Images that the network was never trained on, to accept by: a folder (<class>/*, or unlabelled images), or
    calibration or train where you know that the network has not seen that split."""

    def check(self) -> None:
        """Raise ValueError for validation images that nothing would look at."""
        if self.accept == "measured" and self.validation is not None:
            raise ValueError("validation images decide by a confidence; leave out --accept measured")


class QuantizeSettings(Accepting):
    """Settings of a quantization run.

    Without a ``method``, ``effort`` chooses it, the granularity and the fitting; each of these that is given stands.
    With a ``method`` and no ``effort``, that search runs alone, as its source has it.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    where = "quantize"

    tolerance: Percent = option(0.2, TARGET)
    """Accepted loss of accuracy, in percentage points."""
    relative: bool = option(False, TARGET)
    """The tolerance is in percent of the float accuracy, as in the paper of Q-CapsNets."""
    hardware: str = option("portable", TARGET)
    """What plans must run on: portable, mcu32, bytes, byte, int8, or a .json file."""
    effort: Literal["quick", "default", "max"] = option("default", TARGET)
    """quick: a search; default: smaller plans are then fitted; max: end to end, too, and narrowed point by point (many
    minutes more)."""

    budget: Bytes | None = option(None, BUDGETS)
    """Memory for all weights, e.g. 5MB. Default: a fifth of their size in 32-bit float for qcapsnets, else no limit."""
    activation_budget: Bytes | None = option(None, BUDGETS)
    """Memory for all computed tensors of one image, elements x bits (progressive, ilp)."""
    ram: Bytes | None = option(None, BUDGETS)
    """RAM of the device with all votes stored, e.g. 64KiB (progressive, ilp)."""

    method: Method = option(Method.ILP, SEARCH)
    """The search: docs/qcapsnets.md, docs/progressive.md, docs/ilp.md. One that is named runs alone, by layer, unless
    --effort or the options of its own say otherwise."""
    granularity: Granularity = option(Granularity.LAYER, SEARCH)
    """Which tensors share a width (progressive, ilp); without --method, tensor."""
    explore: bool = option(True, SEARCH)
    """ilp: also look for plans smaller than the budgets, or only propose the one of least noise within them."""
    exact: bool = option(False, SEARCH)
    """Decide on all calibration images and compute every stage anew: slow, for comparison."""

    rounding: Scheme = option("nearest", NUMBERS)
    """How values between two codes are resolved. carry: to nearest, and what that takes away from a vote is carried on
    to the next input capsule's (docs/arithmetic.md). all tries the first three and keeps the smallest result. Without
    --method, carry."""
    log2_weights: bool = option(False, NUMBERS)
    """Weights are signed powers of two (at most 5 bits)."""
    paper_formats: bool = option(False, NUMBERS)
    """One integer bit everywhere, as in the paper of Q-CapsNets, instead of calibrated exponents."""
    tune: bool = option(True, NUMBERS)
    """Choose exponents by their effect on the lengths of the class capsules, not by each tensor's squared error."""
    simplify_routing: bool = option(False, NUMBERS)
    """First try constant couplings and fewer routing iterations; they stay where a paired test on the calibration
    split accepts them, and what they cost is taken off the tolerance."""

    reconstruct: Annotated[tuple[Part, ...], BeforeValidator(_parts)] = option((), FITTING)
    """Fit plans before their integers are accepted: a list of equalization, scales, per-channel, bias, rounding,
    end-to-end. Without --method, as --effort says."""
    narrow: bool = option(False, FITTING)
    """Lower the widths of the accepted fit as far as the target allows."""

    seed: int = option(0, RUN, ge=0, lt=1 << 32)
    """Of stochastic rounding."""

    @model_validator(mode="before")
    @classmethod
    def _by_effort(cls, values: Any) -> Any:
        """What the effort chooses, where nothing else is said."""
        if not isinstance(values, dict) or ("method" in values and "effort" not in values):
            return values
        chosen = _EFFORTS.get(values.get("effort", "default"), {})
        rounding = "nearest" if values.get("paper_formats") else "carry"
        cannot = values.get("rounding", rounding) not in ("nearest", "carry") or values.get("log2_weights")
        if cannot or values.get("paper_formats") or not values.get("reconstruct", True):  # nothing is fitted
            chosen = {}
        return {"method": Method.ILP, "granularity": Granularity.TENSOR, "rounding": rounding, **chosen, **values}
