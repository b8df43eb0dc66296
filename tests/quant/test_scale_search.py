"""Exponents tuned together: the error never rises, widths stay, and a bad exponent is found again."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from caplet.data.imageset import to_float
from caplet.fixed import ChannelFormat, LogFormat
from caplet.nn.functional import lengths
from caplet.nn.points import Role, Storage
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct import scale_search
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.scale_search import ChannelFormats, ComputedOnly, ScaleSearch, with_channel_formats
from caplet.quant.simulate.fake_quant import fake_quantized


def plan_of(case: Any, width: int) -> QuantPlan:
    return uniform_plan(case.model, case.calibration, width)


def length_error(case: Any, plan: QuantPlan, images: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = lengths(case.model(to_float(images)))
        with fake_quantized(case.model, plan):
            return float((lengths(case.model(to_float(images))) - wanted).square().mean())


def changed(plan: QuantPlan, other: QuantPlan) -> set[str]:
    return {key for key, fmt in plan.points.items() if fmt != other.points[key]}


@pytest.mark.slow
def test_the_error_falls_and_is_what_a_whole_evaluation_gives(case: Any) -> None:
    plan, images = plan_of(case, 6), case.images[:8]
    tuned, before, after = ScaleSearch(case.model, case.model, images).search(plan, plan.points, sweeps=1)
    assert before == pytest.approx(length_error(case, plan, images), rel=1e-4)
    assert after == pytest.approx(length_error(case, tuned, images), rel=1e-4)
    assert after < before or before == 0  # the untrained deep network's lengths are all zero
    tuned.check(case.model)
    for key, fmt in tuned.points.items():
        assert (fmt.bits, fmt.signed) == (plan.points[key].bits, plan.points[key].signed)


def test_it_holds_on_other_images(digits: Any) -> None:
    plan = plan_of(digits, 5)
    tuned, _, _ = ScaleSearch(digits.model, digits.model, digits.images[:32]).search(plan, plan.points)
    others = digits.images[32:232]
    assert length_error(digits, tuned, others) < 0.9 * length_error(digits, plan, others)


def test_steps_that_are_clearly_worse_are_not_looked_at_on_all_images(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, looked_at = plan_of(digits, 6), list[int]()

    def error() -> float:
        looked_at.clear()
        search = ScaleSearch(digits.model, digits.model, digits.images[:48])
        run = search._run
        monkeypatch.setattr(
            search, "_run", lambda plan, part, prefix: looked_at.append(part) or run(plan, part, prefix)
        )
        return search.search(plan, plan.points)[2]

    early, images = error(), sum(12 if part == 0 else 36 for part in looked_at)
    monkeypatch.setattr(scale_search, "_CLEAR", math.inf)
    assert early <= 1.1 * error()
    assert set(looked_at) == {0, 1}
    assert looked_at.count(0) == looked_at.count(1)
    assert images < 0.75 * 48 * looked_at.count(0)


def test_a_later_search_takes_what_is_wanted_from_an_earlier_one(digits: Any) -> None:
    plan, images = plan_of(digits, 6), digits.images[:48]
    first = ScaleSearch(digits.model, digits.model, images)
    calls: list[int] = []
    hook = digits.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        again = ScaleSearch(digits.model, digits.model, images, wanted=first.wanted)
    finally:
        hook.remove()
    assert not calls
    assert again.search(plan, ["digit.votes"]) == first.search(plan, ["digit.votes"])


@pytest.mark.parametrize("off", [-4, 3])
def test_an_exponent_that_is_far_off_comes_back(digits: Any, off: int) -> None:
    plan, images = plan_of(digits, 8), digits.images[:32]
    fmt = plan.points["digit.votes"]
    bad = plan.with_formats({"digit.votes": replace(fmt, frac_bits=fmt.frac_bits + off)})
    tuned, before, after = ScaleSearch(digits.model, digits.model, images).search(bad, ["digit.votes"])
    assert after < before / 2
    assert after <= 2 * length_error(digits, plan, images)
    assert abs(tuned.points["digit.votes"].frac_bits - fmt.frac_bits) <= 2
    assert changed(tuned, bad) == {"digit.votes"}


def test_constants_can_be_left_in_float(digits: Any) -> None:
    plan, images = plan_of(digits, 3), digits.images[:16]
    tuner = ScaleSearch(digits.model, digits.model, images, constants=False)
    computed = [key for key, spec in digits.model.points().items() if spec.storage is Storage.RAM]
    tuned, _, after = tuner.search(plan, computed, sweeps=1)
    with torch.no_grad():
        wanted = lengths(digits.model(to_float(images)))
        with digits.model.handle(ComputedOnly(tuned, digits.model.points())):
            found = lengths(digits.model(to_float(images)))
    assert after == pytest.approx(float((found - wanted).square().mean()), rel=1e-4)
    specs = digits.model.points()
    assert all(specs[key].storage is Storage.RAM for key in changed(tuned, plan))


def test_a_source_of_channel_formats_gives_what_a_fit_starts_from(case: Any) -> None:
    model, calibration = folded(case.model), case.calibration
    source = ChannelFormats(model, calibration, calibration)
    wanted = with_channel_formats(model, plan_of(case, 5))
    weights = {key for key, spec in model.points().items() if spec.role is Role.WEIGHT}
    assert {key for key, fmt in wanted.points.items() if isinstance(fmt, ChannelFormat)} == weights != set()
    for key in weights | {"digit.votes", "digit.bias"} & set(wanted.points):
        assert source.format(key, 5) == wanted.points[key], key
    powers_of_two = source.format("digit.weight", 4, FormatRule(log2_weights=True))
    assert isinstance(powers_of_two, LogFormat)  # as they are
