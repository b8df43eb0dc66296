"""``caplet prune`` and ``caplet bench`` through the command line."""

import json
from pathlib import Path

import pytest

from conftest import Caplet


def prune(model: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("prune", model, "--calibration-size", 120, "--out", out, "--epochs", 0, "--score", "length", *more)


@pytest.mark.slow
def test_prune_then_quantize_then_export(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    model, out = trained / "model.safetensors", tmp_path / "pruned"
    done = caplet(*prune(model, out, "--macs", 0.5, "--space", "digit.capsules=24", "--units", "channels", "--json"))
    assert done.code == 0, done.err
    metrics = done.json()
    assert metrics["macs_kept"] <= 0.5
    assert metrics["sizes"]["digit.capsules"] == [24, 32]
    shipped = tmp_path / "quantized"
    done = caplet(
        *("quantize", out / "model.safetensors", "--calibration-size", 120, "--tolerance", 8, "--out", shipped)
    )
    assert done.code == 0, done.err
    done = caplet("verify", shipped / "model_satisfied.caplet", "--images", 8)
    assert done.code == 0, done.err
    again = caplet(*prune(model, out, "--macs", 0.5))
    assert again.code == 3
    assert "is not empty" in again.err


def test_an_unreachable_drop_ends_with_exit_code_5(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    model, out = trained / "model.safetensors", tmp_path / "run"
    done = caplet(*prune(model, out, "--max-drop", 0, "--space", "primary.dim=2"))
    assert done.code == 5
    assert "no trial kept within 0 pp" in done.err
    assert json.loads((out / "metrics.json").read_text())["met"] is False
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", 0), "keep: Input should be greater than 0"),
        (("--keep", 1.2), "keep: Input should be less than or equal to 1"),
        ((), "exactly one of keep, macs, params, bytes, max_drop"),
        (("--keep", 0.5, "--macs", 0.5), "found keep, macs"),
        (("--keep", 0.5, "--units", "filters"), "'channels', 'types', 'dim' or 'capsules'"),
        (("--keep", 0.5, "--score", "saliency"), "unknown score 'saliency'"),
        (("--space", "primary.types"), "the rule is NAME=VALUE"),
        (("--space", "primary.types=0"), "0 to keep; the rule is a fraction in (0, 1]"),
        (("--macs", 0.00001), "would empty a layer; the smallest that"),
        (("--bytes", "5 apples"), "the rule is a number and a unit"),
    ],
)
def test_bad_input_is_one_line(
    caplet: Caplet, trained: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    done = caplet(*prune(trained / "model.safetensors", tmp_path / "run", *options))
    assert message in done.error()


def test_a_program_cannot_be_pruned(caplet: Caplet, quantized: Path, tmp_path: Path) -> None:
    done = caplet(*prune(quantized / "model_satisfied.caplet", tmp_path / "run", "--keep", 0.5))
    assert done.code == 3
    assert "holds integers already; give the float model that it was made from" in done.err
    assert not (tmp_path / "run").exists()


def test_bench_compares_two_models(caplet: Caplet, trained: Path) -> None:
    model = trained / "model.safetensors"
    done = caplet("bench", model, model, "--turns", 1, "--batch", 4, "--training-batch", 4, "--json")
    assert done.code == 0, done.err
    record = done.json()
    assert record["cost"]["a"] == record["cost"]["b"]
    assert record["inference"]["ratio"]["median"] > 0
