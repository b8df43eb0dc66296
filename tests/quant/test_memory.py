"""The papers' memory count."""

from __future__ import annotations

from typing import Any

import pytest

from caplet.errors import PlanError
from caplet.models.registry import build
from caplet.nn.points import Storage
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.widths import Widths, describe, make_plan, point_widths, width_memory


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
    assert total.weight_reduction == total.activation_reduction == 1.0


def test_bits_are_summed_point_by_point(case: Any) -> None:
    groups = len(case.model.groups())
    widths = Widths(tuple(range(3, 3 + groups)), tuple(range(5, 5 + groups)), (4,) * groups)
    plan = make_plan(case.model, case.calibration, widths)
    total = count_memory(case.model, plan).total
    specs = case.model.points()
    for storage, bits in ((Storage.FLASH, total.weight_bits), (Storage.RAM, total.activation_bits)):
        assert bits == sum(s.elements * plan.points[k].bits for k, s in specs.items() if s.storage is storage)
    assert width_memory(case.model, widths) == count_memory(case.model, plan)
    assert total.weight_reduction == pytest.approx(32 * total.weights / total.weight_bits)
    names = [row["group"] for row in count_memory(case.model, plan).to_json()]
    assert names == ["input", *case.model.groups(), "total"]


def test_log2_weights_count_their_own_bits(digits: Any) -> None:
    widths, rule = Widths.uniform(3, 9), FormatRule(log2_weights=True)
    counted = count_memory(digits.model, make_plan(digits.model, digits.calibration, widths, rule))
    assert width_memory(digits.model, widths, rule) == counted
    assert counted.total.weight_bits < 6 * counted.total.weights


def test_routing_widths_set_preactivation_and_logits_of_routed_layers_only(case: Any) -> None:
    groups = len(case.model.groups())
    widths = point_widths(case.model, Widths((9,) * groups, (7,) * groups, (5,) * groups))
    assert widths["input.image"] == 7
    for key, spec in case.model.points().items():
        inside = spec.routed and spec.role in ("preactivation", "logits")
        assert widths[key] == (9 if spec.storage is Storage.FLASH else 5 if inside else 7)
    assert sum(width == 5 for width in widths.values()) in (2, 4)


def test_describe_lists_the_widths_in_use(digits: Any) -> None:
    plan = make_plan(digits.model, digits.calibration, Widths((8, 7, 6), (5, 4, 3), (5, 4, 2)))
    assert describe(digits.model, plan) == {
        "conv1": {"weights": [8], "activations": [5]},
        "primary": {"weights": [7, 8], "activations": [4]},  # biases keep 8 bits
        "digit": {"weights": [6, 8], "activations": [3], "routing": [2]},
    }


def test_a_width_per_group_is_asked_for(digits: Any) -> None:
    with pytest.raises(PlanError, match="2 widths for the 3 groups conv1, primary, digit"):
        make_plan(digits.model, digits.calibration, Widths.uniform(2, 8))
