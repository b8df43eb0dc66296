"""The settings of a compression: a model or a recipe, data, limits, what each stage may do; and a commented file."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal

from pydantic import Field

from caplet.errors import ConfigError
from caplet.files import read_toml
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.quantize.settings import Accepting
from caplet.program import Program
from caplet.program.arena import MemoryMap
from caplet.program.within import plan_within
from caplet.quant.choices import Method, Part
from caplet.settings import Batch, Bytes, Count, Many, Natural, Percent, Positive, Settings, Side, option

Choice = Literal["auto", "yes", "no"]
BATCH = 32
"""Images per step of fine-tuning."""
TARGET, DATA = "Target", "Data"


class Limits(Settings):
    """What the result must keep to; a limit that is None does not bind."""

    max_drop: Percent = option(0.3, TARGET)
    """Accepted loss of accuracy against the float model, in percentage points."""
    flash: Bytes | None = option(None, TARGET, examples=["256KB"])
    """Limit of the whole firmware (packed weights, tables, code), e.g. 256KB."""
    ram: Bytes | None = option(None, TARGET, examples=["64KB"])
    """Limit of the arena, e.g. 64KB."""
    macs: Count | None = option(None, TARGET, examples=["12M"])
    """Limit of the multiply-accumulates of one image, e.g. 12M."""

    def excess(self, values: Mapping[str, float]) -> dict[str, float]:
        """By limit that ``values`` miss, the excess relative to it; a limit below 0.1 counts as 0.1 in that.

        Values are those of limits by name; ``max_drop`` is a loss of accuracy in percentage points.

        >>> Limits(max_drop=0.5, ram=100).excess({"max_drop": 0.5, "ram": 150, "flash": 10**6})
        {'ram': 0.5}
        """
        limits = {name: getattr(self, name) for name in values}
        return {
            name: (value - limits[name]) / max(limits[name], 0.1)
            for name, value in values.items()
            if limits[name] is not None and value > limits[name] + 1e-9  # exactly the limit is within it
        }

    def distance(self, values: Mapping[str, float]) -> tuple[int, float]:
        """How far ``values`` are from the limits: how many are missed, then their excess in all; (0, 0.0) within."""
        excess = self.excess(values)
        return len(excess), math.fsum(excess.values())


class Pruning(Settings):
    """How capsules are removed."""

    use: Choice = option("auto", "Steps", flag="--prune")
    """Whether capsules may be removed: auto as far as the measured trade-off says, which may be not at all; yes at
    least to the largest of the fractions tried; no never."""
    score: str = "taylor"
    """How capsules are ranked: docs/pruning.md."""
    epochs: Many = 1
    """Epochs of fine-tuning after pruning, distilled from the float model."""
    least_steps: Natural = 1000
    """But at least so many steps of 32 images."""
    lr: Positive = 1e-3
    """Its peak learning rate."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of fine-tuning: bfloat16 is nearly twice as fast where the processor has such instructions; auto
    asks the processor."""
    probes: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.015)
    """Fractions of the multiply-accumulates at which the trade-off is measured, from the largest on, as long as they
    may be chosen."""
    probe_steps: Natural = 200
    """Steps of fine-tuning at every such point."""

    @property
    def arithmetic(self) -> Literal["float32", "bfloat16"]:
        """The precision that fine-tuning computes in on this processor."""
        if self.precision == "auto":
            from caplet.nn.device import has_bfloat16

            return "bfloat16" if has_bfloat16() else "float32"
        return self.precision


class Quantizing(Settings):
    """How widths are found."""

    method: Method = option(Method.ILP, "Steps")
    """The search for widths."""
    reconstruct: tuple[Part, ...] = (Part.BIAS, Part.ROUNDING)
    """Parts of reconstruction that fit the plans found, or none: docs/reconstruction.md."""
    narrow: bool = True
    """Lower the widths of the fitted plan further, as long as it keeps the target."""
    probes: tuple[Annotated[int, Field(ge=2, le=8)], ...] = (8, 6, 5, 4, 3)
    """Widths at which the trade-off is measured, the same for every tensor."""
    finetune: Choice = "auto"
    """Quantization-aware training with narrower weights: auto where the search alone misses a limit of bytes, yes also
    where it does not."""
    finetune_lr: Positive = 2e-4
    """Its peak learning rate; epochs and least steps are those of pruning."""


class Verifying(Settings):
    """What is compared in the end."""

    images: Many = 100
    """Images of the calibration split that are compared code by code on every engine."""
    device_images: Many = 5
    """Images on an emulated device."""
    timed: Batch = 256
    """Images per turn, when speed is measured."""


class CompressSettings(Accepting):
    """Settings of a compression run; ``limits``, ``prune``, ``quantize`` and ``verify`` are tables of the file.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    where = "compress"

    model: str | None = Field(None, examples=["model.safetensors"])
    """The trained model's file."""
    assume: dict[str, str] = option({}, DATA)
    """What an imported model's file does not say, such as channels=bgr: docs/runs.md."""
    recipe: str | None = option(None, DATA, examples=["digits"])
    """Train this recipe (or TOML file) first, where there is no model."""
    data: str | None = option(None, DATA, examples=["digits"])
    """Dataset name, or the path of an image folder. Default: the recipe's."""
    root: str | None = option(None, DATA, examples=["data"])
    """Folder (or archive) where the dataset's files already are; otherwise downloaded."""
    size: Side | None = option(None, DATA, examples=[28])
    """Resize images to this many rows and columns."""
    channels: Literal[1, 3] | None = option(None, DATA, examples=[1])
    """1 for gray, 3 for RGB."""
    background: str | None = option(None, DATA, examples=["white"])
    """Colour under transparent pixels. Default: white or black, whatever shows more."""
    calibration_size: Many | None = option(None, DATA, examples=[5000])
    """Images cut from the training split for calibration and search."""
    labels_by_order: bool = option(False, DATA)
    """Pair the data's classes with the model's in their order, whatever both call them."""
    target: Literal["host", "cortex-m4"] = option("host", TARGET)
    """What the firmware is verified on: this machine, or a device in an emulator."""
    web: bool = option(False, TARGET)
    """Also write web/, a page that classifies images in a browser, and link to it in the report (needs ziglang)."""
    seed: int = option(0, "Run", ge=0, lt=1 << 32)
    """Of everything that draws."""
    limits: Limits = Limits()
    prune: Pruning = Pruning()
    quantize: Quantizing = Quantizing()
    verify: Verifying = Verifying()

    def finetuned(self, images: int) -> float:
        """Epochs of fine-tuning after pruning, with ``images`` in the training split."""
        steps = max(1, images // BATCH)
        return max(float(self.prune.epochs), self.prune.least_steps / steps)

    def pruning(self, macs: float, epochs: float = 1.0) -> PruneSettings:
        """Settings of pruning to a fraction of the multiply-accumulates, fine-tuned for so many ``epochs``."""
        chosen = self.prune
        return PruneSettings(
            macs=macs,
            epochs=epochs,
            score=chosen.score,
            lr=chosen.lr,
            batch_size=BATCH,
            precision=chosen.arithmetic,
            seed=self.seed,
        )

    def plan(self, program: Program) -> tuple[MemoryMap, str | int]:
        """Memory plan of the firmware, and the ``ram`` that makes it: votes are recomputed where RAM is limited, and
        stored elsewhere; where the limit is missed by that, what keeps to it (:func:`plan_within`)."""
        stored = self.limits.ram is None and self.target == "host"
        return plan_within(program, self.limits.ram, ["fast" if stored else "small"])


def read_settings(path: str | Path | None, changes: dict[str, Any] | None = None) -> CompressSettings:
    """Settings from a TOML file, if there is one, with some of them changed.

    Args:
        changes: nested as the file's tables are.

    Raises:
        ConfigError: unreadable, not TOML, or a setting is unknown (the nearest is named) or out of range.
    """
    values = {} if path is None else read_toml(path, "the settings file", kind=ConfigError)
    return checked(merged(values, changes or {}), CompressSettings.where if path is None else str(path))


def checked(values: dict[str, Any], where: str = "compress") -> CompressSettings:
    """Settings from JSON-like values. Raises ConfigError, also unless one of model and recipe is given."""
    settings = CompressSettings.of(values, where)
    if (settings.model is None) == (settings.recipe is None):
        found = "both" if settings.model is not None else "neither"
        raise ConfigError(f"{where}: model and recipe: {found} given; give the trained model, or what to train")
    if settings.model is not None and settings.data is None:
        raise ConfigError(f"{where}: data: not given; name the dataset or image folder that the model was trained on")
    return settings


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, table by table.

    >>> merged({"a": 1, "t": {"x": 1, "y": 2}}, {"t": {"y": 3}})
    {'a': 1, 't': {'x': 1, 'y': 3}}
    """
    result = dict(values)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def settings_template(model: str | None = None, recipe: str = "digits", data: str = "digits") -> str:
    """A settings file for a trained ``model``, or for a ``recipe`` where there is none; every default is shown."""
    source = {"recipe": recipe} if model is None else {"model": model}
    given = {**source, "data": data, "max_drop": Limits().max_drop}
    lines = ["# Settings of `caplet compress`. What is commented out shows the default, or an example.", ""]
    lines += _template(CompressSettings, given)
    tables: dict[str, type[Settings]]
    tables = {"limits": Limits, "prune": Pruning, "quantize": Quantizing, "verify": Verifying}
    for table, kind in tables.items():
        lines += ["", f"[{table}]", *_template(kind, given)]
    return "\n".join(lines) + "\n"


def _template(kind: type[Settings], given: Mapping[str, Any]) -> Iterator[str]:
    """Every setting of ``kind`` but tables in TOML below its help; commented out where it is not ``given``."""
    defaults = kind().model_dump(mode="json")
    for name, field in kind.model_fields.items():
        if not isinstance(defaults[name], dict):
            yield from wrap(field.description or "", 118, initial_indent="# ", subsequent_indent="# ")
            default = defaults[name] if defaults[name] is not None else (field.examples or [None])[0]
            yield f"{'' if name in given else '# '}{name} = {json.dumps(given.get(name, default))}"
