"""What is measured of a float network: a forward pass, and a training step."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from caplet.models.base import CapsNet
from caplet.nn.device import mixed
from caplet.nn.functional import lengths
from caplet.train.loss import margin_loss


def noise(model: CapsNet, count: int) -> Tensor:
    """Random images, uint8 (N, C, H, W): speed does not depend on pixels."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *model.config.image), dtype=torch.uint8, generator=draws)


def inference(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A forward pass of ``images``, float (B, C, H, W), in evaluation mode."""

    def work() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    return work


def training(
    network: nn.Module, images: Tensor, labels: Tensor, precision: Literal["float32", "bfloat16"] = "float32"
) -> Callable[[], None]:
    """A step: forward, margin loss, backward, Adam. It changes the network's weights.

    Args:
        images: float (B, C, H, W); ``labels`` int64 (B,).
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)

    def work() -> None:
        network.train()
        with mixed(network, images.device, precision):
            capsules = network(images)
        loss = margin_loss(lengths(capsules.float()), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    return work
