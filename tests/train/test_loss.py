"""Losses against numbers worked out by hand."""

import pytest
import torch

from caplet.train.loss import cross_entropy, margin_loss, mixup, reconstruction_loss


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


def test_losses_of_fractions_of_classes_are_the_blended_losses_of_each() -> None:
    found = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1)
    first, second = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 2])
    one, other = (torch.nn.functional.one_hot(labels, 4).float() for labels in (first, second))
    for loss in (margin_loss, cross_entropy):
        expected = 0.7 * loss(found, first) + 0.3 * loss(found, second)
        assert torch.allclose(loss(found, 0.7 * one + 0.3 * other), expected, atol=1e-6)
        assert torch.allclose(loss(found, one), loss(found, first), atol=1e-6)


def test_mixup_blends_images_and_classes_in_one_proportion_which_the_generator_decides() -> None:
    images, labels = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    shares = []
    for seed in range(20):
        blended, classes = mixup(images, labels, 3, 0.5, torch.Generator().manual_seed(seed))
        again, _ = mixup(images, labels, 3, 0.5, torch.Generator().manual_seed(seed))
        share = float(classes[0, 0])
        assert 0.5 <= share <= 1
        assert torch.equal(blended, again)
        assert blended[:, 0, 0, 0].tolist() == pytest.approx([3 - 3 * share, 2 - share, 1 + share, 3 * share])
        assert classes.tolist() == [
            pytest.approx(row)
            for row in ([share, 1 - share, 0], [0, share, 1 - share], [0, 1 - share, share], [1 - share, share, 0])
        ]
        shares.append(share)
    assert max(shares) - min(shares) > 0.2
