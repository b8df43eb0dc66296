"""A small capsule net trained on the embedded digits in a few seconds, and its calibration."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.data import load_data
from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.nn.functional import lengths
from caplet.quant.plan.calibrate import Calibration, calibrate

TINY_SHALLOW = {
    "image": [1, 8, 8],
    "stem": [{"kernel": 3, "stride": 1, "channels": 16}],
    "primary_types": 4,
    "primary_dim": 4,
    "primary_kernel": 3,
    "primary_stride": 2,
    "class_dim": 4,
}
TINY_DEEP = {
    "image": [1, 16, 16],
    "channels": 8,
    "blocks": [{"types": 2, "dim": 4, "stride": 2}] * 4,
    "class_dim": 4,
}


@dataclass(frozen=True)
class Case:
    """A model with images to search on."""

    model: CapsNet
    images: Tensor
    labels: Tensor
    calibration: Calibration


def margin_loss(capsules: Tensor, labels: Tensor) -> Tensor:
    """The margin loss of Sabour et al. 2017."""
    size = lengths(capsules)
    target = F.one_hot(labels, size.shape[1]).to(size.dtype)
    return (target * F.relu(0.9 - size) ** 2 + 0.5 * (1 - target) * F.relu(size - 0.1) ** 2).sum(1).mean()


@pytest.fixture(scope="session")
def digits() -> Case:
    """ShallowCaps trained on the digits (about 95 % on the calibration split)."""
    splits = load_data("digits", calibration_size=300)
    torch.manual_seed(0)
    model = build("shallow", TINY_SHALLOW)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    images, labels = to_float(splits.train.images), splits.train.labels
    for _ in range(25):
        for index in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            margin_loss(model(images[index]), labels[index]).backward()
            optimizer.step()
    model.eval()
    chosen = splits.calibration
    return Case(model, chosen.images, chosen.labels, calibrate(model, chosen.images, batch_size=100))


@pytest.fixture(scope="session")
def deep() -> Case:
    """An untrained DeepCaps: batch norm, residual sums, a routed skip branch, a state of two tensors."""
    torch.manual_seed(1)
    model = build("deep", TINY_DEEP).eval()
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (24,), generator=generator)
    return Case(model, images, labels, calibrate(model, images))


@pytest.fixture(params=["digits", "deep"])
def case(request: pytest.FixtureRequest) -> Case:
    """Every small model in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found
