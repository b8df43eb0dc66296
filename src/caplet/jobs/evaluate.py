"""Accuracy of a float model or of an integer Program on a set of images."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data.imageset import ImageSet
from caplet.errors import ModelError
from caplet.metrics import Accuracy, accuracy
from caplet.models.base import CapsNet
from caplet.program import Program
from caplet.quant.measure.evaluator import predict
from caplet.runtime.engine import Engine, predictions


@dataclass(frozen=True)
class Evaluation:
    """A measured accuracy.

    Attributes:
        accuracy: with n and interval.
        predictions: int64 (N,).
        engine: ``torch`` for a float model, else what ran the Program.
        seconds: wall time.
    """

    accuracy: Accuracy
    predictions: NDArray[np.int64]
    engine: str
    seconds: float


def check_data(model: CapsNet | Program, images: ImageSet) -> None:
    """Raise ModelError where ``images`` have another size, or another number of classes, than ``model``."""
    if isinstance(model, CapsNet):
        model.check_images(images.images)
    elif images.image_shape != model.image_shape:
        expected, found = ("x".join(map(str, shape)) for shape in (model.image_shape, images.image_shape))
        raise ModelError(
            f"program {model.name}: it takes {expected} images (channels x rows x columns), got {found};"
            " choose a matching dataset, or resize with --size / --channels"
        )
    classes = model.classes if isinstance(model, Program) else model.config.classes
    if classes != len(images.classes):
        raise ModelError(
            f"the model has {classes} classes, the data {images.name} {len(images.classes)};"
            " choose the dataset that the model was trained on"
        )


def evaluate(model: CapsNet | Program, images: ImageSet, *, engine: Engine | str = Engine.AUTO) -> Evaluation:
    """Accuracy of ``model`` on ``images``; a Program is run in integers.

    Raises:
        ConfigError: unknown engine.
        ModelError: images of another size, or another number of classes.
        ToolMissing: ``engine="native"`` without a C compiler.
    """
    engine = Engine(engine)
    check_data(model, images)
    began = time.perf_counter()
    if isinstance(model, Program):
        predicted, used = predictions(model, images.images.numpy(), engine)
        name = str(used)
    else:
        predicted, name = float_predictions(model, images), "torch"
    correct = int((predicted == images.labels.numpy()).sum())
    return Evaluation(accuracy(correct, len(images)), predicted, name, time.perf_counter() - began)


def float_predictions(model: CapsNet, images: ImageSet, batch_size: int = 100) -> NDArray[np.int64]:
    """Classes that the float model predicts, int64 (N,)."""
    model.check_images(images.images)
    model.eval()
    with torch.inference_mode():
        parts = [predict(model(batch)).numpy() for batch, _ in images.batches(batch_size)]
    return np.concatenate(parts)
