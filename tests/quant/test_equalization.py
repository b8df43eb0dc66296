"""Equalisation changes no function, and touches nothing beyond a ReLU and the next convolution."""

from typing import Any

import pytest
import torch
from quantized import differing

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.nn.points import Watch
from caplet.quant.choices import Part
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.equalization import _channel_power, equalized, pairs
from caplet.quant.reconstruct.reconstruct import reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings
from tiny_networks import tiny


def uneven(model: CapsNet, seed: int = 0) -> CapsNet:
    """Channels of the first convolution of very different sizes, one of them dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for first, second in pairs(model):
            size = torch.exp(torch.randn(len(first.bias), generator=generator))
            size[0] = 0.0
            if first.batch_norm is None:
                first.weight.mul_(size.view(-1, 1, 1, 1))
                first.bias.mul_(size)
            else:
                first.batch_norm.weight.mul_(size)
                first.batch_norm.bias.mul_(size).add_(0.1 * size)
            second.weight.div_(size.clamp_min(0.1).view(1, -1, 1, 1))
    return model


def two_stems() -> CapsNet:
    torch.manual_seed(3)
    stem = [{"kernel": 3, "channels": 8}, {"kernel": 3, "channels": 6}]
    settings = {"image": [1, 12, 12], "stem": stem, "primary_types": 3, "primary_dim": 4, "primary_kernel": 3}
    return build("shallow", {**settings, "class_dim": 4}).eval()


def deep() -> CapsNet:
    torch.manual_seed(4)
    block = {"types": 2, "dim": 4, "stride": 2}
    return build("deep", {"image": [1, 16, 16], "channels": 8, "blocks": [block] * 4, "class_dim": 4}).eval()


@pytest.mark.parametrize(("make", "expected"), [(two_stems, 2), (deep, 1)])
def test_the_function_is_preserved(make: Any, expected: int) -> None:
    model = uneven(make())
    assert len(list(pairs(model))) == expected
    images = torch.randint(0, 256, (12, *model.config.image), dtype=torch.uint8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied, changed = equalized(model, images)
    with torch.no_grad():
        wanted, found = model(to_float(images)), copied(to_float(images))
    assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = copied.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    for name in moved:
        assert any(part in name for part in ("stem", "conv1", "primary.weight", "l1.weight")), name
    assert not any(key.startswith("digit") or "primary.bias" in key for key in changed)


def test_a_leaky_relu_scales_with_what_it_reads() -> None:
    """Every point whose values move is named, the convolution's output too."""
    made = tiny("shallow-leaky")
    copied, changed = equalized(made.model, made.images)
    seen: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for net in (made.model, copied):
            watch = Watch(lambda key, spec, value, iteration: seen.setdefault(key, []).append(value.clone()))
            with net.handle(watch):
                net(to_float(made.images))
    moved = {key for key, values in seen.items() if key.startswith("conv") and not torch.allclose(*values, atol=1e-5)}
    assert moved == {key for key in changed if key.startswith("conv")}
    assert "conv1.linear" in moved
    before, after = seen["digit.activation"][2::3]
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_channels_and_their_weights_come_to_equal_sizes() -> None:
    model = uneven(two_stems())
    images = torch.randint(0, 256, (12, *model.config.image), dtype=torch.uint8)
    copied, _ = equalized(model, images)

    def ratio(net: CapsNet) -> float:
        first, second = next(iter(pairs(net)))
        power = _channel_power(net, images)[f"{first.name}.activation"].sqrt()
        reading = second.weight.detach().square().mean((0, 2, 3)).sqrt()
        alive = power > 0
        return float((power[alive] / reading[alive]).log().std())

    assert ratio(copied) < 0.2 * ratio(model)


def test_reconstruction_starts_from_the_equalised_model(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 5)
    settings = ReconstructSettings((Part.EQUALIZATION,), tuning_images=32)
    found = reconstruct(digits.model, plan, digits.images[:40], settings)
    assert {key: fmt.bits for key, fmt in found.plan.points.items()} == {
        key: fmt.bits for key, fmt in plan.points.items()
    }
    copied, changed = equalized(digits.model, digits.images[:32])
    assert set(differing(found.plan, plan)) <= set(changed)
    for layer, other in zip(found.model.layers(), copied.layers(), strict=True):
        for name in {"weight"} & set(layer.specs):
            fmt = found.plan.points[f"{layer.name}.{name}"]
            assert torch.equal(layer.weight.detach(), fmt.quantize(other.weight.detach()))
