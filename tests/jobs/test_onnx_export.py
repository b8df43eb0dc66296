"""Exporting to ONNX and checking the file: a Program code by code, a float model within rounding."""

from pathlib import Path

import numpy as np
import pytest

from caplet import api
from caplet.data import Splits
from caplet.errors import ConfigError, ToolMissing
from caplet.jobs import export as job
from caplet.jobs.export import check_onnx, export_onnx
from tiny_networks import tiny


@pytest.fixture
def _packages() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("_packages")
def test_a_program_predicts_the_same_on_the_whole_test_split(quantized: Path, digits: Splits, tmp_path: Path) -> None:
    program = api.load_program(quantized / "model_satisfied.caplet")
    path = export_onnx(program, tmp_path / "deep" / "model.onnx")
    found = check_onnx(path, program, digits.test.images.numpy())
    assert (found.images, found.equal_predictions, found.differing, found.largest) == (359, 359, 0, 0.0)
    assert found.values == 359 * 10 * 8
    other = api.load_program(quantized / "model_satisfied.caplet")
    object.__setattr__(other, "seed", 1)  # no rounding draws from it: the same Program
    assert export_onnx(other, tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("_packages")
@pytest.mark.parametrize("name", ["shallow", "deep"])
@pytest.mark.slow
def test_a_float_model_is_exported_with_its_routing(tmp_path: Path, name: str) -> None:
    made = tiny(name)
    path = export_onnx(made.model, tmp_path / "float.onnx")
    assert b".py" not in path.read_bytes()  # no place of this machine
    for count in (1, 24):
        found = check_onnx(path, made.model, made.images.numpy()[:count])
        assert found.equal_predictions == found.images == count
        assert found.differing == 0
        assert 0 < found.largest < 1e-4


@pytest.mark.usefixtures("_packages")
def test_a_difference_is_counted(quantized: Path, trained: Path, digits: Splits, tmp_path: Path) -> None:
    program = api.load_program(quantized / "model_satisfied.caplet")
    op = program.ops[1]
    changed = api.load_program(quantized / "model_satisfied.caplet")
    codes = np.array(op.weight.codes)
    codes[0, 0, 0, 0] = -codes[0, 0, 0, 0] or 1
    object.__setattr__(changed.ops[1].weight, "codes", codes)
    path = export_onnx(changed, tmp_path / "changed.onnx")
    found = check_onnx(path, program, digits.test.images[:50].numpy())
    assert found.differing > 0
    assert found.largest >= 1


@pytest.mark.usefixtures("_packages")
def test_the_difference_of_the_qdq_form_is_counted(quantized: Path, digits: Splits, tmp_path: Path) -> None:
    import onnxruntime

    program = api.load_program(quantized / "model_satisfied.caplet")
    images = digits.calibration.images.numpy()[:80]
    path = export_onnx(program, tmp_path / "model.onnx", "qdq")
    found = check_onnx(path, program, images)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    prediction, capsules = session.run(["prediction", "capsules"], {"images": images})
    expected = api.run(program, images)
    gap = np.abs(capsules - expected.capsules)
    assert (found.differing, found.largest, found.values) == ((gap > 0).sum(), gap.max(), gap.size)
    assert found.equal_predictions == (prediction == expected.predictions).sum()
    assert 0 < found.differing < found.values / 5
    assert found.equal_predictions > 75
    with pytest.raises(ConfigError, match="--form qdq: the model is a float model"):
        export_onnx(tiny("shallow").model, tmp_path / "float.onnx", "qdq")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, quantized: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    monkeypatch.setattr(job, "require_onnx", lambda: None)
    with pytest.raises(ToolMissing, match="onnxscript"):
        export_onnx(tiny("shallow").model, tmp_path / "float.onnx")
    program = api.load_program(quantized / "model_satisfied.caplet")
    with pytest.raises(ToolMissing, match="onnxruntime"):
        check_onnx(tmp_path / "x.onnx", program, np.zeros((1, 1, 8, 8), np.uint8))
