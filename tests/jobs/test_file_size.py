"""Three-bit weights take three bits: a ``.caplet`` file is as large as the weights that were counted, plus little."""

from pathlib import Path

import pytest

from caplet.data import Splits, load_data
from caplet.lower import lower
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.registry import build, named_model
from caplet.program import dumps
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.units import make_plan
from scripted import group_widths

SHARE, SPARE = 1.02, 4096


def check_size(model: CapsNet, data: Splits, weights: tuple[int, ...], activations: int, rule: FormatRule) -> None:
    units, widths = group_widths(model, weights, (activations,) * len(weights))
    calibration = calibrate(model, data.calibration.images[:64])
    plan = make_plan(calibration, units, widths, rule)
    size = len(dumps(lower(model, plan, labels=data.test.classes, meta={"family": model.family})))
    counted = count_memory(model, plan).total.weight_bits / 8
    assert counted <= size <= SHARE * counted + SPARE, f"{size} bytes for {counted:.0f} bytes of weights"


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("log2_weights", [False, True])
def test_digits(trained: Path, digits: Splits, width: int, log2_weights: bool) -> None:
    model = load_model(trained / "model.safetensors")
    check_size(model, digits, (width,) * 3, width, FormatRule(log2_weights=log2_weights))


def test_a_deep_model_with_many_layers() -> None:
    """DeepCaps has the longest description: 18 layers."""
    data = load_data("digits", size=28)
    model = build("deep", {**named_model("deep-28").config.model_dump(), "channels": 16})
    check_size(model.eval(), data, (5,) * len(model.groups()), 5, FormatRule())


@pytest.mark.shared
def test_q7_mnist(shared: Path) -> None:
    model = load_model(shared / "models" / "q7_mnist.h5")
    data = load_data("mnist", shared / "data", limit=100)
    check_size(model, data, (8, 6, 3), 8, FormatRule())
