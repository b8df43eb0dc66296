"""The papers' memory count."""

from typing import Any

import pytest

from caplet.errors import PlanError
from caplet.models.registry import build
from caplet.nn.points import Storage
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.units import (
    Widths,
    bits_in_use,
    group_units,
    make_plan,
    point_widths,
    uniform_plan,
    width_memory,
    width_table,
)
from scripted import group_plan, group_widths


def test_shallowcaps_by_hand() -> None:
    model = build("shallow", {})
    count = count_memory(model)
    weights = {"input": 0, "conv1": 81 * 256 + 256, "primary": 81 * 256 * 256 + 256, "digit": 1152 * 8 * 160 + 160}
    routing = 1152 * 10 * 16 + 2 * 1152 * 10 + 2 * 160  # votes, coupling and logits, preactivation and activation
    activations = {"input": 784, "conv1": 256 * 400, "primary": 2 * 9216, "digit": routing}
    assert {row.group: row.weights for row in count.rows} == weights
    assert {row.group: row.activations for row in count.rows} == activations
    total = count.total
    assert (total.weights, total.weight_bits) == (sum(weights.values()), 32 * sum(weights.values()))
    assert total.weight_reduction == total.activation_reduction == total.output_reduction == 1.0
    outputs = {"input": 784, "conv1": 256 * 400, "primary": 9216, "digit": 160}  # as Q-CapsNets counts
    assert {row.group: row.outputs for row in count.rows} == outputs


def test_bits_are_summed_point_by_point(case: Any) -> None:
    groups = len(case.model.groups())
    units, widths = group_widths(case.model, tuple(range(3, 3 + groups)), tuple(range(5, 5 + groups)), (4,) * groups)
    plan = make_plan(case.calibration, units, widths)
    total = count_memory(case.model, plan).total
    specs = case.model.points()
    for storage, bits in ((Storage.FLASH, total.weight_bits), (Storage.RAM, total.activation_bits)):
        assert bits == sum(s.elements * plan.points[k].bits for k, s in specs.items() if s.storage is storage)
    assert width_memory(case.model, units, widths) == count_memory(case.model, plan)
    assert total.weight_reduction == pytest.approx(32 * total.weights / total.weight_bits)
    names = [row["group"] for row in count_memory(case.model, plan).to_json()]
    assert names == ["input", *case.model.groups(), "total"]


def test_log2_weights_count_their_own_bits(digits: Any) -> None:
    units, rule = group_units(digits.model), FormatRule(log2_weights=True)
    counted = count_memory(digits.model, uniform_plan(digits.model, digits.calibration, 9, rule))
    assert width_memory(digits.model, units, Widths.uniform(units, 9), rule) == counted
    assert counted.total.weight_bits < 6 * counted.total.weights


def test_routing_widths_set_preactivation_and_logits_of_routed_layers_only(case: Any) -> None:
    groups = len(case.model.groups())
    widths = point_widths(*group_widths(case.model, (9,) * groups, (7,) * groups, (5,) * groups))
    assert widths["input.image"] == 7
    for key, spec in case.model.points().items():
        inside = spec.routed and spec.role in ("preactivation", "logits")
        assert widths[key] == (9 if spec.storage is Storage.FLASH else 5 if inside else 7)
    assert sum(width == 5 for width in widths.values()) in (2, 4)


def test_the_widths_in_use_are_listed(digits: Any) -> None:
    plan = group_plan(digits.model, digits.calibration, (8, 7, 6), (5, 4, 3), (5, 4, 2))
    assert bits_in_use(digits.model, plan) == {
        "conv1": {"weights": [8], "activations": [5]},
        "primary": {"weights": [7, 8], "activations": [4]},  # biases keep 8 bits
        "digit": {"weights": [6, 8], "activations": [3], "routing": [2]},
    }
    assert width_table(digits.model, plan) == {
        "conv1": {"weights": 8, "activations": 5},
        "primary": {"weights": 7, "activations": 4},
        "digit": {"weights": 6, "activations": 3, "routing": 2},
    }


def test_units_by_group_hold_every_point_once(case: Any) -> None:
    units = group_units(case.model)
    assert sorted(key for unit in units for key in unit.points) == sorted(case.model.points())
    assert [unit.name for unit in units[:2]] == ["conv1 weights", "conv1 activations"]
    assert "input.image" in units[1].points
    assert {unit.widths[0] for unit in units if unit.name.endswith("routing")} == {2}


def test_a_width_out_of_range_is_refused(digits: Any) -> None:
    with pytest.raises(PlanError, match="a width of 17 bits"):
        uniform_plan(digits.model, digits.calibration, 17)
