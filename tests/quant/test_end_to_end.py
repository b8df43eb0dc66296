"""All blocks moved together: nearer to the float model than blocks fitted alone, on grids, the same every time."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized import length_error, plan_of
from torch import Tensor

from caplet.errors import ConfigError
from caplet.fixed import ChannelFormat
from caplet.quant.choices import Part
from caplet.quant.reconstruct.end_to_end import fit_end_to_end
from caplet.quant.reconstruct.linear_maps import parameter_of
from caplet.quant.reconstruct.reconstruct import Reconstruction, reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings

ALONE = (Part.PER_CHANNEL, Part.BIAS, Part.ROUNDING)


def settings(parts: tuple[Part, ...], **more: Any) -> ReconstructSettings:
    return ReconstructSettings(parts, least_rows=2000, **{"end_to_end_batch": 16, "end_to_end_steps": 20, **more})


def tensors(found: Reconstruction) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in found.model.state_dict().items()}


@pytest.mark.parametrize("alone", [ALONE, ()])
@pytest.mark.slow
def test_other_images_come_nearer_than_with_blocks_fitted_alone(digits: Any, alone: tuple[Part, ...]) -> None:
    """Also from weights rounded to nearest."""
    plan, fitted, others = plan_of(digits, 2), digits.images[:200], digits.images[200:]
    first = (
        reconstruct(digits.model, plan, fitted, settings(alone)) if alone else Reconstruction(digits.model, plan, ())
    )
    last = reconstruct(
        digits.model,
        plan,
        fitted,
        settings((*alone, Part.END_TO_END), end_to_end_batch=32, end_to_end_steps=200, end_to_end_rate=0.02),
    )
    errors = [length_error(digits, found.model, found.plan, others) for found in (first, last)]
    assert errors[1] < 0.9 * errors[0]
    report = last.blocks[-1]
    assert report.layer == "end-to-end"
    assert report.after < report.before
    assert 0 < report.changed < 0.5


def test_every_constant_lies_on_its_grid_and_the_float_model_is_left_alone(case: Any) -> None:
    before = copy.deepcopy(case.model.state_dict())
    trained = [parameter.requires_grad for parameter in case.model.parameters()]
    with torch.no_grad():  # callers often are
        found = reconstruct(case.model, plan_of(case, 3), case.images[:48], settings((*ALONE, Part.END_TO_END)))
    assert any(isinstance(fmt, ChannelFormat) for fmt in found.plan.points.values())
    for layer in found.model.layers():
        for name in set(layer.specs) & {"weight", "bias", "vote_bias"}:
            value = parameter_of(layer, name).detach()
            assert torch.equal(found.plan.points[f"{layer.name}.{name}"].quantize(value), value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())
    assert [parameter.requires_grad for parameter in case.model.parameters()] == trained
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_the_model_given_is_put_back_even_when_interrupted(digits: Any) -> None:
    plan = plan_of(digits, 3)
    model = copy.deepcopy(digits.model)
    before = copy.deepcopy(model.state_dict())

    def stop(step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_end_to_end(model, digits.model, plan, digits.images[:64], settings((Part.END_TO_END,)), stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_codes_and_a_second_run_reads_them(digits: Any, tmp_path: Path) -> None:
    plan, images = plan_of(digits, 3), digits.images[:64]
    parts = (Part.ROUNDING, Part.END_TO_END)
    seen: list[tuple[str, int, int]] = []

    def progress(*event: Any) -> None:
        seen.append(event)

    found = [
        reconstruct(digits.model, plan, images, settings(parts), folder=tmp_path, progress=progress),
        reconstruct(digits.model, plan, images, settings(parts), folder=tmp_path, progress=progress),
        reconstruct(digits.model, plan, images, settings(parts)),
    ]
    for other in found[1:]:
        assert all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(found[0]).items())
    assert [event for event in seen if event[0] == "end-to-end"] == [("end-to-end", step, 20) for step in range(1, 21)]
    others = (tensors(reconstruct(digits.model, plan, images, settings(parts, seed=seed))) for seed in range(1, 6))
    mine = tensors(found[0]).items()  # 20 steps may end at the same codes from one other order of images, not from five
    assert any(not torch.equal(tensor, other[name]) for other in others for name, tensor in mine)


def test_the_target_is_the_float_answer_averaged_over_places(digits: Any) -> None:
    """At 12 bits nothing but the smoothing is left to learn."""
    images = digits.images[:200]
    found = {}
    for smooth in (0.0, 0.125):  # of a side of 8: one pixel
        joint = fit_end_to_end(
            copy.deepcopy(digits.model),
            digits.model,
            plan_of(digits, 12, 12),
            images,
            settings(
                (Part.END_TO_END,),
                end_to_end_smooth=smooth,
                end_to_end_steps=60,
                end_to_end_batch=32,
                end_to_end_rate=3.0,
            ),
        )
        found[smooth] = (joint.facts["before"], joint.facts["after"])
    assert found[0.125][0] > 100 * found[0.0][0]
    assert found[0.125][1] < 0.9 * found[0.125][0]


def test_earlier_names_of_settings_mean_the_same() -> None:
    assert ReconstructSettings(joint_steps=7, joint_rate=0.5) == ReconstructSettings(
        end_to_end_steps=7, end_to_end_rate=0.5
    )


def test_fewer_images_than_a_batch(digits: Any) -> None:
    found = reconstruct(digits.model, plan_of(digits, 4), digits.images[:5], settings((Part.END_TO_END,)))
    assert found.blocks[-1].layer == "end-to-end"


@pytest.mark.parametrize(
    "change", [{"end_to_end_steps": 0}, {"end_to_end_batch": 0}, {"end_to_end_rate": -0.1}, {"end_to_end_smooth": -0.1}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=f"reconstruction: {name}: "):
        ReconstructSettings(**change)
