"""The settings of a compression: a model or a recipe, data, limits, what each stage may do; and a commented file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from caplet.errors import ConfigError
from caplet.files import read_toml
from caplet.quant.choices import Method, Part
from caplet.settings import Bytes, Count, Settings, option

Choice = Literal["auto", "yes", "no"]
BATCH = 32
"""Images per step of fine-tuning."""
TARGET, DATA = "Target", "Data"


class Limits(Settings):
    """What the result must keep to; a limit that is None does not bind."""

    max_drop: float = option(0.3, TARGET, ge=0, lt=100)
    """Accepted loss of accuracy against the float model on calibration images, in percentage points."""
    flash: Bytes | None = option(None, TARGET)
    """Limit of the whole firmware (packed weights, tables, code), e.g. 256KB."""
    ram: Bytes | None = option(None, TARGET)
    """Limit of the arena, e.g. 64KB."""
    macs: Count | None = option(None, TARGET)
    """Limit of the multiply-accumulates of one image, e.g. 12M."""

    def excess(self, values: Mapping[str, float]) -> dict[str, float]:
        """By limit that ``values`` miss, the excess relative to it; a limit below 0.1 counts as 0.1 in that.

        >>> Limits(max_drop=0.5, ram=100).excess({"max_drop": 0.5, "ram": 150, "flash": 10**6})
        {'ram': 0.5}
        """
        limits = {name: getattr(self, name) for name in values}
        return {
            name: (value - limits[name]) / max(limits[name], 0.1)
            for name, value in values.items()
            if limits[name] is not None and value > limits[name] + 1e-9  # exactly the limit is within it
        }


class Pruning(Settings):
    """How capsules are removed.

    Attributes:
        score: see :mod:`caplet.prune`.
        precision: of fine-tuning: ``bfloat16`` is nearly twice as fast where the processor has such instructions;
            ``auto`` asks the processor.
        epochs, least_steps, lr: of fine-tuning after pruning, distilled from the float model: so many epochs, but at
            least so many steps of 32 images; the peak learning rate.
        probes: fractions of the multiply-accumulates at which the trade-off is measured, from the largest on, as long
            as they may be chosen.
        probe_steps: steps of fine-tuning at every probe.
    """

    use: Choice = option("auto", "Steps", flag="--prune")
    """Whether capsules may be removed: auto as far as the measured trade-off says, which may be not at all; yes at
    least to the largest of the fractions tried; no never."""
    score: str = "taylor"
    epochs: PositiveInt = 1
    least_steps: NonNegativeInt = 1000
    lr: PositiveFloat = 1e-3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    probes: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.015)
    probe_steps: NonNegativeInt = 200

    @property
    def arithmetic(self) -> Literal["float32", "bfloat16"]:
        """The precision that fine-tuning computes in on this processor."""
        if self.precision == "auto":
            from caplet.nn.precision import has_bfloat16

            return "bfloat16" if has_bfloat16() else "float32"
        return self.precision


class Quantizing(Settings):
    """How widths are found.

    Attributes:
        reconstruct: parts of reconstruction that fit the plans found; empty for none.
        narrow: lower the widths of the fitted plan further, as long as it keeps the target.
        probes: widths at which the trade-off is measured, the same for every tensor.
        finetune: quantization-aware training with narrower weights: ``auto`` where the search alone misses a limit of
            bytes, ``yes`` also where it does not.
        finetune_lr: its peak learning rate; epochs and least steps are those of pruning.
    """

    method: Method = option(Method.ILP, "Steps")
    """The search for widths."""
    reconstruct: tuple[Part, ...] = (Part.BIAS, Part.ROUNDING)
    narrow: bool = True
    probes: tuple[Annotated[int, Field(ge=2, le=8)], ...] = (8, 6, 5, 4, 3)
    finetune: Choice = "auto"
    finetune_lr: PositiveFloat = 2e-4


class Verifying(Settings):
    """What is compared in the end.

    Attributes:
        images: of the calibration split, on every engine.
        device_images: on an emulated device.
        timed: images per turn, when speed is measured.
    """

    images: PositiveInt = 100
    device_images: PositiveInt = 5
    timed: PositiveInt = 256


class CompressSettings(Settings):
    """Settings of a compression run.

    Attributes:
        model: a trained model's file, or None.
        limits: what the result must keep to.
        prune, quantize, verify: of the stages of these names.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    where = "compress"

    model: str | None = None
    recipe: str | None = option(None, DATA)
    """Train this recipe (or TOML file) first, where there is no model."""
    data: str | None = option(None, DATA)
    """Dataset name, or the path of an image folder. Default: the recipe's."""
    root: str | None = option(None, DATA)
    """Folder (or archive) where the dataset's files already are; otherwise downloaded."""
    size: PositiveInt | None = option(None, DATA)
    """Resize images to this many rows and columns."""
    channels: Literal[1, 3] | None = option(None, DATA)
    """1 for gray, 3 for RGB."""
    calibration_size: PositiveInt | None = option(None, DATA)
    """Images cut from the training split for calibration and search."""
    target: Literal["host", "cortex-m4"] = option("host", TARGET)
    """What the firmware is verified on: this machine, or a device in an emulator."""
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

    @property
    def ram(self) -> Literal["fast", "small"]:
        """Memory plan of the firmware: votes are recomputed where RAM is limited, and stored elsewhere."""
        return "fast" if self.limits.ram is None and self.target == "host" else "small"


def read_settings(path: str | Path, changes: dict[str, Any] | None = None) -> CompressSettings:
    """Settings from a TOML file, with some of them changed.

    Args:
        changes: nested as the file's tables are.

    Raises:
        ConfigError: unreadable, not TOML, or a setting is unknown (the nearest is named) or out of range.
    """
    values = read_toml(path, "the settings file", kind=ConfigError)
    return checked({**values, **(merged(values, changes or {}))}, str(path))


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


TEMPLATE = """\
# Settings of `caplet compress`. What is commented out shows the default.

# What to compress: a trained model's file, or a recipe to train first (`caplet train --help` lists them).
{source}

# The data it was trained on: mnist, fashion-mnist, cifar10, svhn, digits, or the path of an image folder.
data = {data}
# root = "data"                # where the dataset's files already are; without it they are downloaded
# size = 28                    # resize images to this side
# channels = 1                 # 1 for gray, 3 for RGB
# calibration_size = 5000      # images cut from the training split; every decision is made on them

# host, or cortex-m4: firmware is built, and run in an emulator where there is one
# target = "{settings.target}"
# seed = {settings.seed}

[limits]
# accepted loss of accuracy against the float model, in percentage points
max_drop = {limits.max_drop}
# flash = "256KB"              # the whole firmware: packed weights, tables, code
# ram = "64KB"                 # the arena
# macs = "12M"                 # multiply-accumulates of one image

[prune]
# auto: as far as the measured trade-off says, which may be not at all; yes: at least to the largest of probes; no
# use = "{prune.use}"
# score = "{prune.score}"             # how capsules are ranked: docs/pruning.md
# precision = "{prune.precision}"         # of fine-tuning: bfloat16 where the processor has it, or float32
# epochs = {prune.epochs}                   # of fine-tuning after pruning, distilled from the float model
# least_steps = {prune.least_steps}           # but at least so many steps
# lr = {prune.lr}                   # peak learning rate
# probes = {probes}   # fractions of the multiply-accumulates at which the trade-off is measured
# probe_steps = {prune.probe_steps}            # steps of fine-tuning at every such point

[quantize]
# method = "{quantize.method}"               # ilp, progressive or qcapsnets
# probes = {widths}     # widths at which the trade-off is measured
# reconstruct = {parts}   # fit weights and biases to the plans found: docs/reconstruction.md
# narrow = true                # lower widths further while the fitted network keeps the target
# finetune_lr = {quantize.finetune_lr}         # peak learning rate of quantization-aware training
# finetune = "{quantize.finetune}"            # quantization-aware training: auto is where the search misses a limit

[verify]
# images = {verify.images}                 # compared code by code on every engine
# device_images = {verify.device_images}            # on the emulated device
# timed = {verify.timed}                  # images per turn, when speed is measured
"""


def settings_template(model: str | None = None, recipe: str = "digits", data: str = "digits") -> str:
    """A settings file for a trained ``model``, or for a ``recipe`` where there is none; every default is shown."""
    source = f'recipe = {json.dumps(recipe)}\n# model = "model.safetensors"'
    if model is not None:
        source = f"model = {json.dumps(model)}\n# recipe = {json.dumps(recipe)}"
    return TEMPLATE.format(
        source=source,
        data=json.dumps(data),
        settings=CompressSettings(),
        limits=Limits(),
        prune=Pruning(),
        probes=list(Pruning().probes),
        widths=list(Quantizing().probes),
        quantize=Quantizing(),
        parts=json.dumps([*map(str, Quantizing().reconstruct)]),
        verify=Verifying(),
    )
