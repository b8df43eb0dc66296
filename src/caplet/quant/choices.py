"""What a user of quantization chooses from by name. Imports no torch, so that help texts come fast."""

from __future__ import annotations

from enum import StrEnum


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
