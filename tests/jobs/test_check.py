"""Checking a model before any work: predictions that lowering confirms, and what is not supported."""

import dataclasses
from pathlib import Path

import pytest
import torch

from caplet import api
from caplet.errors import ModelError, PlanError
from caplet.jobs.inspect import check_model
from caplet.lower.handlers import HANDLERS
from caplet.nn.caps import DenseCaps
from caplet.program import cycles, plan_memory
from caplet.program.cycles import DEVICES, STACK_BYTES, Device


def test_what_is_predicted_is_what_ships(quantized: Path, trained: Path) -> None:
    """Sizes at a uniform width do not depend on the exponents; the shipped file is between 4 and 8 bits."""
    found = check_model(api.load_float(trained / "model.safetensors"), images=100)
    assert (found.parameters, found.float_bytes) == (39_376, 157_504)
    assert found.macs == sum(layer.macs for layer in found.layers) > 100_000
    assert not found.problems
    wide, narrow = found.fits
    assert (wide.bits, narrow.bits) == (8, 4)
    assert wide.flash_bytes == pytest.approx(39_376, rel=0.02), "a byte for each parameter"
    program = api.load_program(quantized / "model_satisfied.caplet")
    assert narrow.flash_bytes <= program.flash_bytes <= wide.flash_bytes
    assert wide.small_ram_bytes <= wide.ram_bytes
    assert found.minutes is not None
    assert 0 < found.minutes[0] < found.minutes[1]


def test_a_program_is_looked_at_as_it_is(quantized: Path) -> None:
    program = api.load_program(quantized / "model_satisfied.caplet")
    found = check_model(program)
    assert [dataclasses.astuple(fit)[:4] for fit in found.fits] == [
        (None, program.flash_bytes, plan_memory(program).bytes, plan_memory(program, "small").bytes)
    ]
    assert found.fits[0].device == DEVICES[0].name
    assert found.minutes is None


def test_the_smallest_device_that_holds_it(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = api.load_program(quantized / "model_satisfied.caplet")
    flash = program.firmware_bytes
    least, enough = 0, plan_memory(program, "small").bytes
    while least < enough:
        middle = (least + enough) // 2
        try:
            plan_memory(program, middle)
            enough = middle
        except PlanError:
            least = middle + 1
    ram = least + STACK_BYTES
    core = ("Cortex-M4", 64)
    small, fits = Device("small", *core, flash - 1, ram), Device("fits", *core, flash, ram)
    monkeypatch.setattr(cycles, "DEVICES", (small, fits))
    found = check_model(program).fits[0]
    assert found.device == "fits"
    assert [time.lacks for time in found.times] == ["flash", ""]
    assert found.times[1].milliseconds is not None
    monkeypatch.setattr(cycles, "DEVICES", (small, Device("little RAM", *core, flash, ram - 1)))
    found = check_model(program).fits[0]
    assert (found.device, [time.lacks for time in found.times]) == (None, ["flash", "RAM"])


def test_an_unsupported_layer_is_named_with_a_way_out(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = api.load_float(trained / "model.safetensors")
    monkeypatch.delitem(HANDLERS, DenseCaps)
    found = check_model(model)
    assert [layer.problem is None for layer in found.layers] == [True, True, True, False]
    assert "layer digit: DenseCaps" in found.problems[0]
    assert "docs/adding.md" in found.problems[0]
    assert (found.fits, found.minutes) == ((), None)


def test_nan_weights_are_refused(trained: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        check_model(model)
