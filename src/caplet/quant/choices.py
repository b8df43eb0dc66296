"""What a user of quantization chooses from by name. Imports no torch, so that help texts come fast."""

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
        earlier = {
            "equalise": cls.EQUALIZATION,
            "exponents": cls.SCALES,
            "channels": cls.PER_CHANNEL,
            "joint": cls.END_TO_END,
        }
        return earlier.get(str(value))
