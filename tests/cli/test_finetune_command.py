"""``caplet finetune`` on the command line."""

from pathlib import Path

from conftest import Caplet

SHORT = ("--calibration-size", 120, "--set", "batch_size=16", "--set", "threads=1", "--quiet")


def test_under_a_plan_of_a_search(caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path) -> None:
    plan, model = quantized / "plan_satisfied.json", trained / "model.safetensors"
    done = caplet("finetune", model, "--plan", plan, "--steps", 4, "--out", tmp_path / "run", *SHORT, "--json")
    assert done.code == 0, done.err
    found = done.json()
    assert found["finetune"]["steps"] == 4
    assert found["models"][0]["test"]["n"] > 0
    evaluated = caplet(
        "eval", tmp_path / "run" / "model_finetuned.caplet", "--calibration-size", 120, "--quiet", "--json"
    )
    assert evaluated.json()["accuracy"]["correct"] == found["models"][0]["test"]["correct"]


def test_in_float_with_a_teacher(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    model = trained / "model.safetensors"
    done = caplet("finetune", model, "--teacher", model, "--steps", 2, "--out", tmp_path / "run", *SHORT)
    assert done.code == 0, done.err
    assert "(float)" in done.out
    assert not list((tmp_path / "run").glob("*.caplet"))


def test_mistakes_are_one_line(caplet: Caplet, trained: Path, quantized: Path, tmp_path: Path) -> None:
    model, plan = trained / "model.safetensors", quantized / "plan_satisfied.json"
    rest = ("--out", tmp_path / "run", *SHORT)
    assert "cannot read the plan" in caplet("finetune", model, "--plan", tmp_path / "no.json", *rest).error()
    assert "kind is 'caplet-plan'" in caplet("finetune", model, "--plan", quantized / "metrics.json", *rest).error()
    assert "give one entry for each group" in caplet("finetune", model, "--widths", "conv1=2/3", *rest).error()
    assert (
        "did you mean 'exponents'"
        in caplet("finetune", model, "--plan", plan, "--set", "exponent=fixed", *rest).error()
    )
    assert caplet("finetune", model, "--plan", plan, "--widths", "conv1=2/3", *rest).code == 2
    assert not (tmp_path / "run").exists()
