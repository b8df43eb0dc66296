"""What is reconstructed, and how thoroughly."""

from typing import Any

from pydantic import ConfigDict, Field

from caplet.errors import ConfigError, choose
from caplet.fixed import ChannelFormat, PlanFormat
from caplet.quant.choices import EARLIER_PARTS, Part
from caplet.settings import Batch, Few, Many, Seed, Settings, Weight

DEFAULT_IMAGES = 1024
_MOVES, _MOVES_FITTED = (0, -1, -2, -3, 1), (0, -1)


def parse_parts(text: str) -> tuple[Part, ...]:
    """Parts from a comma-separated list, in the order in which they are applied.

    >>> parse_parts("rounding,bias")
    (<Part.BIAS: 'bias'>, <Part.ROUNDING: 'rounding'>)

    Raises:
        ConfigError: an unknown part, or one named twice.
    """
    names = (name.strip() for name in text.split(","))
    found = [choose(EARLIER_PARTS.get(name, name), Part, "part of reconstruction") for name in names]
    if len(set(found)) < len(found):
        raise ConfigError(f"reconstruction: parts {text!r}; name each once")
    return tuple(part for part in Part if part in found)


class ReconstructSettings(Settings):
    """How blocks are reconstructed.

    Attributes:
        parts: what is done; at least one.
        images: calibration images, 1 or more (the first ones of those given).
        sweeps: passes over all weights of a block, 1 or more.
        rows_per_column: output positions used per input column of a convolution (at least :attr:`least_rows` in all);
            more of them cost time, fewer fit the calibration images more closely than the others.
        least_rows: see ``rows_per_column``.
        shrink: how far input correlations are believed less than variances: 0 believes them as measured; larger
            values keep weights nearer to their float values where the images say little.
        tuning_images: images on which exponents are tuned, 1 or more.
        tuning_sweeps: passes over all exponents, 1 or more.
        end_to_end_steps: gradient steps of ``end-to-end``, 1 or more.
        end_to_end_batch: images per step, 1 or more.
        end_to_end_rate: how far a code may move in a step at first, in steps of its format; it falls to 0 along a
            cosine.
        end_to_end_smooth: the target of ``end-to-end`` is the float model's answer averaged over shifts of up to this
            fraction of the image's side (rounded to pixels: 1 of 28 or 32); 0 for its answer to the image itself.
        seed: of the choice of output positions, and of the images of every step.

    Raises:
        ConfigError: a value out of range.
    """

    model_config = ConfigDict(populate_by_name=True, loc_by_alias=False)
    # The aliases are earlier names, which blocks on disk have.
    where = "reconstruction"

    parts: tuple[Part, ...] = Field(default=tuple(Part), min_length=1)
    images: Many = DEFAULT_IMAGES
    sweeps: Few = 2
    rows_per_column: Weight = 0.5
    least_rows: Many = 8192
    shrink: Weight = 0.5
    tuning_images: Many = 128
    tuning_sweeps: Few = 2
    end_to_end_steps: Many = Field(default=400, alias="joint_steps")
    end_to_end_batch: Batch = Field(default=32, alias="joint_batch")
    end_to_end_rate: Weight = Field(default=0.02, alias="joint_rate")
    end_to_end_smooth: Weight = Field(default=0.036, alias="joint_smooth")
    seed: Seed = 0

    def __init__(self, parts: tuple[Part, ...] = tuple(Part), **others: Any) -> None:
        super().__init__(**{"parts": parts, **others})

    def moves(self, fmt: PlanFormat) -> tuple[int, ...]:
        """By how much a channel's exponent may leave that of least squared error among the weights of format ``fmt``.

        Clipping large weights costs little among the weights, but all of it goes in one direction, while rounding
        errors cancel in a sum, the more so where codes are fitted.
        """
        if not isinstance(fmt, ChannelFormat) or Part.PER_CHANNEL not in self.parts:
            return (0,)
        return _MOVES_FITTED if Part.ROUNDING in self.parts else _MOVES
