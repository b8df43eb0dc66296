"""Quantization runs with reconstruction: what ships is the fitted model, and narrower where asked."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.data import Splits, load_data
from caplet.errors import ConfigError
from caplet.fixed import FixedFormat
from caplet.jobs.quantize import fitting
from caplet.jobs.quantize.accept import QuantizeResult
from caplet.jobs.quantize.fitting import Fitter
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import evaluate
from caplet.program import load_program
from caplet.quant.choices import Part
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.reconstruct import Reconstruction, Reconstructor
from caplet.quant.reconstruct.settings import ReconstructSettings
from quantize_requests import as_measured

FIT = (Part.BIAS, Part.ROUNDING)
STEPS = 30
"""Of end-to-end reconstruction, instead of 400: what is tested here is when it is done, not how well."""


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digits", calibration_size=120)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "ReconstructSettings", partial(ReconstructSettings, end_to_end_steps=STEPS))


@pytest.fixture(scope="module")
def narrowed(trained: Path, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    model = api.load_float(trained / "model.safetensors")
    settings = as_measured(tolerance=5.0, reconstruct=FIT, narrow=True)
    return quantize(model, splits, tmp_path_factory.mktemp("narrowed") / "run", settings)


def test_what_ships_is_the_fitted_model(narrowed: QuantizeResult, splits: Splits) -> None:
    assert narrowed.met
    shipped = narrowed.models[0]
    program = load_program(shipped.path)
    assert evaluate(program, splits.test, engine="interpreter").accuracy == shipped.test
    assert evaluate(program, splits.calibration, engine="interpreter").accuracy == shipped.calibration
    record = shipped.record["reconstruction"]
    assert record["parts"] == ["bias", "rounding"]
    assert any(block["changed"] > 0 for block in record["blocks"])
    plan = QuantPlan.load(narrowed.folder / "plan_satisfied.json")
    assert {c.key: c.format for c in program.constants() if c.key in plan.points} == {
        c.key: plan.points[c.key] for c in program.constants() if c.key in plan.points
    }
    files = {path.name for path in narrowed.folder.glob("reconstructed-*.safetensors")}
    assert files == {f"reconstructed-{block['layer']}.safetensors" for block in record["blocks"]}


def test_a_fit_that_misses_the_target_gives_way_to_nearest_rounding(
    trained: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(self: Reconstructor, plan: QuantPlan) -> Reconstruction:
        broken = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.mul_(-1)
        return Reconstruction(broken, plan, ())

    model = api.load_float(trained / "model.safetensors")
    monkeypatch.setattr(Reconstructor, "fit", harm)
    notes: list[str] = []
    settings = as_measured(tolerance=5.0, reconstruct=FIT)
    found = quantize(model, splits, tmp_path / "run", settings, note=notes.append)
    assert found.met
    shipped = found.models[0]
    assert shipped.record["reconstruction"]["left"]
    assert shipped.calibration.correct >= found.search.needed
    assert evaluate(load_program(shipped.path), splits.test, engine="interpreter").accuracy == shipped.test
    verdicts = [note for note in notes if note.startswith("integers")]
    assert ["rejected" in note for note in verdicts] == [True, False]


def test_narrowing_saves_memory_and_keeps_the_target(narrowed: QuantizeResult, quantized: Path) -> None:
    plain = api.load_program(quantized / "model_satisfied.caplet")
    shipped = narrowed.models[0]
    assert shipped.program.flash_bytes < plain.flash_bytes
    assert shipped.calibration.correct >= narrowed.search.needed
    steps = shipped.record["reconstruction"]["narrowing"]
    assert any(step["kept"] for step in steps)
    widths = shipped.record["widths"]
    assert {"conv1", "primary", "digit"} <= set(widths)


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_widths_are_narrowed_block_by_block_and_the_shipped_plan_is_moved_jointly(
    trained: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[Part, ...]] = []
    fit = Reconstructor.fit

    def watched(self: Reconstructor, plan: QuantPlan) -> Reconstruction:
        fitted.append(self.settings.parts)
        return fit(self, plan)

    monkeypatch.setattr(Reconstructor, "fit", watched)
    model = api.load_float(trained / "model.safetensors")
    notes: list[str] = []
    settings = as_measured(tolerance=5.0, reconstruct=(*FIT, Part.END_TO_END), narrow=True)
    found = quantize(model, splits, tmp_path / "run", settings, note=notes.append)
    shipped = found.models[0]
    assert shipped.record["reconstruction"]["blocks"][-1]["layer"] == "end-to-end"
    assert shipped.record["reconstruction"]["narrowing"]
    assert fitted.count(FIT) > fitted.count((*FIT, Part.END_TO_END)) >= 1
    assert f"reconstructing: end-to-end, {STEPS} of {STEPS}" in notes
    assert evaluate(load_program(shipped.path), splits.test, engine="interpreter").accuracy == shipped.test


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_with_the_joint_part_alone_widths_are_narrowed_as_they_round(
    trained: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dozens of plans are tried: none of those is worth a training."""
    fitted: list[QuantPlan] = []
    fit = Reconstructor.fit

    def watched(self: Reconstructor, plan: QuantPlan) -> Reconstruction:
        fitted.append(plan)
        return fit(self, plan)

    monkeypatch.setattr(Reconstructor, "fit", watched)
    model = api.load_float(trained / "model.safetensors")
    settings = as_measured(tolerance=5.0, reconstruct=(Part.END_TO_END,), narrow=True)
    record = quantize(model, splits, tmp_path / "run", settings).models[0].record["reconstruction"]
    assert len(record["narrowing"]) > len(fitted) >= 1


def test_a_plan_of_the_budget_that_missed_may_be_met_when_fitted(trained: Path, splits: Splits, tmp_path: Path) -> None:
    """Nearest rounding misses the target at this budget; the fit of the same widths keeps it."""
    model = api.load_float(trained / "model.safetensors")
    budget = model.parameter_count() * 3 // 8
    common: dict[str, Any] = {"tolerance": 2.0, "budget": budget}
    plain = quantize(model, splits, tmp_path / "plain", as_measured(**common))
    assert not plain.met
    fitted = quantize(model, splits, tmp_path / "fitted", as_measured(**common, reconstruct=FIT))
    assert fitted.met
    assert "once it is reconstructed" in fitted.metrics["reason"]
    memory = fitted.models[0].record["memory"][-1]
    assert memory["weight_bits"] <= 8 * budget


def test_a_fit_that_the_hardware_cannot_run_is_not_accepted(
    trained: Path, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exponents of a fit are not those that the search made fit the hardware's shifts."""
    model = api.load_float(trained / "model.safetensors")

    def elsewhere(self: Fitter, plan: QuantPlan) -> Reconstruction:
        fmt = plan.points["digit.votes"]
        assert isinstance(fmt, FixedFormat)
        moved = plan.with_formats({"digit.votes": replace(fmt, frac_bits=fmt.frac_bits + 20)})
        return Reconstruction(model, moved, ())

    monkeypatch.setattr(Fitter, "fit", elsewhere)
    notes: list[str] = []
    settings = QuantizeSettings(
        method="progressive", accept="measured", tolerance=5.0, hardware="int8", reconstruct=(Part.ROUNDING,)
    )
    result = quantize(model, splits, tmp_path / "run", settings, note=notes.append)
    assert not result.met
    assert any("does not run on int8: digit.votes needs a shift by -" in note for note in notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ilp", "narrow": True}, "narrow needs reconstruction"),
        ({"reconstruct": FIT, "rounding": "stochastic"}, "round to nearest"),
        ({"reconstruct": FIT, "rounding": "all"}, "round to nearest"),
        ({"reconstruct": FIT, "log2_weights": True}, "fixed-point weights"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused_first(
    trained: Path, splits: Splits, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    model = api.load_float(trained / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        quantize(model, splits, tmp_path / "run", QuantizeSettings(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few_steps")
def test_fits_without_the_end_to_end_part_are_the_drafts(trained: Path, splits: Splits, tmp_path: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    plan = uniform_plan(model, calibrate(model, splits.calibration.images[:40]), 4)
    fitter = Fitter(model, splits.calibration, (*FIT, Part.END_TO_END), tmp_path, lambda text: None)
    whole, draft = fitter.fit(plan).model.state_dict(), fitter.draft(plan).model.state_dict()
    assert any(not torch.equal(whole[name], draft[name]) for name in whole)
    fitter.only_draft()
    assert fitter.draft == fitter.fit  # there is no more to decide, and each plan is fitted once
    now = fitter.fit(plan).model.state_dict()
    assert all(torch.equal(now[name], draft[name]) for name in draft)
    assert fitter.record(plan)["parts"] == ["bias", "rounding"]
