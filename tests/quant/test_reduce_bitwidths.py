"""Lower bitwidths: widths fall while the target holds, and blocks in which plans agree are fitted once."""

from typing import Any

import torch

from caplet.data.imageset import to_float
from caplet.quant.choices import Part
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.reconstruct import Reconstruction, Reconstructor
from caplet.quant.reconstruct.reduce_bitwidths import reduce_bitwidths
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.quant.simulate.fake_quant import fake_quantized

SETTINGS = ReconstructSettings((Part.BIAS, Part.ROUNDING), sweeps=1, least_rows=500)


def test_widths_fall_while_the_target_holds(digits: Any) -> None:
    images, labels = digits.images[:150], digits.labels[:150]

    def measure(found: Reconstruction) -> int:
        with torch.no_grad(), fake_quantized(found.model, found.plan):
            return int((found.model(to_float(images)).square().sum(-1).argmax(-1) == labels).sum())

    plan = uniform_plan(digits.model, digits.calibration, 8)
    fitter = Reconstructor(digits.model, images, SETTINGS)
    needed = measure(fitter.fit(plan)) - 2
    looked: list[tuple[QuantPlan, int]] = []

    def keeps(lower: QuantPlan, about: str) -> bool:
        looked.append((lower, measure(fitter.fit(lower))))
        return looked[-1][1] >= needed

    steps = reduce_bitwidths(digits.model, plan, digits.calibration, FormatRule(), keeps, HARDWARE["portable"])
    assert [step.accepted for step in steps] == [correct >= needed for _, correct in looked]
    narrowed = next(plan for (plan, _), step in zip(looked[::-1], steps[::-1], strict=True) if step.accepted)
    kept = {step.key: step.bits for step in steps if step.accepted}
    assert {key: fmt.bits for key, fmt in narrowed.points.items()} == {
        key: kept.get(key, fmt.bits) for key, fmt in plan.points.items()
    }
    assert kept["primary.weight"] <= 5
    assert "conv1.bias" not in kept


def test_strides_grow_and_end_at_the_smallest_width_that_is_accepted(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 12)

    def keeps(lower: QuantPlan, about: str) -> bool:
        return lower.points["digit.weight"].bits >= 6

    steps = reduce_bitwidths(digits.model, plan, digits.calibration, FormatRule(), keeps, HARDWARE["portable"])
    bits = [step.bits for step in steps if step.key == "digit.weight"]
    assert bits == [11, 9, 5, 8, 6]  # 5 is too narrow: strides begin anew, and nothing is looked at twice
    assert min(step.bits for step in steps if step.key == "digit.weight" and step.accepted) == 6


def test_only_widths_of_the_hardware_are_evaluated(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 10)
    last: list[QuantPlan] = []

    def keeps(lower: QuantPlan, about: str) -> bool:
        last.append(lower)
        return True

    steps = reduce_bitwidths(digits.model, plan, digits.calibration, FormatRule(), keeps, HARDWARE["bytes"])
    bits = {key: fmt.bits for key, fmt in last[-1].points.items()}
    assert {step.bits for step in steps if step.key == "digit.votes"} == {8}
    assert (bits["digit.votes"], bits["primary.weight"]) == (8, 2)


def test_blocks_are_fitted_once_for_plans_that_agree_up_to_them(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 4)
    fitter = Reconstructor(digits.model, digits.images[:40], SETTINGS)
    first = fitter.fit(plan)
    other = plan.with_formats({"primary.weight": digits.calibration.format("primary.weight", 3)})
    second, again = fitter.fit(other), fitter.fit(plan)
    assert second.blocks[0] is not first.blocks[0]
    assert second.blocks[0] == first.blocks[0]  # its seconds too: it was not fitted again
    assert second.blocks[1] != first.blocks[1]
    assert again.blocks == first.blocks
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
