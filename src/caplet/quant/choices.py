"""What a user of quantization chooses from by name. Imports no torch, so that help texts come fast."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caplet.errors import ConfigError
from caplet.settings import Few, Many, Seed, Settings, option


class Method(StrEnum):
    """Names of the search methods (see :mod:`caplet.quant.search.methods`)."""

    QCAPSNETS = "qcapsnets"
    PROGRESSIVE = "progressive"
    ILP = "ilp"


class Granularity(StrEnum):
    """How finely widths are set; weights (flash) and activations (RAM) are always apart.

    * ``network``: one width for all weights, one for all activations.
    * ``block``: two per block of the model (``model.groups()``); the input image belongs to the first block.
    * ``layer``: two per layer; the input image is a layer without weights.
    * ``tensor``: one per layer for its weights, and one for every computed tensor: votes, coupling, preactivation,
      activation and logits of a routing each have a width of their own. Biases and batch-norm constants, a few
      elements each, share their layer's weight width.
    """

    NETWORK = "network"
    BLOCK = "block"
    LAYER = "layer"
    TENSOR = "tensor"


class Exponents(StrEnum):
    """How the exponent of a fixed-point format is chosen.

    * ``bound``: by the declared bound where mathematics gives one, else by the smallest squared error.
    * ``error``: by the smallest squared error everywhere.
    * ``paper``: one integer bit everywhere (``frac_bits = bits - 1``), as Marchisio et al. 2020; on unsigned points
      that is the range [0, 2).
    """

    BOUND = "bound"
    ERROR = "error"
    PAPER = "paper"


class Part(StrEnum):
    """The parts of reconstruction, in the order in which they are applied; each can be used alone.

    * ``equalization`` (cross-layer): channels between a ReLU convolution and the next one are scaled to use their
      formats' ranges; the exponents of those points are then chosen anew, by squared error.
    * ``scales``: exponents are searched together, by the lengths of the class capsules; those of weights only without
      ``rounding``, which chooses codes for the exponents that they have.
    * ``per-channel``: every output channel of a weight gets an exponent of its own.
    * ``bias`` (correction): the mean error of every block on the calibration images is taken out of its bias.
    * ``rounding`` (adaptive): every weight's code is chosen to minimise its block's output error, not the weight's own
      error.
    * ``end-to-end``: codes and biases of all blocks are then moved together, by gradient, through squash and routing,
      to bring the class capsules near the float model's.

    Earlier names are understood: equalise, exponents, channels, joint.

    >>> Part("joint")
    <Part.END_TO_END: 'end-to-end'>
    """

    EQUALIZATION = "equalization"
    SCALES = "scales"
    PER_CHANNEL = "per-channel"
    BIAS = "bias"
    ROUNDING = "rounding"
    END_TO_END = "end-to-end"

    @classmethod
    def _missing_(cls, value: object) -> "Part | None":
        return cls(EARLIER_PARTS[str(value)]) if str(value) in EARLIER_PARTS else None


EARLIER_PARTS = {"equalise": "equalization", "exponents": "scales", "channels": "per-channel", "joint": "end-to-end"}


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths of ``"2-8"`` or ``"2,4,8"``; ranges include their ends. Raises ConfigError for another text.

    >>> parse_widths("2-4,8")
    (2, 3, 4, 8)
    """
    if re.fullmatch(r"\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?)*", text.replace(" ", "")) is None:
        raise ConfigError(f"widths {text!r}: the rule is a list of numbers and ranges, such as 2-8 or 2,4,8")
    ends = [part.split("-") for part in text.replace(" ", "").split(",")]
    return tuple(width for end in ends for width in range(int(end[0]), int(end[-1]) + 1))


def _widths(value: Any) -> Any:
    return parse_widths(value) if isinstance(value, str) else value


class SensitivitySettings(Settings):
    """What an error analysis measures.

    Attributes:
        exponents, log2_weights: how widths become formats; see :class:`caplet.quant.plan.formats.FormatRule`.

    Raises:
        ConfigError: no widths, one twice or out of range; fewer than 1 draw or image; a negative seed.
    """

    where = "sensitivity"

    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], BeforeValidator(_widths)] = option(
        (2, 3, 4, 5, 6, 7, 8), "Measurement", min_length=1
    )
    """Widths in bits, 1 to 16: a list such as 2,4,8 or a range such as 2-8."""
    draws: Few = option(3, "Measurement")
    """How many disjoint sets of calibration images."""
    images: Many | None = option(None, "Measurement")
    """Images per draw. Default: 128, or fewer in a small split."""
    rounding: Literal["nearest", "truncate", "stochastic", "carry"] = option("nearest", "Measurement")
    """How values between two codes are resolved."""
    exponents: Exponents = Exponents.BOUND
    log2_weights: bool = False
    seed: Seed = option(0, "Measurement")
    """Of the draws and of stochastic rounding."""

    def check(self) -> None:
        """Raise ValueError for a width that is given twice."""
        if len(set(self.widths)) < len(self.widths):
            raise ValueError(f"widths {[*self.widths]}; give each once")

    def within(self, n: int) -> "SensitivitySettings":
        """With the number of images per draw, where none is given, that n calibration images allow."""
        return self if self.images else self.model_copy(update={"images": max(1, min(128, n // self.draws))})
