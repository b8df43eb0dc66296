"""Following images through the levels: equal where they must be, and the first difference where they are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from caplet import api
from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.jobs.report import write_report
from caplet.jobs.trace import LevelName, parse_levels, record_trace, trace_levels
from caplet.program import Program, trace
from caplet.quant.plan.plan import QuantPlan

FLOAT, FAKE, PROGRAM, NATIVE = LevelName


@pytest.fixture(scope="module")
def parts(trained: Path, quantized: Path) -> tuple[Program, QuantPlan]:
    plan = api.load_plan(quantized / "model_satisfied.caplet")
    assert plan is not None
    return api.load_program(quantized / "model_satisfied.caplet"), plan


def test_fake_quant_and_program_agree_and_float_is_near(
    trained: Path, parts: tuple[Program, QuantPlan], digits: Splits
) -> None:
    program, plan = parts
    images = digits.calibration.images[:6].numpy()
    model = api.load_float(trained / "model.safetensors")
    found = trace_levels(program, images, (FLOAT, FAKE, PROGRAM), model=model, plan=plan)
    first, second = found.comparisons
    assert second.first is None
    assert sum(row.elements for row in second.rows) > 10_000
    assert [row.tensor for row in second.rows][-1] == "digit.activation[2]"
    image = first.rows[0]
    assert image.tensor == "input.image"
    assert image.steps <= 1.0, "a rounded input is within a step (half of one where no code saturates)"
    codes = trace(program, images)
    saturated = {row["tensor"]: row["saturated"] for row in found.noise}
    fmt = program.tensors["conv1.activation"].format
    assert saturated["conv1.activation"] == (codes["conv1.activation"] == fmt.max_code).mean()
    assert all(row["sqnr"] is None or row["sqnr"] > 0 for row in found.noise)


def test_the_compiled_c_agrees(parts: tuple[Program, QuantPlan], digits: Splits) -> None:
    pytest.importorskip("ziglang")
    found = trace_levels(parts[0], digits.calibration.images[:3].numpy(), (PROGRAM, NATIVE))
    assert found.comparisons[0].first is None
    assert {row.tensor for row in found.comparisons[0].rows} >= {"digit.votes", "digit.activation[2]"}
    assert found.noise == ()


def test_a_changed_weight_is_found_where_it_acts(
    trained: Path, parts: tuple[Program, QuantPlan], digits: Splits
) -> None:
    model = api.load_float(trained / "model.safetensors")
    with torch.no_grad():
        next(layer for layer in model.layers() if layer.name == "primary").weight.mul_(1.5)
    program, plan = parts
    images = digits.calibration.images[:2].numpy()
    [comparison] = trace_levels(program, images, (FAKE, PROGRAM), model=model, plan=plan).comparisons
    assert comparison.first is not None
    assert comparison.first.tensor == "primary.preactivation"
    assert [row.differing for row in comparison.rows[:2]] == [0, 0]
    by_hand = {row.tensor: row for row in comparison.rows}["primary.preactivation"]
    assert by_hand.steps >= 1
    assert by_hand.largest == by_hand.steps * 2.0 ** -program.tensors["primary.preactivation"].format.frac_bits


def test_what_is_missing_is_said(trained: Path, parts: tuple[Program, QuantPlan], digits: Splits) -> None:
    images = np.asarray(digits.calibration.images[:1])
    with pytest.raises(ConfigError, match="--model"):
        trace_levels(parts[0], images, (FLOAT, PROGRAM))
    with pytest.raises(ConfigError, match="plan"):
        trace_levels(parts[0], images, (FAKE, PROGRAM), model=api.load_float(trained / "model.safetensors"))
    for text in ("float", "float,float", "float,fixed"):
        with pytest.raises(ConfigError, match="level"):
            parse_levels(text)


def test_the_report_shows_it(
    trained: Path, quantized: Path, parts: tuple[Program, QuantPlan], digits: Splits, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quantized, folder)
    model = api.load_float(trained / "model.safetensors")
    found = trace_levels(parts[0], digits.calibration.images[:4].numpy(), (FLOAT, PROGRAM), model=model)
    record_trace(folder, parts[0], found)
    assert json.loads((folder / "trace.json").read_text())["noise"] == list(found.noise)
    text = write_report([folder]).read_text()
    assert "Noise by point and iteration" in text
    assert "digit.logits[1]" in text
