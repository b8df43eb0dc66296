"""The training losses: margin loss on the class capsules' lengths, and the reconstruction's squared error."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margin_loss(
    lengths: Tensor,
    labels: Tensor,
    *,
    positive: float = 0.9,
    negative: float = 0.1,
    down_weight: float = 0.5,
) -> Tensor:
    """Margin loss: the sum over classes, averaged over the batch.

    Per class: ``T max(0, positive - L)^2 + down_weight (1 - T) max(0, L - negative)^2``, with L the length of the
    class capsule and T = 1 for the true class.

    Args:
        lengths: float (B, classes), the class capsules' lengths, in [0, 1).
        labels: int64 (B,).
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
    true = F.one_hot(labels, lengths.shape[1]).to(torch.bool)
    return torch.where(true, present, absent).sum(1).mean()


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
