"""The training losses (margin, reconstruction), and how well a model does on a set of images."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.data.imageset import ImageSet
from caplet.models.base import CapsNet
from caplet.nn.decoder import longest
from caplet.nn.device import mixed
from caplet.nn.functional import lengths
from caplet.train.features import Features


def margin_loss(
    lengths: Tensor,
    labels: Tensor,
    positive: float = 0.9,
    negative: float = 0.1,
    down_weight: float = 0.5,
) -> Tensor:
    """Margin loss: the sum over classes, averaged over the batch.

    Per class: ``T max(0, positive - L)^2 + down_weight (1 - T) max(0, L - negative)^2``, with L the length of the
    class capsule and T = 1 for the true class.

    Args:
        lengths: float (B, classes), the class capsules' lengths, in [0, 1).
        labels: int64 (B,); or float (B, classes), which fractions of an image are of which class (see :func:`mixup`).
        positive, negative: the margins m+ and m-.
        down_weight: lambda, the weight of absent classes.

    Returns:
        float32 scalar.

    Source: Sabour et al. 2017, equation 4.

    >>> margin_loss(torch.tensor([[0.8, 0.3]]), torch.tensor([0]))
    tensor(0.0300)
    """
    lengths = lengths.float()
    present = F.relu(positive - lengths).square()
    absent = down_weight * F.relu(lengths - negative).square()
    if labels.is_floating_point():
        return (labels * present + (1 - labels) * absent).sum(1).mean()
    true = F.one_hot(labels, lengths.shape[1]).to(torch.bool)
    return torch.where(true, present, absent).sum(1).mean()


def cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of class probabilities float (B, classes) with labels as for :func:`margin_loss`, averaged over the
    batch."""
    logs = probabilities.float().clamp_min(1e-30).log()
    return -(labels * logs).sum(1).mean() if labels.is_floating_point() else F.nll_loss(logs, labels)


def mixup(
    images: Tensor, labels: Tensor, classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend a batch with itself in reverse order, in a proportion drawn from Beta(alpha, alpha).

    Args:
        images: float (B, ...). labels: int64 (B,).
        alpha: above 0; small values mostly blend little, 1 draws uniformly.
        generator: source of the randomness; it advances.

    Returns:
        The blended images, and the fractions of the classes in each, float32 (B, classes).

    Source: Zhang, Cisse, Dauphin and Lopez-Paz 2018, "mixup: Beyond empirical risk minimization".
    """
    drawn = np.random.default_rng(int(torch.randint(2**62, (), generator=generator))).beta(alpha, alpha)
    most = max(drawn, 1 - drawn)
    true = F.one_hot(labels, classes).float()
    return torch.lerp(images.flip(0), images, most), torch.lerp(true.flip(0), true, most)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error per pixel and channel, averaged over the batch.

    Sabour et al. 2017 (section 4.1) weight the *sum* of squares over a 28x28 image by 0.0005; on this mean the same
    weight is ``0.0005 * 784 = 0.392``, whatever the image size.

    Args:
        reconstruction, images: float (B, C, H, W), in [0, 1].

    Returns:
        float32 scalar.
    """
    return F.mse_loss(reconstruction.float(), images.float())


@dataclass(frozen=True)
class ClassificationScore:
    """Result of :func:`evaluate`: images classified correctly, images, and the mean margin loss."""

    correct: int
    count: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction of images classified correctly."""
        return self.correct / self.count


def evaluate(
    model: CapsNet, images: ImageSet | Features, *, precision: str = "float32", batch_size: int = 128, first: int = 0
) -> ClassificationScore:
    """Classify a set with the model in evaluation mode (its mode is restored).

    Args:
        images: or features, what stage ``first`` - 1 gives for them.
        precision: ``float32`` or ``bfloat16`` (mixed, see :func:`caplet.nn.device.mixed`).
    """
    device = model.device
    was_training = model.training
    model.eval()
    correct, loss = 0, 0.0
    try:
        with torch.inference_mode(), mixed(model, device, precision):
            for pixels, labels in images.batches(batch_size, device=device):
                capsules = model(pixels, first).float()
                correct += int((longest(capsules) == labels).sum())
                loss += float(margin_loss(lengths(capsules), labels)) * len(labels)
    finally:
        model.train(was_training)
    return ClassificationScore(correct, len(images), loss / len(images))
