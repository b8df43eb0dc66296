"""The progressive search: units, hardware, the order of steps, leaps against single steps, and results."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import ConfigError
from caplet.fixed import Rounding
from caplet.jobs.quantize.accept import footprint
from caplet.nn.points import Role
from caplet.quant.choices import Granularity
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import Widths, make_units, point_widths, width_memory
from caplet.quant.search.progressive import longest_run, search_progressive
from caplet.quant.search.search import Request, Step
from scripted import Scripted, bench


@pytest.mark.parametrize("granularity", list(Granularity))
def test_units_cover_every_point_once(case: Any, granularity: Granularity) -> None:
    units = make_units(case.model, granularity, HARDWARE["portable"])
    specs = case.model.points()
    assert sorted(key for unit in units for key in unit.points) == sorted(specs)
    for unit in units:
        assert {specs[key].storage for key in unit.points} == {unit.storage}
        assert unit.elements == sum(specs[key].elements for key in unit.points)
        assert list(unit.widths) == sorted(set(unit.widths))
        assert unit.widths[-1] == 16
        assert unit.below(unit.widths[0]) is None
    counts = {
        Granularity.NETWORK: 2,
        Granularity.BLOCK: 2 * len(case.model.groups()),
    }
    assert len(units) == counts.get(granularity, len(units))


def test_tensor_granularity_gives_each_routing_tensor_its_own_width(digits: Any) -> None:
    units = {unit.name: unit for unit in make_units(digits.model, Granularity.TENSOR, HARDWARE["portable"])}
    for name in ("votes", "coupling", "preactivation", "activation", "logits"):
        assert units[f"digit.{name}"].points == (f"digit.{name}",)
    assert units["digit weights"].points == ("digit.weight", "digit.bias")
    assert units["digit.votes"].widths == tuple(range(2, 17))  # signed: one bit would hold no positive value
    assert units["digit.coupling"].widths[0] == 1


def test_widths_become_plans_and_counts(case: Any) -> None:
    units = make_units(case.model, Granularity.LAYER, HARDWARE["portable"])
    widths = Widths.uniform(units, 5).with_width(1, 3)
    chosen = point_widths(units, widths)
    plan = QuantPlan({key: case.calibration.format(key, width) for key, width in chosen.items()})
    assert width_memory(case.model, units, widths) == count_memory(case.model, plan)
    assert {chosen[key] for key in units[1].points} == {3}


def test_hardware_limits_widths(digits: Any) -> None:
    specs = digits.model.points()
    for unit in make_units(digits.model, Granularity.TENSOR, HARDWARE["int8"], FormatRule(log2_weights=True)):
        roles = {specs[key].role for key in unit.points}
        assert unit.widths[-1] == 8
        if roles == {Role.WEIGHT}:
            assert unit.widths == (2, 3, 4, 5)
        assert unit.at_most(16) == unit.widths[-1]
        assert unit.at_most(0) == unit.widths[0]


@given(st.integers(0, 70), st.integers(0, 70), st.booleans())
def test_the_longest_run_is_found_with_few_questions(length: int, answer: int, gallop: bool) -> None:
    asked: list[int] = []

    def holds(count: int) -> bool:
        assert 1 <= count <= length
        asked.append(count)
        return count <= answer

    found = longest_run(length, holds, gallop=gallop)
    assert found == min(length, answer)
    assert len(asked) == len(set(asked))
    assert len(asked) <= (2 * found.bit_length() + 2 if gallop else length.bit_length())


def additive(bits: dict[str, int]) -> int:
    """A network in which every narrow tensor loses images of its own."""
    sensitive = {"conv1.weight": 7, "primary.weight": 4, "digit.weight": 3, "digit.votes": 5, "conv1.activation": 6}
    return 900 - sum(2 * max(0, needs - bits[key]) for key, needs in sensitive.items())


@pytest.mark.parametrize("granularity", list(Granularity))
def test_leaps_find_what_single_steps_find(digits: Any, granularity: Granularity) -> None:
    request = Request(tolerance=0.6, granularity=granularity)
    asked = []
    results = []
    for leaps in (False, True):
        evaluator = Scripted(digits, additive)
        results.append(search_progressive(bench(digits, evaluator, images=8), request, leaps=leaps))
        asked.append(len(results[-1].record["steps"]))
    one, fast = results
    assert one.met
    assert one.best.widths == fast.best.widths
    assert asked[1] <= asked[0]
    assert one.best.evaluation.correct >= one.needed == 894


def test_no_unit_can_go_lower(digits: Any) -> None:
    """The end of the search: every single further step misses the target."""
    evaluator = Scripted(digits, additive)
    request = Request(tolerance=0.6, granularity=Granularity.TENSOR)
    result = search_progressive(bench(digits, evaluator), request)
    units = make_units(digits.model, Granularity.TENSOR, HARDWARE["portable"])
    for index, unit in enumerate(units):
        below = unit.below(result.best.widths.bits[index])
        if below is not None:
            chosen = point_widths(units, result.best.widths.with_width(index, below))
            assert additive(chosen) < result.needed, unit.name


def test_the_search_on_a_real_model(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    seen: list[Step] = []

    def search() -> Any:
        evaluator = Evaluator(digits.model, digits.images, digits.labels, batch_size=100, log_path=path)
        request = Request(tolerance=1.0, granularity=Granularity.LAYER)
        return evaluator, search_progressive(bench(digits, evaluator, seen.append), request)

    evaluator, result = search()
    assert result.met
    best = result.best
    assert best.evaluation.correct >= result.needed == result.reference.correct - 3
    assert best.memory == count_memory(digits.model, best.plan).total
    assert best.memory.weight_reduction > 5
    assert best.memory.activation_reduction > 3
    assert len(seen) == len(result.record["steps"])
    assert 0 < result.cost < 10
    for fallback in result.fallbacks:
        assert fallback.evaluation.correct >= result.needed
    assert evaluator.evaluate(best.plan).cost == 0
    again_evaluator, again = search()
    assert again_evaluator.spent == 0
    assert again.best.plan == best.plan


def test_steps_are_the_start_and_lower_widths(digits: Any) -> None:
    """The start and every lower width are steps of the record."""
    evaluator = Scripted(digits, lambda bits: 900 - (sum(bits.values()) < 8 * len(bits) - 20))
    request = Request(tolerance=0.0, granularity=Granularity.TENSOR)
    seen: list[Step] = []
    search_progressive(bench(digits, evaluator, seen.append, images=64), request)
    assert {step.step for step in seen} == {"start", "lower"}


def test_an_impossible_target_is_reported(digits: Any) -> None:
    result = search_progressive(bench(digits, Scripted(digits, lambda bits: 500)), Request(tolerance=0.1))
    assert not result.met
    assert "not even the widest" in result.reason
    assert result.satisfied is None
    assert result.fallbacks == ()
    assert [role for role, _ in result.others] == ["accuracy"]
    assert set(result.best.widths.bits) == {16}


def test_a_budget_that_the_target_forbids_is_named(digits: Any) -> None:
    weights = count_memory(digits.model).total.weights
    tight = Request(tolerance=0.6, weight_bits=weights)
    result = search_progressive(bench(digits, Scripted(digits, additive)), tight)
    assert not result.met
    assert "weights take" in result.reason
    assert result.best.evaluation.correct >= result.needed
    small = Request(tolerance=0.6, ram_bytes=10)
    result = search_progressive(bench(digits, Scripted(digits, additive)), small)
    assert not result.met
    assert "RAM" in result.reason
    enough = Request(tolerance=0.6, weight_bits=10 * weights, activation_bits=10**9, ram_bytes=10**7)
    assert search_progressive(bench(digits, Scripted(digits, additive)), enough).met


def test_the_smallest_rounding_wins(digits: Any) -> None:
    request = Request(tolerance=0.6, roundings=(Rounding.TRUNCATE, Rounding.NEAREST), granularity=Granularity.NETWORK)
    result = search_progressive(bench(digits, Scripted(digits, additive), images=8), request)
    assert result.met
    assert len(result.record["others"]) == 1


@pytest.mark.parametrize("name", ["mcu32", "int8"])
def test_plans_run_on_the_hardware_that_they_are_for(digits: Any, name: str) -> None:
    hardware = HARDWARE[name]
    evaluator = Evaluator(digits.model, digits.images[:100], digits.labels[:100], batch_size=100)
    request = Request(tolerance=3.0, granularity=Granularity.BLOCK, hardware=hardware)
    result = search_progressive(bench(digits, evaluator), request)
    assert result.met
    found = footprint(digits.model, result.best.plan)
    assert found.problem(hardware) is None
    assert found.accumulator_bits <= 32
    specs = digits.model.points()
    assert all(fmt.bits <= hardware.containers(specs[key])[-1] for key, fmt in result.best.plan.points.items())


@pytest.mark.parametrize(
    "bad", [{"tolerance": -1}, {"tolerance": 1, "weight_bits": 0}, {"tolerance": 1, "roundings": ()}]
)
def test_bad_requests(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Request(**bad)
