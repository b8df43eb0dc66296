"""The squash: against its formula, its gradient against autograd's, and its behaviour at zero."""

import pytest
import torch

from caplet.nn.functional import squash, squash_backward, squash_reference


def formula(s: torch.Tensor, dim: int) -> torch.Tensor:
    norm = s.norm(dim=dim, keepdim=True)
    return s * norm / (1 + norm**2)


@pytest.mark.parametrize(("shape", "dim"), [((7, 4), 1), ((2, 3, 5, 4, 4), 2), ((3, 6, 2), -1)])
def test_values_and_lengths(shape: tuple[int, ...], dim: int) -> None:
    capsules = 3 * torch.randn(shape, dtype=torch.float64)
    squashed = squash(capsules, dim)
    torch.testing.assert_close(squashed, formula(capsules, dim))
    assert float(squashed.norm(dim=dim).max()) < 1


@pytest.mark.parametrize(("shape", "dim"), [((7, 4), 1), ((2, 3, 5, 4, 4), 2)])
def test_gradient_is_right(shape: tuple[int, ...], dim: int) -> None:
    capsules = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    (ours,) = torch.autograd.grad(squash(capsules, dim), capsules, grad)
    (reference,) = torch.autograd.grad(squash_reference(capsules, dim), capsules, grad)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(squash_backward(capsules.detach(), grad, dim), reference)
    assert torch.autograd.gradcheck(lambda x: squash(x, dim), capsules)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_capsules(dtype: torch.dtype) -> None:
    for shape, dim in (((3, 4), 1), ((2, 3, 4, 2, 2), 2)):
        capsules = torch.zeros(shape, dtype=dtype, requires_grad=True)
        squashed = squash(capsules, dim)
        squashed.sum().backward()
        assert not squashed.detach().any()
        assert capsules.grad is not None
        assert torch.isfinite(capsules.grad).all()


def test_bfloat16_maps_agree_with_float32() -> None:
    maps = torch.randn(2, 6, 4, 5, 3).bfloat16().requires_grad_()
    grad = torch.randn(maps.shape).bfloat16()
    (ours,) = torch.autograd.grad(squash(maps, 2), maps, grad)
    wide = maps.detach().float().requires_grad_()
    reference = squash_reference(wide, 2)
    (reference_grad,) = torch.autograd.grad(reference, wide, grad.float())
    torch.testing.assert_close(squash(maps, 2).float(), reference, atol=0.01, rtol=0.02)
    torch.testing.assert_close(ours.float(), reference_grad, atol=0.02, rtol=0.03)


def test_dtype_and_layout_are_kept() -> None:
    maps = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last).unflatten(1, (2, 4))
    assert squash(maps, 2).stride() == maps.stride()
    assert squash(maps.bfloat16(), 2).dtype is torch.bfloat16
