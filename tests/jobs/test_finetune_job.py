"""Fine-tuning as a job: the run folder, the integers it ships, and what it refuses."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from caplet import api
from caplet.data import Splits, load_data
from caplet.errors import ConfigError, PlanError
from caplet.jobs.finetune import finetune_model, finetune_settings, plan_of_widths
from caplet.jobs.run import evaluate
from caplet.models.base import CapsNet
from caplet.program import load_program
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.train.qat import QatSettings

WIDTHS = "conv1=4/5, primary=3/5, digit=3/5/6"


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digits", calibration_size=120, limit=240)


@pytest.fixture
def model(trained: Path) -> CapsNet:
    return api.load_float(trained / "model.safetensors")


def test_widths_become_a_plan(model: CapsNet, splits: Splits) -> None:
    plan = plan_of_widths(model, splits, WIDTHS)
    bits = {key: fmt.bits for key, fmt in plan.points.items()}
    assert (bits["conv1.weight"], bits["primary.weight"], bits["digit.weight"]) == (4, 3, 3)
    assert (bits["input.image"], bits["digit.votes"], bits["digit.logits"]) == (5, 5, 6)
    assert bits["primary.preactivation"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1=4/5, primary=3/5", "'digit'; give one entry for each group of the model: conv1, primary, digit"),
        ("conv1=4/5, primary=3/5, digit=3/5, digit=3/5", "each group once"),
        ("conv1=4, primary=3/5, digit=3/5", "the rule is GROUP=WEIGHTS/ACTIVATIONS"),
        ("conv1=4/5, primary=3/5, digits=3/5", "'digit"),
    ],
)
def test_malformed_widths(model: CapsNet, splits: Splits, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of_widths(model, splits, text)


def test_a_plan_is_trained_and_its_integers_ship(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    plan, folder = plan_of_widths(model, splits, WIDTHS), tmp_path / "run"
    settings = finetune_settings(["batch_size=16", "lr=2e-3", "threads=1", "steps=40"], under_plan=True)
    assert settings.epochs == 40
    notes: list[str] = []
    run = finetune_model(model, splits, folder, plan, settings, note=notes.append)
    written = {*os.listdir(folder)} - {".lock"}
    assert written == {
        *("settings.json", "environment.json", "splits.json", "metrics.json", "train.csv", "train.ckpt", "curves.svg"),
        *("model.safetensors", "model_finetuned.caplet", "plan_finetuned.json"),
        *("predictions.json", "flips.json", "details.json"),
    }
    assert notes[-1] == "measuring the test split once, 240 images"
    program = load_program(api.find_program(folder))
    assert evaluate(program, splits.test, engine="interpreter").accuracy == run.test
    metrics = json.loads((folder / "metrics.json").read_text())
    record = metrics["models"][0]
    assert record["test"] == asdict(run.test)
    assert record["weight_reduction"] == count_memory(model, plan).total.weight_reduction
    assert metrics["finetune"]["steps"] == 40
    saved, shipped = api.load_float(folder / "model.safetensors"), QuantPlan.load(folder / "plan_finetuned.json")
    again = evaluate(api.lower_model(saved, shipped), splits.calibration).accuracy
    assert asdict(again) == record["calibration"]
    resumed = finetune_model(model, splits, folder, plan, settings, resume=True)
    assert resumed.test == run.test
    other = plan_of_widths(model, splits, WIDTHS.replace("primary=3", "primary=4"))
    with pytest.raises(ConfigError, match="setting 'plan' was"):
        finetune_model(model, splits, folder, other, settings, resume=True)


def test_in_float_a_model_is_shipped(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    settings = finetune_settings({"batch_size": 16, "lr": 2e-3, "threads": 1, "steps": 30}, under_plan=False)
    run = finetune_model(model, splits, tmp_path, None, settings)
    assert run.program is None
    assert not list(tmp_path.glob("*.caplet"))
    assert evaluate(api.load_float(run.model_path), splits.test).accuracy == run.test
    assert run.metrics["test"] == asdict(run.test)


def test_settings_and_plans_that_do_not_go_together(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    plan = plan_of_widths(model, splits, WIDTHS)
    with pytest.raises(ConfigError, match="QatSettings go with a plan"):
        finetune_model(model, splits, tmp_path / "a", None, QatSettings())
    with pytest.raises(PlanError, match="does not fit"):
        finetune_model(model, splits, tmp_path / "a", plan.restricted(["digit.votes"]))
    with pytest.raises(ConfigError, match=r"exponent: .*did you mean 'exponents'"):
        finetune_settings({"exponent": "fixed"}, under_plan=True)
    assert not (tmp_path / "a").exists()


def test_training_that_makes_it_worse_says_so(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    plan = plan_of_widths(model, splits, "conv1=8/8, primary=8/8, digit=8/8")
    settings = finetune_settings(["batch_size=16", "lr=0.3", "threads=1", "steps=3"], under_plan=True)
    notes: list[str] = []
    done = finetune_model(model, splits, tmp_path / "run", plan, settings=settings, note=notes.append, progress=False)
    assert "lower lr, or train longer" in done.metrics["alarms"][-1]
    assert any("after training" in note and note.startswith("warning") for note in notes)
