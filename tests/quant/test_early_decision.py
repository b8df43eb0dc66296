"""Early decisions: every bound against the truth, the order of looking, and what an evaluator makes of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import hypergeom

from caplet.errors import ConfigError
from caplet.fixed import FixedFormat
from caplet.quant.measure.early_decision import (
    Answers,
    EarlyRule,
    Reference,
    bound,
    hypergeometric_bounds,
    make_reference,
)
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.units import uniform_plan, width_memory
from caplet.quant.search.progressive import search_progressive
from caplet.quant.search.qcapsnets import search_qcapsnets
from caplet.quant.search.search import Request, Workbench
from scripted import bench, group_widths

RULE = EarlyRule(first=20, growth=1.5)
N = 600


def float_model(seed: int, n: int = N) -> Reference:
    """A made-up float model: 90 % correct, margins up to 1."""
    draw = np.random.default_rng(seed)
    margins = draw.uniform(0, 1, n) * np.where(draw.random(n) < 0.9, 1, -1)
    return make_reference(margins > 0, margins, RULE)


def moved(reference: Reference, scale: float, seed: int) -> Answers:
    """A plan that moves every margin by an independent two-sided exponential of this mean size."""
    margins = reference.margins + np.random.default_rng(seed).laplace(0, scale, len(reference.correct))
    return Answers(margins > 0, margins)


def first(plan: Answers, count: int) -> Answers:
    return Answers(plan.correct[:count], plan.margins[:count])


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from([0.3, 0.05, 1e-3]), st.data())
def test_hypergeometric_bounds_are_wrong_as_rarely_as_they_say(
    drawn: int, rest: int, error: float, data: st.DataObject
) -> None:
    marked = data.draw(st.integers(0, drawn + rest))
    above = below = 0.0
    for found in range(max(0, marked - rest), min(marked, drawn) + 1):
        low, high = hypergeometric_bounds(rest, drawn, found, error)
        chance = float(hypergeom.pmf(found, drawn + rest, marked, drawn))
        below += chance * (marked - found < low)
        above += chance * (marked - found > high)
        assert 0 <= low <= high <= rest
    assert below <= error * (1 + 1e-9)
    assert above <= error * (1 + 1e-9)


def test_nothing_is_known_without_a_sample() -> None:
    assert hypergeometric_bounds(7, 0, 0, 1e-3) == (0, 7)
    assert hypergeometric_bounds(0, 5, 2, 1e-3) == (0, 0)


def test_the_order_has_every_image_once_the_smallest_margins_first() -> None:
    draw = np.random.default_rng(3)
    margins = draw.normal(size=200)
    reference = make_reference(margins > 0, margins, EarlyRule(random_fraction=0.25, seed=4))
    assert sorted(reference.order.tolist()) == list(range(200))
    assert np.array_equal(reference.margins, margins[reference.order])
    assert np.array_equal(reference.correct, (margins > 0)[reference.order])
    assert abs(int(reference.at_random[:100].sum()) - 25) <= 1
    by_margin = np.abs(reference.margins[~reference.at_random])
    assert (np.diff(by_margin) >= 0).all()
    for seen in (20, 60, 120):  # what is left has larger margins than all that were not taken at random
        assert (
            np.abs(reference.margins[seen:]).min()
            >= np.abs(reference.margins[:seen][~reference.at_random[:seen]]).max()
        )
    same = make_reference(margins > 0, margins, EarlyRule(random_fraction=0.25, seed=4))
    other = make_reference(margins > 0, margins, EarlyRule(random_fraction=0.25, seed=5))
    assert np.array_equal(same.order, reference.order)
    assert not np.array_equal(other.order, reference.order)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, N), st.floats(1e-4, 1.0))
def test_certain_bounds_hold_always(seed: int, seen: int, scale: float) -> None:
    reference = float_model(seed)
    plan = moved(reference, scale, seed + 1)
    found = bound(reference, first(plan, seen), 0.1)
    truth = int(plan.correct.sum())
    assert found.sure_low <= truth <= found.sure_high
    assert found.sure_low <= found.low
    assert found.high <= found.sure_high
    assert len(found.assumed) == N - seen
    if seen == N:
        assert found.low == found.high == truth


@pytest.mark.parametrize("neighbour", [False, True])
@pytest.mark.parametrize("scale", [0.003, 0.02, 0.1, 0.5])
def test_bounds_are_wrong_as_rarely_as_they_say(scale: float, neighbour: bool) -> None:
    """Exponential moves, the heaviest tail that the rule allows for; the promise is 10 %."""
    wrong = 0
    for seed in range(150):
        reference = float_model(seed)
        plan = moved(reference, scale, 1000 + seed)
        near = Answers(plan.correct, plan.margins + np.random.default_rng(seed).laplace(0, scale / 10, N))
        near = first(Answers(near.margins > 0, near.margins), 300)
        found = bound(reference, first(plan, 60), 0.1, [near] if neighbour else [])
        wrong += not found.low <= int(plan.correct.sum()) <= found.high
    assert wrong <= 22  # 15 expected at most; more than 22 of 150 has a chance of 2 %


def test_small_moves_settle_soon_and_broken_plans_sooner() -> None:
    reference = float_model(0, 5000)
    good = bound(reference, first(moved(reference, 0.002, 1), 250), 1e-4)
    assert good.low == good.high == int(moved(reference, 0.002, 1).correct.sum())
    broken = Answers(np.zeros(5000, dtype=bool), np.full(5000, -0.1))
    found = bound(reference, first(broken, 100), 1e-4)
    assert found.high < reference.correct.sum() - 50


def test_a_few_large_moves_among_many_small_ones_make_the_bounds_wide() -> None:
    """The mean move hides them; the largest one does not, once it was seen."""
    reference = float_model(0)
    margins = reference.margins.copy()
    margins[int(np.flatnonzero(reference.at_random[:100] & (np.abs(margins[:100]) > 0.5))[0]) :: 40] *= -1
    found = bound(reference, first(Answers(margins > 0, margins), 100), 1e-3)
    assert found.low <= int((margins > 0).sum()) <= found.high
    assert found.high - found.low > 20


def test_a_similar_plan_narrows_the_bounds() -> None:
    reference = float_model(1, 3000)
    plan = moved(reference, 0.03, 2)
    near = Answers(plan.correct, plan.margins + np.random.default_rng(3).laplace(0, 0.0005, 3000))
    near = first(Answers(near.margins > 0, near.margins), 2000)
    alone, together = (bound(reference, first(plan, 150), 1e-3, others) for others in ([], [near]))
    assert together.high - together.low < (alone.high - alone.low) / 2
    assert together.low <= int(plan.correct.sum()) <= together.high


def test_looks_and_errors_add_up() -> None:
    assert sum(RULE.evaluation_error(k) for k in range(1, 100_000)) == pytest.approx(RULE.error, rel=1e-3)
    assert RULE.looks(15) == [15]
    for n, step in ((1000, 7), (120, 50), (5000, 50)):
        looks = RULE.looks(n, step)
        assert looks == sorted(set(looks))
        assert looks[-1] == n
        assert all(look % step == 0 for look in looks[:-1])


@pytest.mark.parametrize("bad", [{"error": 0}, {"error": 0.6}, {"random_fraction": 0}, {"first": 0}, {"growth": 1.0}])
def test_bad_rules(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="early decisions"):
        EarlyRule(**bad)


def evaluator(case: Any, **more: Any) -> Evaluator:
    rule = EarlyRule(error=0.01, first=20, growth=1.5)
    return Evaluator(case.model, case.images, case.labels, **{"batch_size": 10, "early": rule, **more})


def uniform(case: Any, width: int) -> QuantPlan:
    return uniform_plan(case.model, case.calibration, width)


def answers(result: Any) -> tuple[Any, ...]:
    return result.low, result.high, result.seen, result.error, result.correct_images.tolist()


def test_decisions_agree_with_all_images_and_cost_less(digits: Any) -> None:
    early, exact = evaluator(digits), evaluator(digits, early=None, batch_size=100)
    reference = exact.float_result().correct
    for width in (12, 10, 8, 7, 6, 5, 4, 3, 2):
        plan = uniform(digits, width)
        truth = exact.evaluate(plan)
        for needed in (reference - 30, reference - 3, reference):
            found = early.decide(plan, needed)
            assert (found.low >= needed) == (truth.correct >= needed)
            assert found.low >= needed or found.high < needed
            assert found.low <= truth.correct <= found.high
    assert early.spent < 0.75 * exact.spent


def test_a_later_question_goes_on_where_the_earlier_one_stopped(digits: Any) -> None:
    early = evaluator(digits)
    reference = early.float_result().correct
    plan = uniform(digits, 7)
    first_answer = early.decide(plan, reference - 40)
    spent = early.spent
    assert first_answer.cost == pytest.approx(first_answer.seen / 300)
    counted = early.count(plan)
    assert counted.seen > first_answer.seen
    assert early.spent - spent == pytest.approx((counted.seen - first_answer.seen) / 300) == counted.cost
    again = early.decide(plan, reference - 40)
    assert again.cost == 0
    whole = early.evaluate(plan)
    assert np.array_equal(whole.correct_images, evaluator(digits, early=None).evaluate(plan).correct_images)
    assert early.spent == pytest.approx(2.0)
    found = early.decide(plan, whole.correct)
    assert found.low == found.high == whole.correct


def test_a_question_may_be_left_open(digits: Any, tmp_path: Path) -> None:
    early = evaluator(digits, log_path=tmp_path / "probes.jsonl")
    truth = evaluator(digits, early=None).evaluate(uniform(digits, 6)).correct
    probe = early.decide(uniform(digits, 6), truth, 60)
    assert probe.seen <= 60
    assert probe.low < truth <= probe.high
    assert json.loads((tmp_path / "probes.jsonl").read_text().splitlines()[-1])["settled"] is False
    assert early.decide(uniform(digits, 6), truth).low >= truth


def test_kept_stage_outputs_change_no_answer(digits: Any) -> None:
    plans = [uniform(digits, 7)]
    for bits in (6, 5, 4):
        plans.append(plans[0].with_formats({"digit.votes": FixedFormat(bits, bits - 1, True)}))
    cached, anew = evaluator(digits), evaluator(digits, cache_bytes=0)
    for plan in plans:
        one, other = cached.count(plan), anew.count(plan)
        assert answers(one) == answers(other)
    assert cached.spent < anew.spent


def questions(early: Evaluator, case: Any) -> list[Any]:
    reference = early.float_result().correct
    asked = [(8, 0), (6, 5), (5, 5), (8, 1), (6, 0), (4, 20)]
    return [answers(early.decide(uniform(case, width), reference - lost)) for width, lost in asked]


@pytest.mark.slow
def test_a_resumed_evaluator_answers_the_same_at_every_cut(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    expected = questions(evaluator(digits, log_path=path), digits)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 10
    for cut in (1, 2, 3, len(lines) // 2, len(lines) - 1, len(lines)):
        path.write_text("".join(lines[:cut]))
        resumed = evaluator(digits, log_path=path)
        assert questions(resumed, digits) == expected
        assert path.read_text().count('"question"') == "".join(lines).count('"question"')
    assert resumed.spent == 0


def test_the_log_says_what_was_seen_and_decided(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    early = evaluator(digits, log_path=path)
    reference = early.float_result().correct
    plan = uniform(digits, 6)
    probe = early.decide(plan, reference - 5)
    head, float_line, *rest = map(json.loads, path.read_text().splitlines())
    assert early.early is not None
    assert head["early"] == early.early.model_dump(by_alias=True)
    assert (float_line["digest"], float_line["from"], float_line["to"]) == ("float", 0, 300)
    *parts, decision = rest
    assert [part["from"] for part in parts] == [0, *(part["to"] for part in parts[:-1])]
    assert QuantPlan.from_json(parts[0]["plan"]) == plan
    assert decision["question"] == 1
    assert decision["needed"] == reference - 5
    assert (decision["seen"], decision["n"]) == (parts[-1]["to"], 300)
    assert (decision["low"], decision["high"]) == (probe.low, probe.high)
    assert decision["error"] in (0, pytest.approx(early.early.evaluation_error(1)))


@pytest.mark.slow
def test_searches_end_with_plans_that_keep_the_target(digits: Any) -> None:
    exact, early = evaluator(digits, early=None, batch_size=100), evaluator(digits)
    budget = width_memory(digits.model, *group_widths(digits.model, (8, 7, 6), (8,) * 3)).total.weight_bits
    both = [search_qcapsnets(bench(digits, e), Request(1.0, budget)) for e in (exact, early)]
    assert both[0].best.widths == both[1].best.widths
    assert early.spent < exact.spent / 2
    exact, early = evaluator(digits, early=None, batch_size=100), evaluator(digits)
    fail = partial(pytest.fail, "not needed")
    benches = [Workbench(e, digits.calibration, fail, sensitivity_images=32) for e in (exact, early)]
    request = Request(tolerance=1.0)
    found = [search_progressive(b, request) for b in benches]
    assert found[0].best.widths == found[1].best.widths
    for result in found:
        assert exact.evaluate(result.best.plan).correct >= result.needed
    assert early.spent < exact.spent / 2


def test_steps_are_the_same_after_a_resume_and_cost_nothing(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    budget = width_memory(digits.model, *group_widths(digits.model, (8, 7, 6), (8,) * 3)).total.weight_bits

    def search() -> Any:
        return search_qcapsnets(bench(digits, evaluator(digits, log_path=path)), Request(1.0, budget))

    one, again = search(), search()
    assert [{**step, "cost": 0.0} for step in one.record["steps"]] == again.record["steps"]
    assert one.record["cost"] > again.record["cost"] == 0


def flipped(hits: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    changed = hits.copy()
    changed[:count] = ~changed[:count]
    return changed


def test_what_is_assumed_is_the_base_s_answer() -> None:
    reference = float_model(5)
    plan = Answers(reference.correct, reference.margins * 1.001)
    found = bound(reference, first(plan, 100), 1e-3)
    assert np.array_equal(found.assumed, reference.correct[100:])
    near = Answers(flipped(reference.correct, 0), replace(plan).margins)
    assert np.array_equal(bound(reference, first(plan, 100), 1e-3, [near]).assumed, reference.correct[100:])
