"""Lower bitwidths: widths fall while the target holds, and blocks in which plans agree are fitted once."""

from typing import Any

import torch

from caplet.data.imageset import to_float
from caplet.quant.choices import Part
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.reconstruct import Reconstruction, Reconstructor
from caplet.quant.reconstruct.reduce_bitwidths import WidthStep, reduce_bitwidths
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
    first = fitter.fit(plan)
    needed = measure(first) - 2
    seen: list[WidthStep] = []
    pairs, steps = reduce_bitwidths(
        digits.model,
        fitter.fit,
        plan,
        digits.calibration,
        FormatRule(),
        measure,
        needed,
        HARDWARE["portable"],
        seen.append,
    )
    assert list(steps) == seen
    assert all(measure(found) >= needed for _, found in pairs)
    narrowed, found = pairs[-1]
    assert all(step.accepted == (step.correct >= needed) for step in steps)
    kept = {step.key: step.bits for step in steps if step.accepted}
    assert {key: fmt.bits for key, fmt in narrowed.points.items()} == {
        key: kept.get(key, fmt.bits) for key, fmt in plan.points.items()
    }
    assert {key: fmt.bits for key, fmt in found.plan.points.items()} == {
        key: fmt.bits for key, fmt in narrowed.points.items()
    }
    assert kept["primary.weight"] <= 5
    assert "conv1.bias" not in kept


def test_only_widths_of_the_hardware_are_evaluated(digits: Any) -> None:
    plan = uniform_plan(digits.model, digits.calibration, 10)
    fitter = Reconstructor(digits.model, digits.images[:40], SETTINGS)
    pairs, steps = reduce_bitwidths(
        digits.model, fitter.fit, plan, digits.calibration, FormatRule(), lambda found: 1, 1, HARDWARE["bytes"]
    )
    bits = {key: fmt.bits for key, fmt in pairs[-1][0].points.items()}
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
