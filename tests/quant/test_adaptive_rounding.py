"""Coordinate descent on linear maps: its views equal the layers, and it finds what exhaustive search finds."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.nn.caps import DenseCaps
from caplet.nn.functional import squash
from caplet.quant.reconstruct import adaptive_rounding
from caplet.quant.reconstruct.adaptive_rounding import Grid, RoundingFit, fit
from caplet.quant.reconstruct.linear_maps import CapsuleLinear, ConvLinear, passed


def outputs(linear: ConvLinear | CapsuleLinear, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the quantized inputs with a weight, and of the differences to the float inputs."""
    matrices = linear.split(weight)
    found = [torch.bmm(linear.columns(block), matrix) for block, matrix in enumerate(matrices)]
    difference = [torch.bmm(linear.difference(block), matrix) for block, matrix in enumerate(matrices)]
    return torch.stack(found).sum(0), torch.stack(difference).sum(0)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("channels", [1, 3, 200])
def test_a_convolution_equals_its_linear_map(stride: int, padding: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, channels, 3, 4, generator=generator)
    quantized, exact = torch.randn(2, 5, channels, 9, 8, generator=generator)
    linear = ConvLinear(weight.shape, quantized, exact, stride, padding, 10**6, generator)
    assert torch.equal(linear.join(linear.split(weight)), weight)
    found, difference = outputs(linear, weight)
    expected = F.conv2d(quantized, weight, None, stride, padding).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    expected = F.conv2d(quantized - exact, weight, None, stride, padding).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(difference[0], expected, rtol=1e-4, atol=1e-4)
    few = ConvLinear(weight.shape, quantized, exact, stride, padding, 7, generator)
    assert few.scale.shape == (1, 7, 1)
    rows = outputs(few, weight)[0][0]
    whole = found[0]
    assert all(((whole - row).abs().max(1).values < 1e-3).any() for row in rows)


def test_rows_of_a_convolution_weigh_what_its_nonlinearity_passes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 3, 2, 2, generator=generator), torch.randn(6, generator=generator)
    quantized, exact = torch.randn(2, 4, 3, 5, 5, generator=generator)
    linear = ConvLinear(weight.shape, quantized, exact, 1, 0, 10**6, generator)
    plain, plain_difference = outputs(linear, weight)
    linear.weigh(weight, bias, lambda sums: (sums > 0).float())
    active = (F.conv2d(exact, weight, bias) > 0).float().mean(1).flatten().sqrt().view(1, -1, 1)
    torch.testing.assert_close(linear.scale, active)
    found, difference = outputs(linear, weight)
    torch.testing.assert_close(found, plain * active, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(difference, plain_difference * active, rtol=1e-4, atol=1e-5)


def test_what_a_squash_passes_on_is_the_size_of_its_jacobian() -> None:
    generator = torch.Generator().manual_seed(0)
    for capsule in torch.randn(5, 4, generator=generator) * torch.tensor([[0.1], [0.5], [1.0], [3.0], [10.0]]):
        jacobian = torch.autograd.functional.jacobian(lambda s: squash(s, 0), capsule)
        expected = jacobian.square().sum() / 4
        torch.testing.assert_close(passed(capsule).square(), expected, rtol=1e-3, atol=1e-7)


def test_class_capsules_equal_their_linear_map() -> None:
    torch.manual_seed(0)
    layer = DenseCaps("digit", 70, 5, 4, 3, 3).requires_grad_(False)
    layer.bias.normal_()
    exact = torch.randn(6, 70, 5)
    linear = CapsuleLinear(layer, exact.clone(), exact)
    assert linear.blocks == 2
    assert torch.equal(linear.join(linear.split(layer.weight)), layer.weight)
    found, difference = outputs(linear, layer.weight)
    assert not difference.any()
    votes = torch.einsum("nik,ikgd->ngid", exact, layer.weight.unflatten(2, (4, 3)))
    coupling = torch.full((6, 4, 70), 0.25)
    logits = torch.zeros(6, 4, 70)
    for iteration in range(3):
        wanted = torch.einsum("ngi,ngid->gnd", coupling, votes)
        rows = slice(6 * iteration, 6 * iteration + 6)
        torch.testing.assert_close(found[:, rows], wanted * linear.scale[:, rows], rtol=1e-4, atol=1e-5)
        s = wanted.permute(1, 0, 2) + layer.bias
        size = s.norm(dim=-1, keepdim=True)
        logits = logits + torch.einsum("ngd,ngid->ngi", s * size / (1 + size**2), votes)
        coupling = torch.softmax(logits, 1)


def test_capsules_that_do_not_vote_are_left_out() -> None:
    torch.manual_seed(0)
    layer = DenseCaps("digit", 9, 5, 4, 3, 2, input_indices=(1, 4, 7)).requires_grad_(False)
    exact = torch.randn(6, 9, 5)
    linear = CapsuleLinear(layer, exact, exact)
    votes = torch.einsum("nik,ikgd->gnd", exact[:, [1, 4, 7]], layer.weight.unflatten(2, (4, 3))) / 4
    torch.testing.assert_close(outputs(linear, layer.weight)[0][:, :6], votes * linear.scale[:, :6])


class Rows:
    """One small map whose inputs are given."""

    unit = 1
    blocks = 2

    def __init__(self, quantized: Tensor, exact: Tensor) -> None:
        self.quantized, self.exact = quantized, exact
        self.scale = torch.ones(1, len(quantized), 1)
        self.same, self.moments = torch.equal(quantized, exact), list[Tensor]()

    def columns(self, block: int) -> Tensor:
        return self.quantized[None, :, 2 * block : 2 * block + 2]

    def difference(self, block: int) -> Tensor:
        return (self.quantized - self.exact)[None, :, 2 * block : 2 * block + 2]

    def split(self, weight: Tensor) -> list[Tensor]:
        return [weight[None, :2], weight[None, 2:]]

    def join(self, matrices: list[Tensor]) -> Tensor:
        return torch.cat(matrices, 1)[0]


def test_small_problems_come_near_the_best_of_all_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.tensor(list(product(range(-2, 2), repeat=4)), dtype=torch.float32)
    ratios = []
    for _ in range(30):
        exact = torch.randn(40, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 1.0
        quantized = exact + 0.05 * torch.randn(40, 4, generator=generator)
        weight = torch.randn(4, 1, generator=generator) * 0.5
        found = fit(
            Rows(quantized, exact),
            weight,
            Grid(torch.tensor([[0.5]]), -2, 1),
            sweeps=4,
            shrink=0.0,
            correct_bias=False,
        )
        errors = ((quantized @ (0.5 * codes.T) - exact @ weight) ** 2).mean(0)
        mine = float(((quantized @ found.weight - exact @ weight) ** 2).mean())
        assert mine == pytest.approx(found.after, rel=1e-3, abs=1e-6)
        assert found.after <= found.before
        assert torch.equal(found.weight, (found.weight * 2).round() / 2)
        assert mine >= float(errors.min()) - 1e-5
        ratios.append((mine + 1e-3) / (float(errors.min()) + 1e-3))
    assert sorted(ratios)[15] < 1.5  # at least half of them are (nearly) optimal


def test_the_bias_takes_the_mean_error_out() -> None:
    generator = torch.Generator().manual_seed(2)
    exact = torch.rand(500, 4, generator=generator) + 0.5
    quantized = (exact * 4).floor() / 4
    weight = torch.randn(4, 3, generator=generator)
    grid = Grid(torch.tensor([[0.25]]), -8, 7)
    found = fit(Rows(quantized, exact), weight, grid, sweeps=0, shrink=0.0, correct_bias=True)
    error = quantized @ grid.snap(weight[None])[0] - exact @ weight
    torch.testing.assert_close(found.shift, -error.mean(0, keepdim=True), rtol=1e-4, atol=1e-5)
    assert found.after == pytest.approx(float(((error - error.mean(0)) ** 2).mean()), rel=1e-4)
    assert torch.equal(found.weight, grid.snap(weight[None])[0])


def test_a_grid_of_one_step_per_output_snaps_each_by_its_own() -> None:
    grid = Grid(torch.tensor([[0.5, 0.125]]), -4, 3)
    assert grid.snap(torch.tensor([[[0.3, 0.3], [9.0, -9.0]]])).tolist() == [[[0.5, 0.25], [1.5, -0.5]]]


def test_columns_moved_together_or_one_by_one_and_a_second_fit_of_a_view_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(
        9, 9, generator=generator
    )  # inputs that depend on each other: the nearest codes are not the best
    exact = torch.einsum("ij,njhw->nihw", mixed, torch.rand(20, 9, 7, 7, generator=generator))
    weight = torch.randn(5, 9, 3, 3, generator=generator)
    linear = ConvLinear(weight.shape, exact, exact.clone(), 1, 0, 10**6, generator)
    grid = Grid(torch.tensor([[0.25]]), -8, 7)

    def fitted() -> Tensor:
        return fit(linear, weight, grid, sweeps=2, shrink=0.5, correct_bias=True).weight

    first = fitted()
    assert linear.same
    assert not torch.equal(first, linear.join([grid.snap(matrix) for matrix in linear.split(weight)]))
    assert torch.equal(fitted(), first)
    monkeypatch.setattr(adaptive_rounding, "_TOGETHER", 1)
    assert (fitted() != first).float().mean() < 0.01  # sums in another order


@pytest.mark.parametrize("sweeps", [0, 1, 2])
def test_each_output_takes_the_exponent_that_leaves_it_the_least_error(sweeps: int) -> None:
    generator = torch.Generator().manual_seed(4)
    exact = torch.randn(200, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    linear = Rows(exact + 0.05 * torch.randn(200, 4, generator=generator), exact)
    weight = torch.randn(4, 40, generator=generator) * 0.3
    moves, steps = (0, -1, 1), torch.full((1, 40), 0.25)

    def fitted(step: Tensor, moves: tuple[int, ...], passes: int = sweeps) -> RoundingFit:
        grid = Grid(step, -2, 1)
        return fit(linear, weight, grid, sweeps=passes, shrink=0.5, correct_bias=True, moves=moves)

    def errors(found: RoundingFit) -> Tensor:
        outputs = linear.quantized @ found.weight + found.shift
        return (outputs - exact @ weight).square().mean(0)

    found = fitted(steps, moves)
    first = torch.stack([errors(fitted(steps * 2.0**-move, (0,), min(sweeps, 1))) for move in moves])
    assert torch.equal(found.moves[0], torch.tensor(moves)[first.argmin(0)])
    assert len(found.moves.unique()) == 3
    whole = errors(fitted(steps * 2.0 ** -found.moves.float(), (0,)))
    torch.testing.assert_close(errors(found), whole, rtol=1e-4, atol=1e-6)
    assert found.after == pytest.approx(float(whole.mean()), rel=1e-4)
    assert found.before == pytest.approx(fitted(steps, (0,)).before, rel=1e-5)
