"""The images that a plan is accepted on: new to the search and, where that can be had, to the network."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from caplet.data import Splits
from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.data.splits import cut, in_turns
from caplet.data.validation import load_validation
from caplet.errors import ConfigError
from caplet.jobs.run import float_predictions, held_out
from caplet.models.base import CapsNet

SEARCH_FRACTION = 0.4
"""Of calibration images that were held out from training, those that the search sees; the others decide."""
TRIAL_IMAGES = 10_000
"""Training images on which fitted plans are compared, where there are at least twice as many; the others decide."""


@dataclass(frozen=True, eq=False)
class FreshImages:
    """Images on which plans are accepted.

    Attributes:
        images: in an order of which every first part has the classes evenly.
        about: what they are, for messages, such as ``"training images"``.
        familiar: the network was trained on them: its answers change less than on new images.
        held_out: fewer images that it was not trained on: less their standard error, the loss on these must be within
            the tolerance, too.
        trial: more such images, which neither searches nor fits see: they say which fitted plan to look at first.
    """

    images: ImageSet
    about: str
    familiar: bool = False
    held_out: ImageSet | None = None
    trial: ImageSet | None = None


def divide(model: CapsNet, splits: Splits, validation: str | None, trained: bool = False) -> tuple[Splits, FreshImages]:
    """The splits with the calibration images that the search may see, and the images that decide.

    All training images decide. A calibration split that was held out from training (a network trained by caplet says
    so) is divided: the part that the search does not see must agree. Otherwise the search sees the calibration split;
    with a calibration size that was asked for, no images beyond it are taken, and that split is divided, too.

    Args:
        validation: a folder of new images; ``calibration`` or ``train`` for a split that the user knows to be new to
            the network; None where nothing is known beyond the model's file.
        trained: the network will be trained further on the training images, so only others decide.

    Raises:
        ConfigError: the test split is asked for, or training images that are trained on.
        DataError: see :func:`caplet.data.validation.load_validation`.
    """
    if validation == "test":
        raise ConfigError("validation: the test split is for the final report; give calibration, train or a folder")
    if validation == "train" and trained:
        raise ConfigError("validation: fine-tuning sees the training images; give calibration or a folder")
    if validation == "train":
        images, trial = _apart(splits.train)
        return splits, FreshImages(_even(images), "training images new to the network", trial=trial)
    if validation not in (None, "calibration"):
        images, labelled = load_validation(Path(validation), splits)
        if not labelled:  # a changed answer counts as a loss
            images = replace(images, labels=torch.from_numpy(float_predictions(model, images)))
        about = "validation images" if labelled else "unlabelled validation images"
        return splits, FreshImages(images, about)
    new = validation == "calibration" or held_out(model, splits)
    if not new and not trained and splits.info.get("calibration_size") is None:
        searched = replace(splits, calibration=varied(splits.calibration))
        return searched, _familiar(splits.train)
    first = max(len(splits.train.classes), round(SEARCH_FRACTION * len(splits.calibration)))
    search, rest = (splits.calibration.subset(part) for part in _cut(len(splits.calibration), first))
    if trained:  # pruned networks' folders keep the ids and hashes of the search's images as they are
        about = "held-out calibration images" if new else "calibration images"
        return replace(splits, calibration=search), FreshImages(rest if new else varied(rest), about, familiar=not new)
    if validation == "calibration":
        return replace(splits, calibration=search), FreshImages(rest, "held-out calibration images")
    if new:
        return replace(splits, calibration=search), _familiar(splits.train, rest)
    return replace(splits, calibration=varied(search)), FreshImages(varied(rest), "calibration images", familiar=True)


def _cut(n: int, first: int) -> tuple[range, range]:
    if first >= n:
        raise ConfigError(
            f"{n} calibration images are too few to search on some and decide on others; give more"
            " (--calibration-size), or decide by the images of the search (--accept measured)"
        )
    return range(first), range(first, n)


def _familiar(train: ImageSet, held_out: ImageSet | None = None) -> FreshImages:
    images, trial = _apart(train)
    trial = None if trial is None else varied(trial)
    return FreshImages(varied(_even(images)), "training images", familiar=True, held_out=held_out, trial=trial)


def _apart(images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The images that decide, and those for trials."""
    if len(images) < 2 * TRIAL_IMAGES:
        return images, None
    return cut(images, TRIAL_IMAGES, seed=0, rest_name=images.name, cut_name=images.name)


def _even(images: ImageSet) -> ImageSet:
    return images.subset(in_turns(images.labels, images.ids, seed=0))


def varied(images: ImageSet) -> ImageSet:
    """Every second image moved by up to a pixel each way: a network knows those less well than what it has seen."""
    pixels, generator = images.images.clone(), torch.Generator().manual_seed(0)
    for part in torch.split(pixels, 1000):
        part[1::2] = (255 * augment(to_float(part[1::2]), generator, shift=1)).round().to(torch.uint8)
    return replace(images, images=pixels)
