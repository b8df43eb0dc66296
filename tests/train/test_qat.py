"""Quantization-aware training: it repairs narrow plans, resumes exactly, and says when numbers go wrong."""

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from caplet.data import Splits, load_data
from caplet.data.imageset import to_float
from caplet.errors import ConfigError, ModelError, PlanError
from caplet.fixed import FixedFormat
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.progress import Note, silent
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan
from caplet.quant.reconstruct.reconstruct import reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.train.initialise import initialise
from caplet.train.loop import TrainResult, train
from caplet.train.loss import evaluate
from caplet.train.qat import FIT_IMAGES, QatSettings, QatTask
from caplet.train.settings import TrainSettings
from caplet.train.task import INITIALISE, generator
from caplet.train.trainer import Trainer
from scripted import group_plan

SIZES = {"stem": ({"kernel": 3, "channels": 16},), "primary_types": 4, "primary_dim": 4, "class_dim": 4}


@pytest.fixture(scope="module")
def model(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> CapsNet:
    """A small network after six epochs on the digits."""
    settings = TrainSettings(
        model="shallow-digits", overrides=SIZES, dataset="digits", epochs=6, batch_size=32, lr=5e-3, threads=1
    )
    return train(settings, digits, tmp_path_factory.mktemp("float"), progress=False).model


def plan_of(model: CapsNet, splits: Splits, weights: tuple[int, ...], other: int) -> QuantPlan:
    return group_plan(model, calibrate(model, splits.calibration.images), weights, (other,) * 3)


def hits(model: CapsNet, plan: QuantPlan, splits: Splits) -> int:
    with torch.no_grad(), fake_quantized(model, plan):
        return evaluate(model, splits.calibration).correct


def settings(**changes: Any) -> QatSettings:
    return QatSettings(**{"batch_size": 16, "lr": 2e-3, "ema": 0.9, "watch_steps": 4, **changes})


class Tuned(NamedTuple):
    """What training under a plan gives."""

    trained: TrainResult
    plan: QuantPlan
    alarms: list[str]


def tune(
    model: CapsNet,
    plan: QuantPlan,
    splits: Splits,
    folder: Path,
    chosen: QatSettings,
    *,
    teacher: CapsNet | None = None,
    note: Note = silent,
    resume: bool = False,
) -> Tuned:
    task = QatTask(chosen, model, teacher, plan, note)
    trained = train(task, splits, folder, resume=resume, progress=False)
    return Tuned(trained, task.plan, task.alarms)


def test_the_earlier_name_of_recalibrate_is_understood() -> None:
    assert QatSettings.of({"exponents": "refit"}) == QatSettings()


@pytest.mark.parametrize("exponents", ["fixed", "recalibrate", "learned"])
@pytest.mark.slow
def test_a_few_hundred_steps_repair_two_and_three_bits(
    model: CapsNet, digits: Splits, tmp_path: Path, exponents: str
) -> None:
    plan = plan_of(model, digits, (3, 2, 3), 4)
    before = hits(model, plan, digits)
    floats = evaluate(model, digits.calibration).correct
    chosen = QatSettings(epochs=8, steps=240, batch_size=32, lr=4e-3, exponents=exponents, threads=1)
    result = tune(model, plan, digits, tmp_path, chosen, teacher=model)
    after = hits(result.trained.model, result.plan, digits)
    assert result.trained.calibration_accuracy == after / len(digits.calibration)
    assert floats - before >= 15  # of 143: rounding alone is far off
    assert floats - after <= 0.4 * (floats - before)
    assert all(result.plan.points[key].bits == fmt.bits for key, fmt in plan.points.items())
    assert (result.plan == plan) == (exponents == "fixed")


def same(a: Tuned, b: Tuned) -> bool:
    weights = zip(a.trained.model.parameters(), b.trained.model.parameters(), strict=True)
    return a.plan == b.plan and a.alarms == b.alarms and all(torch.equal(x, y) for x, y in weights)


@pytest.mark.parametrize("exponents", ["fixed", "recalibrate", "learned"])
def test_an_interrupted_run_resumes_to_the_same_weights_and_plan(
    model: CapsNet, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exponents: Any
) -> None:
    plan = plan_of(model, few_digits, (3, 3, 3), 4)
    chosen = settings(epochs=3, exponents=exponents, exponents_lr=0.3)
    original, count = Trainer.step, 0
    whole = tune(model, plan, few_digits, tmp_path / "a", chosen, teacher=model)

    def step(self: Trainer, images: torch.Tensor) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count in (3, 11):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, images)

    monkeypatch.setattr(Trainer, "step", step)

    def attempt(under: QuantPlan) -> Tuned:
        return tune(model, under, few_digits, tmp_path / "b", chosen, teacher=model, resume=True)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            attempt(plan)
    assert same(whole, attempt(plan))
    with pytest.raises(ConfigError, match="the data of the plan is not the same"):
        attempt(plan.with_formats({"digit.votes": FixedFormat(5, 3, True)}))


def test_the_float_model_is_left_alone_and_only_its_copy_is_trained(
    model: CapsNet, few_digits: Splits, tmp_path: Path
) -> None:
    plan, images = plan_of(model, few_digits, (4, 4, 4), 5), to_float(few_digits.calibration.images)
    with torch.no_grad():
        before = model(images)
    result = tune(model, plan, few_digits, tmp_path, settings(steps=3), teacher=model)
    with torch.no_grad():
        assert torch.equal(model(images), before)
        assert not torch.equal(result.trained.model(images), before)
    assert all(layer.handler is None for layer in (*model.layers(), *result.trained.model.layers()))


def test_clipped_and_silent_tensors_are_alarms(model: CapsNet, few_digits: Splits, tmp_path: Path) -> None:
    plan = plan_of(model, few_digits, (4, 4, 4), 5)
    votes, activation = plan.points["digit.votes"], plan.points["conv1.activation"]
    assert isinstance(votes, FixedFormat)
    assert isinstance(activation, FixedFormat)
    broken = plan.with_formats(
        {
            "digit.votes": FixedFormat(5, votes.frac_bits + 6, True),
            "conv1.activation": FixedFormat(5, activation.frac_bits - 8, False),
        }
    )
    told: list[str] = []
    chosen = settings(steps=8, exponents="fixed")
    result = tune(model, broken, few_digits, tmp_path / "a", chosen, note=told.append)
    assert [f"warning: {alarm}" for alarm in result.alarms] == told
    about = {alarm.split(" point ")[1].split()[0]: alarm for alarm in result.alarms}
    assert about["conv1.activation"].startswith("step 4: ")
    assert "is rounded to 0 everywhere" in about["conv1.activation"]
    assert len(told) == len(about)  # each point once
    quiet = tune(model, plan, few_digits, tmp_path / "b", chosen, note=told.append)
    assert quiet.alarms == []


def test_divergence_is_named(model: CapsNet, few_digits: Splits, tmp_path: Path) -> None:
    plan, original = plan_of(model, few_digits, (4, 4, 4), 5), Trainer.step

    def poisoned(self: Trainer, images: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            next(self.task.model.parameters()).view(-1)[0] = float("nan")
        return original(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        with pytest.raises(ModelError, match=r"point conv1\.weight: its float values hold NaN: training diverged"):
            tune(model, plan, few_digits, tmp_path, settings(steps=4))


def test_batch_norms_are_constants_of_the_plan(tmp_path: Path) -> None:
    blocks = [{"types": 2, "dim": 4, "stride": 2}] * 4
    splits = load_data("digits", size=16, calibration_size=40, limit=40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("deep", {"image": [1, 16, 16], "channels": 8, "blocks": blocks, "class_dim": 4})
    initialise(model, to_float(splits.train.images))
    model.eval()
    before = named_tensors(model)
    plan = uniform_plan(model, calibrate(model, splits.calibration.images), 6)
    result = tune(model, plan, splits, tmp_path, settings(steps=2), teacher=model)
    after = named_tensors(result.trained.model)
    for statistic in ("running_mean", "running_var"):
        assert torch.equal(after[f"conv1.batch_norm.{statistic}"], before[f"conv1.batch_norm.{statistic}"])
    assert not torch.equal(after["conv1.batch_norm.weight"], before["conv1.batch_norm.weight"])
    assert not torch.equal(after["block4.skip.weight"], before["block4.skip.weight"])


def test_a_plan_of_another_model_is_refused(model: CapsNet, few_digits: Splits, tmp_path: Path) -> None:
    plan = plan_of(model, few_digits, (4, 4, 4), 5).restricted(["digit.votes"])
    with pytest.raises(PlanError, match="does not fit model shallow"):
        tune(model, plan, few_digits, tmp_path, settings())
    assert not any(tmp_path.iterdir())


def test_training_may_start_from_fitted_codes(model: CapsNet, digits: Splits, tmp_path: Path) -> None:
    """A reconstruction's codes are where training begins: better than nearest rounding, and every code is the fit's."""
    plan = plan_of(model, digits, (4, 2, 2), 6)
    task = QatTask(settings(fit="channels,bias,rounding", exponents="fixed"), model, None, plan)
    task.prepare(digits.train)
    task.start(digits.train)
    found = reconstruct(
        model,
        plan,
        digits.train.images[torch.randperm(len(digits.train), generator=generator(0, INITIALISE))[:FIT_IMAGES]],
        ReconstructSettings(parse_parts("channels,bias,rounding")),
    )
    assert task.plan == found.plan
    for layer, fitted in zip(task.model.layers(), found.model.layers(), strict=True):
        for name in {"weight"} & set(layer.specs):
            codes = task.plan.points[f"{layer.name}.{name}"].quantize(layer.weight.detach())
            assert torch.equal(codes, fitted.weight)
            assert not torch.equal(layer.weight, fitted.weight)  # nearer to the float weights, within its cell
    assert hits(task.model, task.plan, digits) > hits(model, plan, digits)
    trained = tune(model, plan, digits, tmp_path / "run", settings(fit="bias,rounding", steps=4))
    assert {fmt.bits for fmt in trained.plan.points.values()} == {fmt.bits for fmt in plan.points.values()}


def test_exponents_per_channel_are_not_learned(model: CapsNet, digits: Splits) -> None:
    with pytest.raises(ConfigError, match="per channel"):
        QatTask(settings(fit="channels", exponents="learned"), model, None, plan_of(model, digits, (4, 4, 4), 6))
    with pytest.raises(ConfigError, match="did you mean 'rounding'"):
        settings(fit="roundin")
