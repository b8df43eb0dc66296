"""Accuracy and margin loss of a model on a set of images."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from caplet.data.imageset import ImageSet
from caplet.models.base import CapsNet
from caplet.nn.decoder import longest
from caplet.nn.functional import lengths
from caplet.nn.precision import mixed
from caplet.train.loss import margin_loss


@dataclass(frozen=True)
class Score:
    """Result of :func:`evaluate`: images classified correctly, images, and the mean margin loss."""

    correct: int
    count: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction of images classified correctly."""
        return self.correct / self.count


def evaluate(model: CapsNet, images: ImageSet, *, precision: str = "float32", batch_size: int = 128) -> Score:
    """Classify a set with the model in evaluation mode (its mode is restored).

    Args:
        precision: ``float32`` or ``bfloat16`` (mixed, see :func:`caplet.nn.precision.mixed`).
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct, loss = 0, 0.0
    scope: AbstractContextManager[None] = mixed(model, device, precision)
    try:
        with torch.inference_mode(), scope:
            for pixels, labels in images.batches(batch_size, device=device):
                capsules = model(pixels).float()
                correct += int((longest(capsules) == labels).sum())
                loss += float(margin_loss(lengths(capsules), labels)) * len(labels)
    finally:
        model.train(was_training)
    return Score(correct, len(images), loss / len(images))
