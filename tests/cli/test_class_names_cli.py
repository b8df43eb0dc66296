"""Every command that pairs a model with data compares the names of their classes."""

import dataclasses
from pathlib import Path

import pytest

from caplet import api
from conftest import Caplet

OTHERS = tuple(f"digit {name}" for name in "0123456789")
ON_FLOAT = {
    "eval": [],
    "quantize": ["--out"],
    "sensitivity": ["--out"],
    "prune": ["--keep", "0.5", "--out"],
    "prune-backbone": ["--macs", "0.5", "--out"],
    "finetune": ["--out"],
    "compress": ["--out"],
    "compress --dry-run": [],
    "export": ["--to", "onnx", "--out"],
}
ON_PROGRAM = {"eval": [], "verify": [], "trace": ["--levels", "program,native"], "export": ["--to", "onnx", "--out"]}


@pytest.fixture(scope="module")
def strangers(trained: Path, quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float model and a Program for digits that call the classes otherwise."""
    folder = tmp_path_factory.mktemp("strangers")
    found = {"float": folder / "model.safetensors", "program": folder / "model.caplet"}
    api.save_model(api.load_float(trained / "model.safetensors"), found["float"], {"classes": list(OTHERS)})
    program = api.load_program(quantized / "model_satisfied.caplet")
    api.save_program(dataclasses.replace(program, labels=OTHERS), found["program"])
    return found


@pytest.mark.parametrize(
    ("kind", "command"), [*(("float", name) for name in ON_FLOAT), *(("program", name) for name in ON_PROGRAM)]
)
def test_other_names_are_refused(
    caplet: Caplet, strangers: dict[str, Path], tmp_path: Path, kind: str, command: str
) -> None:
    words = (ON_FLOAT if kind == "float" else ON_PROGRAM)[command]
    out = [tmp_path / "made"] if words and words[-1] == "--out" else []
    told = caplet(*command.split(), strangers[kind], "--data", "digits", *words, *out).error()
    assert "the data's classes are 0, 1, 2, 3, ..., the model's digit 0, digit 1, digit 2, digit 3, ...;" in told
    assert "--labels-by-order" in told
    assert not (tmp_path / "made").exists()


def test_by_order(caplet: Caplet, strangers: dict[str, Path], trained: Path, quantized: Path) -> None:
    for kind, known in (("float", trained / "model.safetensors"), ("program", quantized / "model_satisfied.caplet")):
        asked = ("--data", "digits", "--engine", "interpreter", "--json", "--quiet")
        one, other = caplet("eval", known, *asked), caplet("eval", strangers[kind], *asked, "--labels-by-order")
        assert one.code == other.code == 0
        assert one.json()["accuracy"] == other.json()["accuracy"]
        assert "labels taken by their order: the data's classes are 0, 1, 2, 3, ..., the model's digit 0" in other.err
        assert "labels taken by their order" in other.json()["data_note"]
        assert "labels" not in one.err
        assert "labels" not in one.json()["data_note"]
    done = caplet("verify", strangers["program"], "--data", "digits", "--images", "2", "--on", "interpreter",
                  "--labels-by-order", "--json")  # fmt: skip
    assert done.code == 0
    assert done.json()["engines"][0]["differing"] == 0
    assert "labels taken by their order" in done.json()["data_note"]
    done = caplet("trace", strangers["program"], "--data", "digits", "--levels", "program,native", "--images", "1",
                  "--labels-by-order", "--json")  # fmt: skip
    assert "labels taken by their order" in done.json()["data_note"]
    assert (
        caplet("verify", strangers["program"], "--images", "1", "--on", "interpreter", "--json").json()["data_note"]
        == ""
    )


def test_another_order_is_put_right(caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    model, path = api.load_float(trained / "model.safetensors"), tmp_path / "model.safetensors"
    splits = api.load_data("digits")
    predicted = api.evaluate(model, splits.test).predictions
    api.save_model(model, path, {"classes": list("9876543210")})
    done = caplet("eval", path, "--data", "digits", "--json")
    right = int((predicted == 9 - splits.test.labels.numpy()).sum())
    assert done.json()["accuracy"]["correct"] == right
    told = "labels reordered to the model's: the data's classes are 0, 1, 2, 3, ..., the model's 9, 8, 7, 6, ..."
    assert done.json()["data_note"].endswith(told)
    assert told in done.err.splitlines()
    done = caplet("sensitivity", path, "--data", "digits", "--widths", "4", "--draws", "1", "--images", "16", "--out",
                  tmp_path / "run", "--json")  # fmt: skip
    assert told in done.err.splitlines()
    assert done.json()["data_note"].endswith(told)
