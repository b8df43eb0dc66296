"""Reconstruction: fitted weights lie on the grid, and the quantized model comes nearer to the float one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized import differing, length_error, plan_of

from caplet.errors import ArtefactError, ConfigError, PlanError
from caplet.fixed import ChannelFormat, Rounding
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.lower import lower
from caplet.program.ops import Conv2d, ConvVotes, DenseVotes
from caplet.quant.choices import Part
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.reconstruct import Reconstructor, reconstruct
from caplet.quant.reconstruct.scale_search import with_channel_formats
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.runs.folder import RENAMED, open_run

BIAS, ROUNDING = (Part.BIAS,), (Part.ROUNDING,)


def quick(parts: tuple[Part, ...], **more: Any) -> ReconstructSettings:
    more = {"least_rows": 2000, "tuning_images": 24, "tuning_sweeps": 1, "end_to_end_steps": 100, **more}
    return ReconstructSettings(parts, sweeps=2, **more)


@pytest.mark.parametrize(
    ("parts", "factor"),
    [(BIAS, 0.7), (ROUNDING, 0.3), (BIAS + ROUNDING, 0.3), ((Part.SCALES,), 0.9), (tuple(Part), 0.2)],
)
@pytest.mark.slow
def test_class_lengths_come_nearer_to_float_on_other_images(
    digits: Any, parts: tuple[Part, ...], factor: float
) -> None:
    plan, fitted, others = plan_of(digits, 3), digits.images[:200], digits.images[200:]
    found = reconstruct(digits.model, plan, fitted, quick(parts))
    before = length_error(digits, digits.model, plan, others)
    assert length_error(digits, found.model, found.plan, others) < factor * before


@pytest.mark.parametrize("parts", [BIAS, ROUNDING, BIAS + ROUNDING])
def test_every_block_comes_nearer_or_stays(case: Any, parts: tuple[Part, ...]) -> None:
    plan = plan_of(case, 3)
    found = reconstruct(case.model, plan, case.images[:100], quick(parts))
    assert [block.layer for block in found.blocks] == [
        layer.name for layer in case.model.layers() if "weight" in layer.specs
    ]
    assert all(block.after <= block.before for block in found.blocks)
    assert sum(block.after for block in found.blocks) < sum(block.before for block in found.blocks)
    moved = [block.changed > 0 for block in found.blocks]
    assert any(moved) if Part.ROUNDING in parts else not any(moved)


@pytest.mark.parametrize("parts", [ROUNDING, (Part.PER_CHANNEL, Part.BIAS, Part.ROUNDING)])
def test_lowering_gives_exactly_the_chosen_codes(case: Any, parts: tuple[Part, ...]) -> None:
    found = reconstruct(case.model, plan_of(case, 3), case.images[:60], quick(parts))
    program = lower(found.model, found.plan)
    for op in program.ops:
        for constant in op.constants:
            layer, _, name = constant.key.rpartition(".")
            if name not in ("weight", "bias", "vote_bias"):
                continue
            owner = next(owner for owner in found.model.layers() if owner.name == layer)
            chosen = getattr(owner, name).detach().double()
            if chosen.ndim == 4:
                chosen = chosen.permute(0, 2, 3, 1)
            values = torch.from_numpy(constant.format.decode(constant.codes))
            if name == "weight" and Part.PER_CHANNEL in parts:
                steps = 2.0 ** -torch.from_numpy(op.channel_shifts).double()
                values = values * (steps if values.ndim == 3 else steps.view(-1, 1, 1, 1))
            assert torch.equal(values, chosen), constant.key
    votes_and_maps = [op for op in program.ops if isinstance(op, Conv2d | ConvVotes | DenseVotes)]
    assert len(votes_and_maps) == len(found.blocks)


def test_exponents_per_channel_help_and_are_chosen_channel_by_channel(case: Any) -> None:
    plan = plan_of(case, 3)
    chosen = with_channel_formats(case.model, plan)
    for layer in case.model.layers():
        for name in {"weight"} & set(layer.specs):
            key, weight = f"{layer.name}.{name}", layer.weight.detach()
            fmt = chosen.points[key]
            assert isinstance(fmt, ChannelFormat)
            assert min(fmt.shifts) == 0
            error, plain = ((f.quantize(weight) - weight).square() for f in (fmt, plan.points[key]))
            axes = tuple(axis for axis in range(weight.ndim) if axis != fmt.axis)
            assert (error.sum(axes) <= plain.sum(axes) * (1 + 1e-6)).all()
    assert chosen.restricted([k for k in plan.points if k not in differing(chosen, plan)]).points
    reached = {
        parts: sum(b.after for b in reconstruct(case.model, plan, case.images[:100], quick(parts)).blocks)
        for parts in (ROUNDING, (Part.PER_CHANNEL, Part.ROUNDING))
    }
    assert reached[Part.PER_CHANNEL, Part.ROUNDING] < reached[ROUNDING]


def test_without_fitted_codes_exponents_per_channel_go_by_the_outputs(case: Any, tmp_path: Path) -> None:
    """Least squared error among the weights is not least squared error of what they compute."""
    plan, settings = plan_of(case, 3), quick((Part.PER_CHANNEL,))
    found = reconstruct(case.model, plan, case.images[:100], settings, folder=tmp_path)
    by_weight = with_channel_formats(case.model, plan)
    assert differing(found.plan, by_weight)
    fixed = reconstruct(case.model, by_weight, case.images[:100], quick(BIAS))  # keeps its exponents
    first, other = found.blocks[0], fixed.blocks[0]
    assert first.after <= other.before
    assert sum(b.after for b in found.blocks) < sum(b.before for b in fixed.blocks)
    again = reconstruct(case.model, plan, case.images[:100], settings, folder=tmp_path)  # from the files
    assert again.plan == found.plan


def test_the_model_is_left_alone_and_the_copy_keeps_everything_else(case: Any) -> None:
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    plan = plan_of(case, 4)
    found = reconstruct(case.model, plan, case.images[:20], quick(ROUNDING))
    assert found.plan == plan
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in found.model.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor, before[name])


def test_the_same_seed_gives_the_same_codes_and_another_one_other_rows(digits: Any) -> None:
    plan, images = plan_of(digits, 3), digits.images[:150]
    few = {"sweeps": 1, "least_rows": 100, "rows_per_column": 0.0}
    first, again, other = (
        reconstruct(digits.model, plan, images, ReconstructSettings(ROUNDING, seed=seed, **few)).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["primary.weight"], other["primary.weight"])


@pytest.mark.slow
def test_fits_of_several_plans_equal_fits_alone(case: Any) -> None:
    """What one keeps of the float network does not change under the next."""
    scales = () if case.model.family == "deep" else (Part.SCALES,)  # its search of both takes seconds
    images, settings = case.images[:30], quick((*scales, Part.BIAS, Part.ROUNDING))
    several = Reconstructor(case.model, images, settings)
    for bits in (3, 4):
        found, alone = several.fit(plan_of(case, bits)), reconstruct(case.model, plan_of(case, bits), images, settings)
        assert found.plan == alone.plan
        for name, tensor in alone.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], tensor), (bits, name)


def test_an_interrupted_run_goes_on_with_the_blocks_it_has(digits: Any, tmp_path: Path) -> None:
    plan, images, settings = plan_of(digits, 3), digits.images[:80], quick(BIAS + ROUNDING)
    whole = reconstruct(digits.model, plan, images, settings)

    def stop(layer: str, done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(digits.model, plan, images, settings, folder=tmp_path, progress=stop)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["reconstructed-conv1.safetensors", "reconstructed-primary.safetensors"]
    resumed = reconstruct(digits.model, plan, images, settings, folder=tmp_path)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    assert resumed.plan == whole.plan
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reconstruct(digits.model, plan, images, settings, folder=tmp_path)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    other = reconstruct(digits.model, plan_of(digits, 4), images, settings, folder=tmp_path)  # its files are replaced
    assert torch.equal(
        other.model.primary.weight, reconstruct(digits.model, plan_of(digits, 4), images, settings).model.primary.weight
    )
    (tmp_path / "reconstructed-conv1.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtefactError, match="damaged"):
        reconstruct(digits.model, plan, images, settings, folder=tmp_path)
    if hasattr(os, "mkfifo"):
        (tmp_path / "reconstructed-conv1.safetensors").unlink()
        os.mkfifo(tmp_path / "reconstructed-conv1.safetensors")
        with pytest.raises(ArtefactError, match=r"cannot read the fitted block .*: it is a pipe or a device"):
            reconstruct(digits.model, plan, images, settings, folder=tmp_path)


def test_plans_that_round_otherwise_are_refused(digits: Any) -> None:
    for rounding in (Rounding.TRUNCATE, Rounding.STOCHASTIC):
        plan = uniform_plan(digits.model, digits.calibration, 4, rounding=rounding)
        with pytest.raises(PlanError, match="rounds to nearest"):
            reconstruct(digits.model, plan, digits.images[:4])
    powers = uniform_plan(digits.model, digits.calibration, 4, FormatRule(log2_weights=True))
    with pytest.raises(PlanError, match=r"conv1\.weight"):
        reconstruct(digits.model, powers, digits.images[:4])
    with pytest.raises(PlanError, match="misses"):
        reconstruct(digits.model, plan_of(digits, 4).restricted([]), digits.images[:4])
    with pytest.raises(ConfigError, match="at least one image"):
        reconstruct(digits.model, plan_of(digits, 4), digits.images[:0])


@pytest.mark.parametrize(
    "wrong", [{"parts": ()}, {"images": 0}, {"sweeps": 0}, {"least_rows": 0}, {"shrink": -1.0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reconstruction"):
        ReconstructSettings(**wrong)


def test_parts_are_named_once_and_known() -> None:
    assert parse_parts("rounding, bias") == (Part.BIAS, Part.ROUNDING)
    assert parse_parts("joint,equalise,channels,exponents") == parse_parts("end-to-end,equalization,per-channel,scales")
    with pytest.raises(ConfigError, match="did you mean 'rounding'"):
        parse_parts("bias,roundin")
    with pytest.raises(ConfigError, match="each once"):
        parse_parts("bias,bias")


def test_earlier_names_of_parts_are_understood_in_settings_and_when_a_run_resumes(tmp_path: Path) -> None:
    earlier = ["equalise", "exponents", "channels", "bias", "rounding", "joint"]
    assert QuantizeSettings.model_validate({"reconstruct": earlier}).reconstruct == tuple(Part)
    assert all(Part(old) == new for old, new in RENAMED.items())
    renamed = ({"reconstruct": earlier}, {"reconstruct": [*Part]}), ({"fit": "channels"}, {"fit": "per-channel"})
    for before, now in renamed:
        folder = tmp_path / next(iter(before))
        with open_run(folder, before):
            pass
        with open_run(folder, now, resume=True):
            pass
