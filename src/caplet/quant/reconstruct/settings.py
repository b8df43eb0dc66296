"""What is reconstructed, and how thoroughly."""

from dataclasses import asdict, dataclass
from typing import Any

from caplet.errors import ConfigError, suggest
from caplet.quant.choices import Part

DEFAULT_IMAGES = 1024


def parse_parts(text: str) -> tuple[Part, ...]:
    """Parts from a comma-separated list, in the order in which they are applied.

    >>> parse_parts("rounding,bias")
    (<Part.BIAS: 'bias'>, <Part.ROUNDING: 'rounding'>)

    Raises:
        ConfigError: an unknown part, or one named twice.
    """
    found = []
    for name in (name.strip() for name in text.split(",")):
        try:
            found.append(Part(name))
        except ValueError:
            hint = suggest(name, Part)
            message = f"reconstruction: unknown part {name!r}{hint} (known: {', '.join(Part)})"
            raise ConfigError(message) from None
    if len(set(found)) < len(found):
        raise ConfigError(f"reconstruction: parts {text!r}; name each once")
    return tuple(part for part in Part if part in found)


@dataclass(frozen=True)
class ReconstructSettings:
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
        joint_steps: gradient steps of ``end-to-end``, 1 or more.
        joint_batch: images per step, 1 or more.
        joint_rate: how far a code may move in a step at first, in steps of its format; it falls to 0 along a cosine.
        joint_smooth: the target of ``end-to-end`` is the float model's answer averaged over shifts of up to this
            fraction of the image's side (rounded to pixels: 1 of 28 or 32); 0 for its answer to the image itself.
        seed: of the choice of output positions, and of the images of every step.

    Raises:
        ConfigError: a value out of range.
    """

    parts: tuple[Part, ...] = tuple(Part)
    images: int = DEFAULT_IMAGES
    sweeps: int = 2
    rows_per_column: float = 0.5
    least_rows: int = 8192
    shrink: float = 0.5
    tuning_images: int = 128
    tuning_sweeps: int = 2
    joint_steps: int = 400
    joint_batch: int = 32
    joint_rate: float = 0.02
    joint_smooth: float = 0.036
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Part) for part in self.parts):
            found = [*map(str, self.parts)]
            raise ConfigError(f"reconstruction: parts {found}; give at least one of {', '.join(Part)}")
        for name in ("images", "sweeps", "least_rows", "tuning_images", "tuning_sweeps", "joint_steps", "joint_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reconstruction: {name} is {getattr(self, name)}; the rule is 1 or more")
        for name in ("rows_per_column", "shrink", "joint_rate", "joint_smooth", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"reconstruction: {name} is {getattr(self, name)}; the rule is 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "parts": [str(part) for part in self.parts]}
