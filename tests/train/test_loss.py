"""Losses against numbers worked out by hand."""

import pytest
import torch

from caplet.train.loss import cross_entropy, margin_loss, reconstruction_loss


def test_margin_loss_by_hand() -> None:
    lengths = torch.tensor([[0.7, 0.2, 0.05], [0.95, 0.4, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    first = (0.9 - 0.7) ** 2 + 0.5 * (0.2 - 0.1) ** 2 + 0.0
    second = 0.5 * (0.95 - 0.1) ** 2 + (0.9 - 0.4) ** 2 + 0.0
    assert float(margin_loss(lengths, labels)) == pytest.approx((first + second) / 2, abs=1e-7)


def test_margins_and_weight_are_settable() -> None:
    loss = margin_loss(torch.tensor([[0.5, 0.5]]), torch.tensor([1]), positive=0.8, negative=0.2, down_weight=0.25)
    assert float(loss) == pytest.approx(0.3**2 + 0.25 * 0.3**2, abs=1e-7)


def test_margin_loss_is_zero_with_zero_gradient_inside_the_margins() -> None:
    lengths = torch.tensor([[0.95, 0.05]], requires_grad=True)
    loss = margin_loss(lengths, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert lengths.grad is not None
    assert lengths.grad.abs().max() == 0.0


def test_margin_loss_is_computed_in_float32() -> None:
    loss = margin_loss(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16), torch.tensor([0]))
    assert loss.dtype == torch.float32


def test_reconstruction_loss_times_0_392_is_the_papers_on_28x28() -> None:
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    reconstruction = images.roll(1, 0)
    paper = 0.0005 * (images - reconstruction).square().sum((1, 2, 3)).mean()
    assert float(0.392 * reconstruction_loss(reconstruction, images)) == pytest.approx(float(paper), rel=1e-5)


def test_cross_entropy_of_probabilities_is_that_of_the_scores() -> None:
    scores, labels = torch.tensor([[2.0, -1.0, 0.5], [0.0, 300.0, -300.0]]), torch.tensor([2, 1])
    expected = torch.nn.functional.cross_entropy(scores, labels)
    assert torch.allclose(cross_entropy(torch.softmax(scores, 1), labels), expected, atol=1e-6)
