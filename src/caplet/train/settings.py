"""The settings of training and fine-tuning runs: everything that decides their result, and nothing else.

Recipes are the training settings that come with the package, one TOML file each in ``recipes/``.
"""

import tomllib
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field

from caplet.errors import choose
from caplet.settings import Batch, Few, Many, Pixels, Positive, Seed, Settings, Weight, option

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoopSettings(Settings):
    """Settings of the training loop itself, whatever is trained; immutable and JSON-able.

    Attributes:
        epochs, batch_size: passes over the training split, and images per step; a last batch that is not full is left
            out (its images differ from epoch to epoch).
        optimizer: ``adam`` (weight decay as L2) or ``adamw`` (decoupled).
        lr: the peak learning rate.
        lr_multipliers: factor on the learning rate by block name (``conv1``, ``primary``, ``block2``, ``digit``,
            ``decoder``, ...).
        weight_decay: for weights; biases and batch norm are not decayed.
        schedule: ``one-cycle`` rises along a cosine from lr / 25 to the peak over the fraction ``warmup`` of all steps
            and falls along a cosine to lr * ``final_lr``; ``constant`` stays at the peak.
        warmup, final_lr: see ``schedule``.
        clip_norm: largest norm of all gradients together; None for no clipping.
        ema: decay of the averaged weights, which are what is evaluated and returned; 0 for no averaging. The decay is
            at most (1 + t) / (10 + t) at step t, so that the average forgets the initial weights.
        shift, flip, cutout: augmentation: largest random shift in pixels; random mirroring; side of a random square of
            zeros.
        mixup: blend each image with another one in a proportion drawn from Beta(mixup, mixup), until hard margins
            begin; 0 for never.
        margin_positive, margin_negative, margin_down_weight: m+, m- and lambda of the margin loss.
        hard_margins: from this fraction of all steps on, m+, m- and lambda are 0.95, 0.05 and 0.8 (as Rajasegaran et
            al. 2019 end their training); None for never.
        freeze: leave the CNN under the capsules as it is, its batch norms' statistics included.
        freeze_to: leave it so only up to this block of it (``caplet inspect`` names them).
        views: of a frozen CNN each image is seen in so many ways: as it is, mirrored (with ``flip``), then shifted at
            random (with ``shift``). What it gives for them is computed once and kept in files, where training needs
            no more of an image. None for the first ones, without shifts; 0 computes it anew in every step.
        precision: ``bfloat16`` runs everything but routing in mixed precision.
        patience: stop after so many epochs without a better calibration accuracy; None never stops early.
        keep: which epoch's weights are returned: the ``best`` on the calibration split, or the ``last``.
        seed: of initialisation, shuffling and augmentation.
        threads: CPU threads to compute with; None for torch's choice. Small networks are faster with 1, much faster on
            a machine that is busy with other work.
    """

    epochs: Many
    batch_size: Batch = 64
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-3
    lr_multipliers: dict[str, Positive] = Field(default={})
    weight_decay: Weight = 0.0
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    warmup: Fraction = 0.2
    final_lr: Fraction = 0.0
    clip_norm: Positive | None = None
    ema: Fraction = 0.99

    shift: Pixels = 0
    flip: bool = False
    cutout: Pixels = 0
    mixup: Weight = 0.0

    margin_positive: Fraction = 0.9
    margin_negative: Fraction = 0.1
    margin_down_weight: Positive = 0.5
    hard_margins: Fraction | None = None

    freeze: bool = False
    freeze_to: str | None = None
    views: Annotated[int, Field(ge=0, le=64)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    patience: Many | None = None
    keep: Literal["best", "last"] = "best"
    seed: Seed = 0
    threads: Few | None = None


class TrainSettings(LoopSettings):
    """Settings of a training run from the beginning; recipes are files of these.

    Attributes:
        overrides: settings that differ from the named model's, e.g. ``image``, ``classes``.
        calibration_size: images cut from the training split for calibration; None for the data's default.
        decoder: ``none``, ``dense`` (Sabour et al.) or ``conv`` (DeepCaps).
        reconstruction_weight: weight of the mean squared error per pixel; 0.392 is Sabour et al.'s 0.0005 on the sum.
        initial_norm: mean length before squash that data-dependent initialisation gives every capsule layer; None for
            the layers' own initialisation.
        initial_norms: the same for single layers by name (``digit``, ``block1.l2``).
    """

    where = "training settings"

    model: str = option(..., "Training")
    """Another ready-made model (`caplet models`) than the recipe's; alone, a CNN with capsules: resnet18-caps.
    cnn-like:MODEL is a plain CNN with the parameters and MACs of that model, trained by the same recipe."""
    overrides: dict[str, Any] = Field(default={})
    dataset: str = option(..., "Data", flag="--data")
    """Another dataset than the recipe's: its name, or the path of an image folder."""
    freeze: bool = option(False, "Training")
    """Do not train the CNN under the capsules, nor its batch norms' statistics."""
    freeze_to: str | None = option(None, "Training")
    """Freeze the CNN only up to this block of it; later ones are trained with the capsules."""
    calibration_size: Many | None = None

    decoder: Literal["none", "dense", "conv"] = "none"
    reconstruction_weight: Weight = 0.392

    initial_norm: Positive | None = 1.0
    initial_norms: dict[str, Positive] = Field(default={})
    pretrained: str | None = option(None, "Training")
    """Weights for the CNN under the capsules: a state dict's path, or torchvision or timm (that package's cache)."""


class FinetuneSettings(LoopSettings):
    """Settings of a fine-tuning run, which starts from a trained model and may follow a teacher.

    The loss is ``margin_weight`` times the margin loss, plus, with a teacher, ``distill_lengths`` times the squared
    difference of the class capsules' lengths (summed over classes) and ``distill_poses`` times that of their components
    (summed over classes and dimensions), averaged over the batch.

    Attributes:
        margin_weight: of the margin loss, which needs the labels; 0 trains on the teacher alone.
        distill_lengths, distill_poses: of the distances to the teacher.
    """

    epochs: Many = option(1, "Training")
    """Passes over the training images."""
    steps: Many | None = option(None, "Training")
    """End after so many steps, within an epoch too; alone, as many epochs as they need."""
    lr: Positive = 2e-4
    warmup: Fraction = 0.1

    margin_weight: Weight = 1.0
    distill_lengths: Weight = 0.5
    distill_poses: Weight = 0.0


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes, sorted."""
    found = (entry.name for entry in (files("caplet.train") / "recipes").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> TrainSettings:
    """The settings of a recipe, with ``overrides`` on top.

    Args:
        name: one of :func:`recipe_names`.
        overrides: settings to replace, by name; a replaced dict (``lr_multipliers``, ...) is replaced whole.

    Raises:
        ConfigError: unknown recipe (the message suggests the nearest), unknown or invalid setting.
    """
    file = files("caplet.train") / "recipes" / f"{choose(name, recipe_names(), 'recipe')}.toml"
    text = file.read_text(encoding="utf-8")
    return TrainSettings.of({**tomllib.loads(text), **(overrides or {})}, f"recipe {name}")
