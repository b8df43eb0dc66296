"""The integer program against brute force, and the search built on it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caplet.errors import ConfigError, ModelError
from caplet.jobs.quantize.accept import footprint
from caplet.quant.choices import Granularity, Method
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.evaluator import Evaluator, PlanResult
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import Widths, make_units
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.fitted_noise import FittedNoise
from caplet.quant.reconstruct.scale_search import ChannelFormats
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.search.allocate import SumLimit, UnitChoice, allocate
from caplet.quant.search.ilp import FIRST_WIDTH, FrontPoint, most_accurate, pareto_front, search_ilp
from caplet.quant.search.methods import METHODS
from caplet.quant.search.progressive import UnitSensitivity
from caplet.quant.search.search import Candidate, Request
from scripted import Scripted, bench


def real(case: Any, **more: Any) -> Evaluator:
    return Evaluator(case.model, case.images, case.labels, batch_size=100, **more)


noises = st.floats(-12, 0).map(lambda exponent: 10.0**exponent)
menus = st.lists(
    st.lists(st.tuples(noises, st.integers(0, 10**6)), min_size=1, max_size=4), min_size=1, max_size=4
).map(
    lambda units: [
        [UnitChoice(i, w, noise, bits if i % 2 else 0, 0 if i % 2 else bits) for w, (noise, bits) in enumerate(unit)]
        for i, unit in enumerate(units)
    ]
)


@settings(max_examples=60, deadline=None)
@given(menus, st.floats(0, 1), st.floats(0, 1))
def test_the_program_finds_what_brute_force_finds(menu: list[list[UnitChoice]], noise: float, memory: float) -> None:
    most = sum(max(choice.noise for choice in unit) for unit in menu)
    largest = sum(max(choice.weight_bits for choice in unit) for unit in menu)
    limits = [
        SumLimit(lambda choice: choice.noise, most * 10.0 ** (-6 * noise)),
        SumLimit(lambda choice: choice.weight_bits, math.floor(memory * largest)),
    ]

    def goal(choice: UnitChoice) -> float:
        return choice.weight_bits + 3 * choice.activation_bits

    def value(chosen: Any) -> float:
        return sum(map(goal, chosen))

    allowed = [chosen for chosen in itertools.product(*menu) if all(limit.holds(chosen) for limit in limits)]
    found = allocate(menu, goal, limits)
    tight = [chosen for chosen in allowed if sum(map(limits[0].measure, chosen)) <= limits[0].at_most * (1 - 1e-5)]
    if found is None:
        assert not tight
        return
    assert [choice.unit for choice in found] == list(range(len(menu)))
    assert all(limit.holds(found) for limit in limits)
    biggest = max(goal(choice) for unit in menu for choice in unit)
    assert value(found) >= min(map(value, allowed)) - 1e-9
    if tight:
        assert value(found) <= min(map(value, tight)) + 1e-5 * biggest


def test_an_exact_budget_can_be_used_up() -> None:
    menu = [[UnitChoice(i, w, 4.0**-w, w * 1000, 0) for w in (2, 4, 8)] for i in range(3)]
    found = allocate(menu, lambda choice: choice.noise, [SumLimit(lambda choice: choice.weight_bits, 16000)])
    assert found is not None
    assert sum(choice.weight_bits for choice in found) == 16000
    assert allocate(menu, lambda choice: choice.noise, [SumLimit(lambda choice: choice.weight_bits, 5999)]) is None


@pytest.mark.parametrize("noise", [math.nan, math.inf])
def test_noise_that_is_no_number_is_refused(noise: float) -> None:
    menu = [[UnitChoice(0, w, noise if w == 4 else 1.0, w, 0) for w in (2, 4, 8)]]
    with pytest.raises(ModelError, match=r"the noise of a choice of widths is (nan|inf)"):
        allocate(menu, lambda choice: choice.noise, [SumLimit(lambda choice: choice.weight_bits, 16)])


def test_the_search_returns_a_front(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    request = Request(tolerance=1.0, granularity=Granularity.LAYER)
    evaluator = real(digits, log_path=path)
    result = search_ilp(bench(digits, evaluator), request)
    assert result.met
    assert result.best.evaluation.correct >= result.needed
    assert result.best.memory == count_memory(digits.model, result.best.plan).total
    assert result.best.memory.weight_reduction > 4
    front = result.record["front"]
    assert len(front) >= 3
    costs = [(row["weight_bytes"], row["activation_bytes"], row["ram_bytes"], row["loss"]) for row in front]
    for mine, theirs in itertools.permutations(costs, 2):
        assert not all(a <= b for a, b in zip(mine, theirs, strict=True))
    for row in front:
        plan = QuantPlan.from_json(row["plan"])
        assert evaluator.evaluate(plan).cost == 0
        assert footprint(digits.model, plan).ram_bytes == row["ram_bytes"]
    for fallback in result.fallbacks:
        assert fallback.evaluation.correct >= result.needed
    replay = real(digits, log_path=path)
    again = search_ilp(bench(digits, replay), request)
    assert replay.spent == 0
    assert again.best.plan == result.best.plan


def test_the_frontier_gives_smaller_plans_for_more_noise_and_for_fitted_weights(digits: Any) -> None:
    plain = bench(digits, real(digits))

    def bits(noise: float, fitted_noise: Callable[[str, int], float] | None = None) -> tuple[int, int]:
        frontier = search_ilp(replace(plain, fitted_noise=fitted_noise), Request(tolerance=3.0)).frontier
        assert frontier is not None
        assert frontier.plan(0.0) is None
        plan = frontier.plan(noise * frontier.noise)
        assert plan is not None
        memory = count_memory(digits.model, plan).total
        return memory.weight_bits, memory.activation_bits

    nearest = bits(1)
    assert sum(bits(4)) < sum(nearest)
    asked: dict[str, list[int]] = {}

    def noise(key: str, width: int) -> float:
        asked.setdefault(key, []).append(width)
        return 0.01 * 4.0**-5 * 4.0**-width

    fitted = bits(1, noise)
    assert fitted[0] < nearest[0]  # weights are narrower where a fit takes their noise away
    assert fitted[1] >= nearest[1] or sum(fitted) < sum(nearest)
    for widths in asked.values():  # each takes a fit
        assert len(set(widths)) == len(widths)
        assert max(widths) == widths[0] == FIRST_WIDTH
        assert not any({width - 1, width + 1} <= {*widths[:count]} for count, width in enumerate(widths))


def test_the_noise_of_fitted_weights_falls_with_the_width_and_is_less_than_that_of_nearest_ones(digits: Any) -> None:
    model, images = digits.model, digits.images[:200]
    formats = ChannelFormats(folded(model), digits.calibration, digits.calibration)
    fitting = ReconstructSettings(parse_parts("bias,rounding"))
    fitted = FittedNoise(model, images, formats, fitting, MeasurementCache(None, "noises", {}).answer)
    nearest = Perturber(model, images[::5])
    for layer in ("conv1", "primary", "digit"):
        noises = {width: fitted(f"{layer}.weight", width) for width in (3, 5, 7)}
        assert noises[3] > 2 * noises[5] > 4 * noises[7] > 0, layer
        for width, noise in noises.items():
            assert noise < nearest.noise({f"{layer}.weight": formats.format(f"{layer}.weight", width)}), (layer, width)


def test_budgets_hold(digits: Any) -> None:
    total = count_memory(digits.model).total
    free = search_ilp(bench(digits, real(digits)), Request(tolerance=3.0))
    ram = footprint(digits.model, free.best.plan).ram_bytes
    limited = Request(
        tolerance=100.0,
        weight_bits=4 * total.weights,
        activation_bits=5.5 * total.activations,
        ram_bytes=ram,
        granularity=Granularity.TENSOR,
    )
    result = search_ilp(bench(digits, real(digits)), limited)
    assert result.met
    for candidate in (result.best, *result.fallbacks):
        assert candidate.memory.weight_bits <= 4 * total.weights
        assert candidate.memory.activation_bits <= 5.5 * total.activations
        assert footprint(digits.model, candidate.plan).ram_bytes <= ram


def test_a_ram_budget_narrows_the_tensors_of_the_peak(digits: Any) -> None:
    wide = footprint(digits.model, QuantPlan({k: digits.calibration.format(k, 16) for k in digits.model.points()}))
    narrow = footprint(digits.model, QuantPlan({k: digits.calibration.format(k, 8) for k in digits.model.points()}))
    middle = (wide.ram_bytes + narrow.ram_bytes) // 2
    result = search_ilp(bench(digits, real(digits)), Request(tolerance=0.0, ram_bytes=middle))
    assert all(row["ram_bytes"] <= middle for row in result.record["front"])
    quietest = result.record["steps"][0]["widths"]
    assert max(quietest["bits"]) == 16  # what is not at the peak stays wide
    with pytest.raises(ConfigError, match="contradict"):
        search_ilp(bench(digits, real(digits)), Request(tolerance=1.0, ram_bytes=16))


def test_a_budget_that_the_target_forbids(digits: Any) -> None:
    total = count_memory(digits.model).total
    request = Request(tolerance=0.1, weight_bits=1.2 * total.weights)
    result = search_ilp(bench(digits, Scripted(digits, lambda bits: 900 - 50 * (bits["primary.weight"] < 4))), request)
    assert not result.met
    assert "least noise within the budgets loses 50 images" in result.reason
    assert [role for role, _ in result.others] == ["memory"]
    assert result.best.memory.weight_bits <= request.weight_bits


def test_a_plan_rests_on_measured_noise_and_few_widths_are_measured(digits: Any, monkeypatch: Any) -> None:
    """Every width of the plan of least noise was measured; most others were not needed."""
    asked: set[tuple[int, int]] = set()
    measure = UnitSensitivity.noise

    def noise(self: UnitSensitivity, index: int, width: int) -> float:
        asked.add((index, width))
        return measure(self, index, width)

    monkeypatch.setattr(UnitSensitivity, "noise", noise)
    total = count_memory(digits.model).total
    limits = Request(100.0, 4 * total.weights, 6 * total.activations, granularity=Granularity.TENSOR, explore=False)
    result = search_ilp(bench(digits, real(digits)), limits)
    assert [step["step"] for step in result.record["steps"]] == ["quietest"]
    with pytest.raises(ConfigError, match="within no budget"):
        METHODS[Method.ILP].check(digits.model, Request(1.0, explore=False))
    units = make_units(digits.model, Granularity.TENSOR, limits.hardware)
    for index, (unit, bits) in enumerate(zip(units, result.best.widths.bits, strict=True)):
        assert (index, min(bits, unit.at_most(8))) in asked
    assert len(asked) < 5 * len(units)
    assert sum(len(unit.widths) for unit in units) > 8 * len(units)


def test_evaluations_repair_what_the_additive_model_missed(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The true limit lies on one unit that the model thinks robust: the repair widens until it holds."""
    monkeypatch.setattr("caplet.quant.search.ilp.REPAIRS", 8)
    result = search_ilp(
        bench(digits, Scripted(digits, lambda bits: 900 - 9 * max(0, 5 - bits["digit.votes"]))),
        Request(tolerance=0.0, granularity=Granularity.TENSOR),
    )
    assert result.met
    assert any(step["step"].startswith("repair") for step in result.record["steps"])
    assert {fmt.bits for key, fmt in result.best.plan.points.items() if key == "digit.votes"} >= {5}


def test_restricted_hardware(digits: Any) -> None:
    hardware = HARDWARE["int8"]
    result = search_ilp(bench(digits, real(digits)), Request(tolerance=3.0, hardware=hardware))
    assert result.met
    assert footprint(digits.model, result.best.plan).problem(hardware) is None
    assert max(result.best.widths.bits) <= 8


def test_dominated_points_leave_the_front(digits: Any) -> None:
    plan = QuantPlan({k: digits.calibration.format(k, 8) for k in digits.model.points()})
    memory = count_memory(digits.model, plan).total
    points = []
    for number, (correct, ram) in enumerate([(90, 100), (90, 90), (80, 90), (95, 120), (90, 90)]):
        evaluation = PlanResult("x", np.arange(100) < correct, 100, correct, correct)
        points.append(FrontPoint(Candidate(Widths((str(number),), (number,)), plan, evaluation, memory), ram, 0.0))
    assert [(point.ram_bytes, point.candidate.evaluation.correct) for point in pareto_front(points)] == [
        (90, 90),
        (90, 90),
        (120, 95),
    ]
    assert most_accurate(points).evaluation.correct == 95


def test_the_registry() -> None:
    assert set(METHODS) == set(Method)
    assert METHODS.find("ilp") is METHODS[Method.ILP]
    with pytest.raises(ConfigError, match="did you mean 'progressive'"):
        METHODS.find("progresive")


@pytest.mark.parametrize("method", list(Method))
def test_every_method_answers_in_one_shape(digits: Any, method: Method) -> None:
    evaluator = Scripted(digits, lambda bits: 900 - (bits["primary.weight"] < 4))
    request = Request(tolerance=0.0)
    chosen = METHODS[method]
    chosen.check(digits.model, request)
    result = chosen.run(bench(digits, evaluator), request)
    assert result.method == method
    assert result.met
    assert result.satisfied is result.best
    assert result.needed == 900
    sizes = [fallback.memory.weight_bits for fallback in result.fallbacks]
    assert all(fallback.evaluation.correct >= 900 for fallback in result.fallbacks)
    assert sizes
    with pytest.raises(ConfigError, match="smallest possible"):
        chosen.check(digits.model, Request(tolerance=0.0, weight_bits=8))


def test_qcapsnets_refuses_limits_that_it_does_not_know(digits: Any) -> None:
    for change in ({"activation_bits": 1e9}, {"ram_bytes": 10**6}, {"hardware": HARDWARE["mcu32"]}):
        with pytest.raises(ConfigError, match="use progressive or ilp"):
            METHODS[Method.QCAPSNETS].check(digits.model, Request(tolerance=1.0, **change))
