"""The settings of measurements. Imports no torch, so that help texts come fast."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caplet.errors import ConfigError
from caplet.settings import Batch, Few, Many, Settings, Side, option

PANEL = "Measurement"


class BenchSettings(Settings):
    """How two models are measured side by side."""

    where = "bench"

    threads: Few = option(1, PANEL)
    """CPU threads."""
    inference_batch: Batch = option(100, PANEL, flag="--batch")
    """Images per forward pass of inference."""
    training_batch: Batch = option(32, PANEL)
    """Images per training step: forward, backward, Adam."""
    turns: Few = option(7, PANEL)
    """How often the models take turns; medians over the turns are reported, and their range."""
    precision: Literal["float32", "bfloat16"] = option("float32", PANEL)
    """Of training; inference is float32."""


class SpeedSettings(Settings):
    """How everything that runs one model is measured."""

    where = "bench speed"

    threads: Few = option(1, PANEL)
    """CPU threads of PyTorch and of the compiled C; the interpreter has one."""
    batch: Batch = option(64, PANEL)
    """Images per training step and per forward pass."""
    interpreted: Batch = option(8, PANEL)
    """Images per call of the interpreter, which is slow."""
    turns: Few = option(5, PANEL)
    """How often each side has its turn; medians over the turns are reported, and their range."""
    bits: Annotated[int, Field(ge=1, le=16)] = option(8, PANEL)
    """Width of every tensor of the quantized sides."""


def _paths(value: Any, flag: str, rule: str, alone: bool = False) -> Any:
    """Paths by name of texts ``NAME=PATH``; with ``alone`` a path without a name has the name ''. A table stays."""
    if not isinstance(value, list):
        return value
    found: dict[str, Path] = {}
    for text in value:
        name, equals, path = text.partition("=")
        if alone and not equals:
            name, path = "", text
        if not path or (not name and not alone):
            raise ConfigError(f"{flag} {text!r}: the rule is {rule}")
        if name in found:
            raise ConfigError(f"{flag} {text!r}: {name or 'the folder'} is given twice")
        found[name] = Path(path).expanduser()
    return found


def _models(value: Any) -> Any:
    return _paths(value, "--model", "NAME=FILE, e.g. q7-mnist=q7_mnist.h5")


def _roots(value: Any) -> Any:
    return _paths(value, "--root", "DATA=FOLDER, e.g. ~/data or cifar10=~/cifar", alone=True)


class PapersSettings(Settings):
    """Which rows of papers' tables are redone, and what they are made from."""

    where = "papers"

    models: Annotated[dict[str, Path], BeforeValidator(_models)] = option({}, PANEL, flag="--model")
    """NAME=FILE: a float checkpoint for the rows of a network; may be repeated."""
    roots: Annotated[dict[str, Path], BeforeValidator(_roots)] = option({}, PANEL, flag="--root")
    """Folder (or archive) where datasets' files are, or DATA=FOLDER for one; may be repeated. Nothing is downloaded."""
    only: list[str] = option([], PANEL)
    """Rows, papers, networks or datasets (with * and ?); may be repeated."""
    calibration_size: Many | None = option(None, PANEL)
    """Images cut from the training split for calibration and search."""
    test_images: Many | None = option(None, PANEL)
    """Look at so many test images at most, at even distances. Default: all."""
    size: Side | None = option(None, PANEL)
    """Side in pixels of the images for CNNs with capsules and for smallNORB: networks were trained on resized ones."""
    threads: Few | None = option(None, PANEL)
    """CPU threads."""

    def check(self) -> None:
        """Raise ConfigError for a network that no row has."""
        from caplet.bench.papers.rows import find_network  # which needs torch

        for name in self.models:
            find_network(name)
