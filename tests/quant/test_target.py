"""Hardware descriptions: their rules, their files, and exponents moved into a shift range."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caplet.errors import ArtefactError, ConfigError, PlanError
from caplet.fixed import FixedFormat
from caplet.jobs.quantize.accept import footprint
from caplet.nn.points import Role, flash, ram
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import HARDWARE, Footprint, Hardware, find_hardware, fit_shifts

VOTES = ram("votes", Role.VOTES, ("in",), (3,), signed=True)
WEIGHT = flash("weight", Role.WEIGHT, ("out",), (3,))


@pytest.mark.parametrize("hardware", list(HARDWARE.values()), ids=lambda hardware: hardware.name)
def test_descriptions_survive_json(hardware: Hardware, tmp_path: Path) -> None:
    assert Hardware.of(json.loads(hardware.model_dump_json())) == hardware
    assert find_hardware(hardware.name) is hardware
    path = tmp_path / "device.json"
    path.write_text(hardware.model_dump_json())
    assert find_hardware(str(path)) == hardware


def test_containers() -> None:
    hardware = Hardware(name="test", weight_containers=(4, 8), activation_containers=(8, 16))
    assert [hardware.container(WEIGHT, bits) for bits in (1, 4, 5, 8)] == [4, 4, 8, 8]
    assert hardware.container(VOTES, 9) == 16
    with pytest.raises(PlanError, match="no container of 9 bits"):
        hardware.container(WEIGHT, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_containers": ()}, "at least 1 item"),
        ({"weight_containers": (8, 4)}, "ascending"),
        ({"activation_containers": (0, 8)}, "greater than or equal to 1"),
        ({"activation_containers": (1,)}, "at least 2"),
        ({"activation_containers": (8, 17)}, "less than or equal to 16"),
        ({"weight_containers": (8, True)}, "valid integer"),
        ({"shift": (1, 31)}, "low <= 0"),
        ({"shift": (0, 63)}, "less than or equal to 62"),
        ({"shift": (0, 1, 2)}, "at most 2 items"),
        ({"accumulator_bits": 48}, "16, 32 or 64"),
        ({"only_containers": 1}, "valid boolean"),
    ],
)
def test_bad_descriptions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hardware(name="x", **change)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mcu32'"):
        find_hardware("mcu23")
    with pytest.raises(ArtefactError, match="cannot read"):
        find_hardware(str(tmp_path / "none.json"))
    path = tmp_path / "device.json"
    for text, error in (("{", ArtefactError), ("[]", ConfigError), ('{"name": "x", "shift": 3}', ConfigError)):
        path.write_text(text)
        with pytest.raises(error):
            find_hardware(str(path))
    path.write_text('{"name": "x", "cores": 3}')
    with pytest.raises(ConfigError, match="cores: no setting of this name"):
        find_hardware(str(path))


def test_problems_are_named() -> None:
    found = Footprint(100, (("a", 100),), 64, {"a.votes": (3, 40)})
    assert found.problem(HARDWARE["portable"]) is None
    assert "accumulator needs 64" in (found.problem(HARDWARE["mcu32"]) or "")
    assert "a.votes needs a shift by 40" in (replace(found, accumulator_bits=32).problem(HARDWARE["mcu32"]) or "")
    left = Footprint(100, (), 32, {"a.votes": (-2, 4)})
    assert "by -2 bits" in (left.problem(HARDWARE["int8"]) or "")


@pytest.mark.parametrize("width", [2, 3, 8, 14])
def test_exponents_move_into_the_shift_range(case: Any, width: int) -> None:
    specs = case.model.points()
    plan = QuantPlan({key: case.calibration.format(key, width) for key in specs})
    looks: list[QuantPlan] = []

    def look(plan: QuantPlan) -> Footprint:
        looks.append(plan)
        return footprint(case.model, plan)

    hardware = Hardware(name="short", shift=(0, 12))
    moved = fit_shifts(plan, hardware, look)
    assert all(0 <= low <= high <= 12 for low, high in footprint(case.model, moved).shifts.values())
    assert {key: fmt.bits for key, fmt in moved.points.items()} == {key: fmt.bits for key, fmt in plan.points.items()}
    assert len(looks) <= len(specs)
    assert fit_shifts(plan, HARDWARE["portable"], look) is plan
    assert fit_shifts(moved, hardware, look) == moved


def test_the_footprint_is_the_arena_s(digits: Any) -> None:
    from caplet.lower import lower
    from caplet.program.arena import plan_memory

    plan = QuantPlan({key: digits.calibration.format(key, 6) for key in digits.model.points()})
    found = footprint(digits.model, plan)
    memory = plan_memory(lower(digits.model, plan))
    assert found.ram_bytes == memory.bytes
    assert found.peak == memory.peak
    wide = plan.with_formats({"digit.votes": FixedFormat(16, 10, True)})
    assert footprint(digits.model, wide).ram_bytes > found.ram_bytes
