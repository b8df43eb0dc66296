"""The settings of measurements. Imports no torch, so that help texts come fast."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from caplet.settings import Settings, option

PANEL = "Measurement"


class BenchSettings(Settings):
    """How two models are measured side by side."""

    where = "bench"

    threads: PositiveInt = option(1, PANEL)
    """CPU threads."""
    inference_batch: PositiveInt = option(100, PANEL, flag="--batch")
    """Images per forward pass of inference."""
    training_batch: PositiveInt = option(32, PANEL)
    """Images per training step: forward, backward, Adam."""
    turns: PositiveInt = option(7, PANEL)
    """How often the models take turns; medians over the turns are reported, and their range."""
    precision: Literal["float32", "bfloat16"] = option("float32", PANEL)
    """Of training; inference is float32."""


class SpeedSettings(Settings):
    """How everything that runs one model is measured."""

    where = "bench speed"

    threads: PositiveInt = option(1, PANEL)
    """CPU threads of PyTorch and of the compiled C; the interpreter has one."""
    batch: PositiveInt = option(64, PANEL)
    """Images per training step and per forward pass."""
    interpreted: PositiveInt = option(8, PANEL)
    """Images per call of the interpreter, which is slow."""
    turns: PositiveInt = option(5, PANEL)
    """How often each side has its turn; medians over the turns are reported, and their range."""
    bits: Annotated[int, Field(ge=1, le=16)] = option(8, PANEL)
    """Width of every tensor of the quantized sides."""


class PapersSettings(Settings):
    """Which rows of papers' tables are redone, and what they are made from.

    Attributes:
        models: checkpoint files by the names of :data:`caplet.bench.papers.rows.NETWORKS`.
        roots: where the files of a dataset are, by its name; ``root`` serves all others. Nothing is downloaded.
        only: patterns of :func:`caplet.bench.papers.rows.select`; empty for all rows.
    """

    where = "papers"

    models: dict[str, Path] = Field(default={})
    root: Path | None = None
    roots: dict[str, Path] = Field(default={})
    only: tuple[str, ...] = ()
    calibration_size: PositiveInt | None = option(None, PANEL)
    """Images cut from the training split for calibration and search."""
    test_images: PositiveInt | None = option(None, PANEL)
    """Look at so many test images at most, at even distances. Default: all."""
    threads: PositiveInt | None = option(None, PANEL)
    """CPU threads."""

    def check(self) -> None:
        """Raise ConfigError for a network that no row has."""
        from caplet.bench.papers.rows import find_network  # which needs torch

        for name in self.models:
            find_network(name)
