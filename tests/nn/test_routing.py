"""Dynamic routing against the broadcast form of the papers, dense and convolutional, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.nn.caps import DenseCaps, RoutedConvCaps
from caplet.nn.points import Handler, PointSpec
from caplet.nn.routing import RouteFunction, route_reference


class Recorder(Handler):
    """A handler that changes nothing and writes down what passes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, Tensor]] = []

    def tap(self, key: str, spec: PointSpec, value: Tensor, iteration: int) -> Tensor:
        self.seen.append((spec.name, iteration, value))
        return value


def squash(s: Tensor, dim: int) -> Tensor:
    norm = s.norm(dim=dim, keepdim=True)
    return s * norm / (1 + norm**2)


def broadcast_routing(votes: Tensor, bias: Tensor, iterations: int) -> Tensor:
    """Procedure 1 of Sabour et al. on votes (B, I, G, D, ...): softmax over all outputs of an input capsule."""
    logits = votes.new_zeros(*votes.shape[:3], *votes.shape[4:])
    for _ in range(iterations):
        coupling = F.softmax(logits.flatten(2), 2).view_as(logits)
        output = squash((coupling.unsqueeze(3) * votes).sum(1) + bias, 2)
        logits = logits + (votes * output.unsqueeze(1)).sum(3)
    return output


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_capsules(iterations: int, bias: bool) -> None:
    layer = DenseCaps("digit", 11, 3, 4, 5, iterations, bias=bias).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(6, 11, 3, dtype=torch.float64, requires_grad=True)
    votes = (x.unsqueeze(3) * layer.weight).sum(2).view(6, 11, 4, 5)
    added = torch.zeros(4, 5, dtype=torch.float64) if layer.bias is None else layer.bias
    expected = broadcast_routing(votes, added, iterations)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach())
    grad = torch.randn_like(expected)
    inputs = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(out, inputs, grad) for out in (layer(x), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("stride", "padding", "iterations"), [(1, 1, 3), (2, 1, 2), (1, 0, 1)])
def test_routed_convolution_is_the_papers_3d_convolution(stride: int, padding: int, iterations: int) -> None:
    types, dim, rows, columns = 3, 4, 5, 6
    layer = RoutedConvCaps("skip", (types, dim, rows, columns), 2, 5, 3, stride, padding, iterations=iterations)
    layer = layer.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    conv = torch.nn.Conv3d(1, 10, (dim, 3, 3), (dim, stride, stride), (0, padding, padding)).double()
    with torch.no_grad():
        conv.weight.copy_(layer.weight.unsqueeze(1))
        assert conv.bias is not None
        conv.bias.copy_(layer.vote_bias)
    x = torch.randn(2, types, dim, rows, columns, dtype=torch.float64, requires_grad=True)
    maps = conv(x.flatten(1, 2).unsqueeze(1))  # B, J*D, I, H, W
    votes = maps.permute(0, 2, 1, 3, 4).unflatten(2, (2, 5))
    expected = broadcast_routing(votes, layer.bias[:, :, None, None], iterations)
    out = layer(x)
    assert out.shape[1:] == layer.out_shape
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(out, (x, layer.weight, layer.bias), grad)
    theirs = torch.autograd.grad(expected, (x, conv.weight, layer.bias), grad)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1].squeeze(1))
    torch.testing.assert_close(ours[2], theirs[2])


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_fast_gradient_equals_the_reference(iterations: int) -> None:
    layer = DenseCaps("digit", 7, 3, 4, 5, iterations)
    plain, offset = torch.randn(3, 4, 7, 5), torch.randn(4, 5)
    assert torch.equal(
        RouteFunction.apply(plain, offset, iterations), route_reference(layer, plain, offset, iterations)
    )
    votes, bias = (x.double().requires_grad_() for x in (plain, offset))  # sums that cancel: no bound in float32
    fast, slow = RouteFunction.apply(votes, bias, iterations), route_reference(layer, votes, bias, iterations)
    assert torch.equal(fast, slow)
    grad = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad(out, (votes, bias), grad) for out in (fast, slow))
    torch.testing.assert_close(ours, theirs)


def test_fast_gradient_by_finite_differences() -> None:
    votes = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, b: RouteFunction.apply(v, b, 3), (votes, bias))


def test_fast_path_under_autocast() -> None:
    layer = DenseCaps("digit", 9, 3, 4, 5, 3)
    x = torch.randn(2, 9, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(out.float(), layer(x), atol=0.02, rtol=0.05)


def test_last_iteration_updates_no_logits() -> None:
    layer = DenseCaps("digit", 7, 3, 4, 5, 3)
    layer.handler = recorder = Recorder()
    layer(torch.randn(2, 7, 3))
    assert [(name, i) for name, i, _ in recorder.seen if name == "logits"] == [("logits", 0), ("logits", 1)]
    assert [i for name, i, _ in recorder.seen if name == "coupling"] == [0, 1, 2]
    couplings = [value for name, _, value in recorder.seen if name == "coupling"]
    assert torch.allclose(couplings[0], torch.tensor(0.25))
    for coupling in couplings:
        torch.testing.assert_close(coupling.sum(1), torch.ones_like(coupling.sum(1)))


def test_one_iteration_has_neither_logits_nor_softmax() -> None:
    layer = DenseCaps("digit", 7, 3, 4, 5, 1)
    layer.handler = recorder = Recorder()
    layer(torch.randn(2, 7, 3))
    assert "logits" not in layer.specs
    assert [name for name, _, _ in recorder.seen if name != "weight"] == [
        "bias",
        "votes",
        "coupling",
        "preactivation",
        "activation",
    ]
    assert not any(spec.routed for spec in layer.specs.values())


def test_joint_softmax_runs_over_types_and_positions() -> None:
    layer = RoutedConvCaps("skip", (3, 4, 2, 3), 2, 5, 3, 1, 1, iterations=2)
    layer.handler = recorder = Recorder()
    layer(torch.randn(1, 3, 4, 2, 3))
    coupling = next(value for name, i, value in recorder.seen if (name, i) == ("coupling", 1))
    assert coupling.shape == (1, 2 * 2 * 3, 3)
    torch.testing.assert_close(coupling.sum(1), torch.ones(1, 3))
