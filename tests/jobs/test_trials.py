"""Which fitted plans are tried: few of many, each made only when it is asked for."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from caplet.jobs.quantize.choose import each_once
from caplet.jobs.quantize.promise import smallest_accepted
from caplet.jobs.quantize.trials import MISFITS, Fits, Lazy, last_accepted


@pytest.mark.parametrize("growth", [1.05, 1.2, 1.6])
@pytest.mark.parametrize("limit", range(0, 37, 4))
def test_the_last_accepted_plan_is_found_to_one_by_few_trials(growth: float, limit: int) -> None:
    tried: list[int] = []

    def trial(index: int) -> float:
        tried.append(index)
        return growth ** (index - limit - 0.5)

    found = last_accepted(37, 32, trial)
    assert found in (limit, limit - 1)
    assert len(tried) == len(set(tried)) <= 8


def test_the_ends_are_found_and_nothing_is_found_where_nothing_is_accepted() -> None:
    assert last_accepted(37, 32, lambda index: 0.5) == 36
    assert last_accepted(37, 32, lambda index: 2.0) is None
    assert last_accepted(37, 32, lambda index: math.inf if index > 3 else 0.0) in (2, 3)
    assert last_accepted(1, 0, lambda index: 1.0) == 0


@pytest.mark.parametrize("misfits", [{32}, {12, 13}, {31, 32, 33}, {*range(0, 12)}])
def test_a_plan_that_cannot_run_is_passed_over_and_says_nothing_about_noise(misfits: set[int]) -> None:
    found = last_accepted(37, 32, lambda index: None if index in misfits else 1.2 ** (index - 14.5))
    runs = [index for index in range(37) if index not in misfits]
    accepted = [index for index in runs if index <= 14]
    assert found in accepted[-2:]
    tried: list[int] = []
    assert last_accepted(37, 32, lambda index: tried.append(index)) is None
    assert len(tried) == MISFITS


def test_looks_pass_over_equal_plans_hardly_smaller_ones_and_give_up_where_none_can_run() -> None:
    sizes = [10.0, 9.9, 9.85, 9.0, 9.0, 8.5]
    plans = [0, 1, 2, 3, 3, 5]  # two of them are one
    seen: list[int] = []

    def rung(plan: int, size: float) -> Any:
        memory = SimpleNamespace(weight_reduction=2 / size, activation_reduction=2 / size)
        return SimpleNamespace(candidate=SimpleNamespace(plan=plan, memory=memory))

    rungs = [rung(*each) for each in zip(plans, sizes, strict=True)]
    look = each_once(rungs, lambda one, error: seen.append(one.candidate.plan) or one.candidate.plan < 5)
    assert smallest_accepted(6, 0, look, 0.05) == 4
    assert seen == [0, 3, 5]
    seen.clear()
    other = [rung(plan, 10.0 - plan) for plan in range(9)]
    assert smallest_accepted(9, 8, each_once(other, lambda one, error: seen.append(one.candidate.plan)), 0.05) is None
    assert len(seen) == MISFITS


def test_what_is_found_was_accepted_where_trials_contradict_each_other() -> None:
    said = {32: 1.3, 30: 0.9, 31: 1.1, 29: 1.2, 28: 0.7}
    found = last_accepted(37, 32, lambda index: said.get(index, 1.5 if index > 32 else 0.8))
    assert found is not None
    assert said.get(found, 0.8) <= 1


def test_equal_neighbours_do_not_send_the_next_trial_far_away() -> None:
    """Trials of neighbours differ by chance: the line goes by what lies farther apart."""
    said, tried = {32: 3.0, 24: 0.7, 25: 0.7, 26: 0.75, 27: 1.1}, list[int]()
    assert last_accepted(37, 32, lambda index: tried.append(index) or said.get(index, 1.5)) in (25, 26)
    assert set(tried) <= {32, 24, 25, 26, 27}


def test_items_are_made_once_and_only_when_asked_for() -> None:
    made: list[int] = []

    def make(index: int) -> str:
        made.append(index)
        return f"plan {index}"

    plans = Lazy(5, make)
    assert [plans[3], plans[3], len(plans)] == ["plan 3", "plan 3", 5]
    assert made == [3]
    assert [*Lazy(3, make)] == ["plan 0", "plan 1", "plan 2"]


@pytest.mark.parametrize(("whole", "left_out"), [(0.5, False), (0.8, True), (1.3, True)])
def test_fits_end_to_end_stay_only_where_they_do_better_on_the_images_of_trials(whole: float, left_out: bool) -> None:
    draft = SimpleNamespace(fit="whole", draft="draft", only_draft=lambda: calls.append("only draft"))
    calls: list[str] = []
    shipper = SimpleNamespace(
        fitter=draft, program=lambda plan: f"program of {plan}", answers=lambda program, images: (program, images)
    )
    fits: Any = SimpleNamespace(
        shipper=shipper, images="trial images", known=lambda plan: f"draft of {plan}", note=calls.append
    )
    said = {"draft of plan": 0.8, ("program of plan", "trial images"): whole}
    Fits.settle(fits, SimpleNamespace(plan="plan"), lambda answers: said[answers])  # type: ignore[arg-type]
    assert ("only draft" in calls) == left_out
    assert any("left out" in call for call in calls) == left_out
    draft.draft = "whole"  # there is no such part
    calls.clear()
    Fits.settle(fits, SimpleNamespace(plan="plan"), lambda answers: said[answers])  # type: ignore[arg-type]
    assert not calls
