"""Fake quantization: every point holds exactly what encode and decode give, whatever the batch."""

from typing import Any

import numpy as np
import pytest
import torch

from caplet.data.imageset import to_float
from caplet.errors import PlanError
from caplet.fixed import FixedFormat, LogFormat, Rounding, stochastic_noise
from caplet.fixed import squash as integer_squash
from caplet.nn.functional import softmax, squash
from caplet.nn.points import Role, Storage, ram
from caplet.quant.plan.formats import FormatRule, in_memory_order
from caplet.quant.plan.plan import sibling
from caplet.quant.plan.units import uniform_plan
from caplet.quant.simulate.fake_quant import (
    FakeQuant,
    WeightCache,
    fake_quantized,
    point_noise,
    quantize_in_place,
)


def plan_of(case: Any, width: int = 6, rounding: Rounding = Rounding.NEAREST, **more: Any) -> Any:
    return uniform_plan(case.model, case.calibration, width, rounding=rounding, **more)


class Recording(FakeQuant):
    """Keeps every tensor before and after its point, and the squash that the model would have computed in float."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[tuple[str, Any, torch.Tensor, torch.Tensor, int]] = []

    def tap(self, key: str, spec: Any, value: torch.Tensor, iteration: int) -> torch.Tensor:
        before = value.clone()
        after = super().tap(key, spec, value, iteration)
        self.seen.append((key, spec, before, after.clone(), iteration))
        return after


@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_point_equals_encode_and_decode(case: Any, rounding: Rounding) -> None:
    plan = plan_of(case, 5, rounding, seed=7)
    handler = Recording(plan, case.model.points())
    with torch.inference_mode(), case.model.handle(handler):
        case.model(to_float(case.images[:3]))
    assert {key for key, *_ in handler.seen} == set(case.model.points())
    for key, spec, before, after, iteration in handler.seen:
        fmt, noise, used = plan.points[key], None, rounding.alone
        if rounding is Rounding.CARRY and key == "digit.votes":
            left, codes = torch.zeros_like(before[:, :, 0], dtype=torch.float64), []
            for vote in before.unbind(2):
                left = left + vote.double() / fmt.step
                codes.append(torch.floor(left + 0.5))
                left = left - codes[-1]
            expected = torch.stack(codes, 2).clamp(fmt.min_code, fmt.max_code).float() * fmt.step
            assert torch.equal(after, expected)
            assert not after.any() or not torch.equal(after, fmt.decode(fmt.encode(before.contiguous())))
            continue
        if spec.role is Role.IMAGE:
            used = Rounding.NEAREST
        elif rounding is Rounding.STOCHASTIC:
            noise = point_noise(7, key, spec, iteration)
        expected = fmt.decode(fmt.encode(before.contiguous(), used, noise))
        assert torch.equal(after, expected), key


@pytest.mark.parametrize("rounding", list(Rounding))
def test_in_integer_mode_squash_is_the_integer_function(case: Any, rounding: Rounding) -> None:
    plan = plan_of(case, 6, rounding)
    handler = Recording(plan, case.model.points())
    with torch.inference_mode(), case.model.handle(handler):
        case.model(to_float(case.images[:3]))
    held = {(key, iteration): (spec, after) for key, spec, _, after, iteration in handler.seen}
    checked = 0
    for (key, iteration), (spec, activation) in held.items():
        before = held.get((sibling(key, "preactivation"), iteration))
        if spec.role is not Role.ACTIVATION or "dim" not in spec.dims or before is None:
            continue
        axis = spec.dims.index("dim") + 1
        source, out = plan.points[sibling(key, "preactivation")], plan.points[key]
        codes = source.encode(before[1]).movedim(axis, -1)
        noise = None
        if rounding is Rounding.STOCHASTIC:
            noise = point_noise(plan.seed, key, spec, iteration).movedim(axis - 1, -1)
        expected = out.decode(integer_squash(codes.contiguous(), source, out, rounding.alone, noise)).movedim(-1, axis)
        assert torch.equal(activation, expected)
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("rounding", list(Rounding))
def test_results_do_not_depend_on_the_batch(case: Any, rounding: Rounding) -> None:
    plan = plan_of(case, 5, rounding, seed=3)
    images = to_float(case.images[:6])
    with torch.no_grad(), fake_quantized(case.model, plan):
        together = case.model(images)
        alone = torch.cat([case.model(image[None]) for image in images])
        again = case.model(images)
    assert torch.equal(together, again)
    # Float sums may be ordered differently for another batch size; a code in a thousand may then round the other way.
    assert (together != alone).float().mean() <= 0.01


def test_the_seed_and_the_iteration_change_the_noise() -> None:
    spec = ram("activation", Role.ACTIVATION, ("channel", "row", "column"), (3, 4, 5), signed=True)
    first = point_noise(1, "a.activation", spec)
    assert first.shape == (3, 4, 5)
    assert torch.equal(first, point_noise(1, "a.activation", spec))
    for other in (point_noise(2, "a.activation", spec), point_noise(1, "b.activation", spec)):
        assert (first != other).float().mean() > 0.99
    device = stochastic_noise(1, "a.activation", 120).reshape(2, 4, 5, 3)  # rows, columns, channels; two iterations
    assert np.array_equal(first.permute(1, 2, 0).numpy(), device[0])
    assert np.array_equal(point_noise(1, "a.activation", spec, 1).permute(1, 2, 0).numpy(), device[1])


def test_stochastic_plans_differ_by_seed_only(digits: Any) -> None:
    images = to_float(digits.images[:20])
    outputs = []
    for seed in (1, 1, 2):
        with torch.no_grad(), fake_quantized(digits.model, plan_of(digits, 5, Rounding.STOCHASTIC, seed=seed)):
            outputs.append(digits.model(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("rounding", [Rounding.NEAREST, Rounding.TRUNCATE])
@pytest.mark.parametrize("frac_bits", [-3, 0, 5, 12])
def test_rounding_in_place_equals_the_format(rounding: Rounding, frac_bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    fmt = FixedFormat(6, frac_bits, True)
    x = torch.randn(7, 6, 5, 4, generator=generator) * 40 * fmt.step
    x[0] = (x[0] / fmt.step).round() * fmt.step + fmt.step / 2  # ties
    x[1] = torch.nextafter(torch.full_like(x[1], fmt.step / 2), torch.zeros(()))
    for layout in (x, x.to(memory_format=torch.channels_last), x.permute(2, 0, 3, 1), x[:, ::2], x.expand(7, 6, 5, 4)):
        value = layout.clone(memory_format=torch.preserve_format)
        expected = fmt.quantize(value, rounding)
        result = quantize_in_place(value, fmt, rounding)
        assert result is value
        assert torch.equal(value, expected)
    part = x.clone()[:, ::2]
    assert not in_memory_order(part)[0].is_contiguous()
    assert torch.equal(quantize_in_place(part, fmt, rounding), fmt.quantize(x[:, ::2], rounding))


def test_the_image_is_left_alone_and_handlers_are_restored(digits: Any) -> None:
    images = to_float(digits.images[:4])
    before = images.clone()
    with torch.no_grad():
        plain = digits.model(images)
        with fake_quantized(digits.model, plan_of(digits, 3)):
            rounded = digits.model(images)
        assert torch.equal(images, before)
        assert torch.equal(digits.model(images), plain)
    assert not torch.equal(plain, rounded)
    with pytest.raises(PlanError, match="misses"), fake_quantized(digits.model, plan_of(digits).restricted([])):
        pass


def test_wide_plans_change_almost_nothing(case: Any) -> None:
    images = to_float(case.images)
    with torch.no_grad():
        plain = case.model(images)
        with fake_quantized(case.model, plan_of(case, 16)):
            assert (case.model(images) - plain).abs().max() < 5e-3


class FloatFunctions(FakeQuant):
    """Softmax and squash in float, rounded afterwards."""

    def softmax(self, key: str, logits: torch.Tensor, dim: int, iteration: int) -> torch.Tensor:
        return softmax(logits, dim)

    def squash(self, key: str, capsules: torch.Tensor, dim: int, iteration: int) -> torch.Tensor:
        return squash(capsules, dim)


def test_integer_and_float_functions_agree_to_a_code_or_two(digits: Any) -> None:
    plan, images = plan_of(digits, 8), to_float(digits.images)
    with torch.no_grad():
        with fake_quantized(digits.model, plan):
            exact = digits.model(images)
        with digits.model.handle(FloatFunctions(plan, digits.model.points())):
            plain = digits.model(images)
    assert (exact - plain).abs().mean() < plan.points["digit.activation"].step


def test_weights_are_quantized_once_per_format_and_state(digits: Any) -> None:
    cache, spec = WeightCache(), digits.model.points()["digit.weight"]
    weight = torch.nn.Parameter(digits.model.digit.weight.detach().clone())
    plan, other = plan_of(digits, 6), plan_of(digits, 4)
    first = cache.get("digit.weight", plan, spec, weight)
    assert torch.equal(first, plan.points["digit.weight"].quantize(weight.detach()))
    assert cache.get("digit.weight", plan, spec, weight) is first
    assert not torch.equal(cache.get("digit.weight", other, spec, weight), first)
    assert cache.get("digit.weight", plan, spec, weight) is first
    with torch.no_grad():
        weight.mul_(2)
    assert cache.get("digit.weight", plan, spec, weight) is not first


def test_log2_weights_are_powers_of_two(case: Any) -> None:
    plan = uniform_plan(case.model, case.calibration, 4, FormatRule(log2_weights=True))
    plan.check(case.model)
    handler = Recording(plan, case.model.points())
    with torch.inference_mode(), case.model.handle(handler):
        case.model(to_float(case.images[:2]))
    for _, spec, _, after, _ in handler.seen:
        if spec.role is Role.WEIGHT and spec.storage is Storage.FLASH:
            exponents = torch.log2(after[after != 0].abs())
            assert torch.equal(exponents, exponents.round())


def test_powers_of_two_on_a_computed_tensor_are_refused(digits: Any) -> None:
    plan = plan_of(digits).with_formats({"digit.votes": LogFormat(4, 0)})
    with torch.no_grad(), digits.model.handle(FakeQuant(plan, digits.model.points())), pytest.raises(PlanError):
        digits.model(to_float(digits.images[:1]))
