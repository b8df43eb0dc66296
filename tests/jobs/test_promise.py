"""The promise of a tolerance: what a decision on fresh images and a sequence of them may get wrong, and how often."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError
from caplet.jobs.quantize.answers import FloatAnswers, PlanAnswers
from caplet.jobs.quantize.promise import (
    FIRST_IMAGES,
    MANY_IMAGES,
    NEW_IMAGES,
    FreshImages,
    Promise,
    check_tolerance,
    images_needed,
    new_loss_limit,
    provable_tolerance,
    smallest_accepted,
    smallest_tolerance,
)


def numbered(n: int) -> FreshImages:
    """Images whose answers the tests look up by their ids."""
    labels = torch.zeros(n, dtype=torch.int64)
    pixels = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    return FreshImages(ImageSet(pixels, labels, torch.arange(n), ("a", "b"), "numbered"), "calibration images")


class Population:
    """Plans that lose and gain answers at known rates; every plan changes the answers of the same images first.

    A plan of rate r changes the images whose place in a fixed random order is below r: plans are nested, as the plans
    of a search nearly are.
    """

    def __init__(self, n: int, seed: int) -> None:
        draws = np.random.default_rng(seed)
        self.before, self.order = draws.random(n) < 0.9, draws.random(n)

    def reference(self, images: ImageSet) -> np.ndarray:
        return self.before[images.ids.numpy()]

    def plan(self, lost: float, gained: float):
        after = np.where(self.before, self.order >= lost / 0.9, self.order < gained / 0.1)
        return lambda images: PlanAnswers(after[images.ids.numpy()])


@pytest.mark.parametrize(("n", "lost", "gained"), [(5000, 0.004, 0.003), (50_000, 0.0006, 0.0003), (1000, 0.03, 0.03)])
def test_a_limit_for_new_images_holds_their_chance(n: int, lost: float, gained: float) -> None:
    """At most one plan in twenty loses more than its limit on as many new images, and not far fewer."""
    draws = np.random.default_rng(0)
    beyond, trials = 0, 4000
    for _ in range(trials):
        new = 100 * (draws.binomial(NEW_IMAGES, lost) - draws.binomial(NEW_IMAGES, gained)) / NEW_IMAGES
        beyond += new > new_loss_limit(n, draws.binomial(n, lost), draws.binomial(n, gained), 0.05)
    assert 0.02 <= beyond / trials <= 0.06


@pytest.mark.parametrize(("n", "start"), [(3000, 2), (12_000, 2), (12_000, 4)])
def test_a_sequence_of_plans_errs_as_seldom_as_one_decision(n: int, start: int) -> None:
    """Plans just beyond the tolerance, all looked at on the same images: the chance that one of them is accepted."""
    tolerance, error, trials, wrong = 0.5, 0.05, 200, 0
    last = [(0.02, 0.015), (0.03, 0.024)] if start == 2 else [(0.02, 0.01), (0.03, 0.02)]  # from 4, these are rejected
    losses = [(0.002, 0.002), (0.004, 0.003), (0.0155, 0.0105), *last]  # the last three break it
    fresh = numbered(n)
    for seed in range(trials):
        found = Population(n, seed)
        promise = Promise(fresh, found.reference, tolerance, error)
        plans = [found.plan(lost, gained) for lost, gained in losses]
        chosen = smallest_accepted(5, start, lambda i, e: promise.look(plans[i], e, 0.02, 0.3).accepted, error)  # noqa: B023
        wrong += chosen is not None and chosen >= 2
    assert wrong / trials <= error + 2 * (error * (1 - error) / trials) ** 0.5


def test_the_sequence_ends_at_the_first_rejection_and_a_second_one_comes_from_the_largest_plan() -> None:
    looks: list[tuple[int, float]] = []

    def look(accepted: set[int]):
        looks.clear()

        def decide(index: int, error: float) -> bool:
            looks.append((index, error))
            return index in accepted

        return decide

    assert smallest_accepted(6, 2, look({2, 3, 5}), 0.1) == 3
    assert [index for index, _ in looks] == [2, 3, 4]  # 5 would be accepted, but stands behind a rejected one
    assert smallest_accepted(9, 8, look({0, 4, 6, 7}), 0.1) == 7
    assert [index for index, _ in looks] == [8, 0, 4, 6, 7]  # half of the way to the rejected one
    assert len({error for _, error in looks[1:]}) == 1  # passed on from plan to plan
    assert looks[0][1] + looks[1][1] == pytest.approx(0.1)
    assert smallest_accepted(16, 15, look({0, 7, 13}), 0.1) == 7
    assert [index for index, _ in looks] == [15, 0, 7, 11]  # 13 would be accepted, but stands behind a rejected one
    assert smallest_accepted(9, 8, look({4}), 0.1) is None
    assert [index for index, _ in looks] == [8, 0]
    assert smallest_accepted(3, 1, look(set()), 0.1) is None


def test_a_plan_that_cannot_run_is_passed_over_and_costs_no_error() -> None:
    spent: list[tuple[int, float]] = []

    def look(accepted: set[int], misfits: set[int]):
        spent.clear()

        def decide(index: int, error: float) -> bool | None:
            if index in misfits:
                return None
            spent.append((index, error))
            return index in accepted

        return decide

    assert smallest_accepted(6, 2, look({2, 4}, {3}), 0.1) == 4
    assert smallest_accepted(6, 2, look({1, 4}, {2}), 0.1) == 1  # 3 is rejected
    assert smallest_accepted(6, 2, look({4, 5}, {0, 1, 2, 3}), 0.1) == 5  # what is larger cannot run
    assert smallest_accepted(3, 1, look({0, 1, 2}, {0, 1, 2}), 0.1) is None
    assert smallest_accepted(9, 8, look({2, 5, 7}, {0, 1, 6}), 0.1) == 5
    assert [index for index, _ in spent] == [8, 2, 5]
    assert smallest_accepted(9, 8, look({0, 2, 3}, {4}), 0.1) == 3
    assert [index for index, _ in spent] == [8, 0, 2, 3]
    assert spent[0][1] + spent[1][1] == pytest.approx(0.1)


class Margins:
    """A float model that changes few answers, all of them close ones, and is asked about images one set at a time."""

    def __init__(self, n: int, gained_beyond: int = 0) -> None:
        draws = np.random.default_rng(0)
        self.margin = draws.random(n)
        self.plan = draws.random(n) < 0.8
        changed = (self.margin < 0.1) & (draws.random(n) < 0.2)
        changed |= self.plan & (self.margin > 0.9) & (self.margin.argsort().argsort() >= n - gained_beyond)
        self.float, self.asked = self.plan ^ changed, np.zeros(n, dtype=int)

    def reference(self, images: ImageSet) -> np.ndarray:
        self.asked[images.ids.numpy()] += 1
        return self.float[images.ids.numpy()]


def test_the_float_model_is_asked_where_the_plan_is_wrong_or_nearly_so_once() -> None:
    """Every change is found where changes are close calls, for a third of the float model's work."""
    found = Margins(4000)
    answers = FloatAnswers(found.reference, numbered(4000).images)
    first = answers.beside(PlanAnswers(found.plan[:1000], found.margin[:1000]))
    assert (first == found.float[:1000]).all()
    assert (answers.beside(PlanAnswers(found.plan, found.margin)) == found.float).all()
    assert found.asked.max() == 1
    assert 0.2 < found.asked.mean() < 0.4
    assert answers.asked.sum() == found.asked.sum()
    assert (FloatAnswers(found.reference, numbered(4000).images).beside(PlanAnswers(found.plan)) == found.float).all()


def test_answers_gained_by_a_clear_margin_are_not_credited_and_lost_ones_are_always_seen() -> None:
    found = Margins(4000, gained_beyond=100)
    before = FloatAnswers(found.reference, numbered(4000).images).beside(PlanAnswers(found.plan, found.margin))
    assert ((before & ~found.plan) == (found.float & ~found.plan)).all()
    gained, seen = (of & found.plan for of in (~found.float, ~before))
    assert (gained & ~seen).sum() > 50
    assert not (seen & ~gained).any()


def test_a_look_takes_more_images_only_while_the_answer_is_open() -> None:
    fresh, found = numbered(30_000), Population(30_000, 1)
    promise = Promise(fresh, found.reference, 1.0)
    assert promise.look(found.plan(0.001, 0.001), 0.05, changed=0.002).n == FIRST_IMAGES
    assert promise.look(found.plan(0.1, 0.0), 0.05, changed=0.01).n == FIRST_IMAGES  # hopeless at once
    assert promise.look(found.plan(0.02, 0.015), 0.05, changed=0.002).n == 30_000
    assert promise.look(found.plan(0.0245, 0.015), 0.05, changed=0.002).n == FIRST_IMAGES  # all would hardly do
    assert promise.look(found.plan(0.001, 0.001), 0.05, changed=0.2, loss=0.9).n == MANY_IMAGES  # clear all the same


@pytest.mark.parametrize(("rate", "accepted"), [(0.0, True), (0.005, True), (0.02, False)])
def test_held_out_images_must_agree(rate: float, accepted: bool) -> None:
    """A plan that loses nothing on images that the network knows, and much on others, is no good plan."""
    known, new = numbered(10_000), numbered(13_000).images.subset(range(10_000, 13_000))
    losing = np.zeros(13_000, dtype=bool)
    losing[10_000 : 10_000 + round(3000 * rate)] = True
    fresh = FreshImages(known.images, "training images", familiar=True, held_out=new)
    promise = Promise(fresh, lambda images: np.ones(len(images), dtype=bool), 0.5)
    assert promise.look(lambda images: PlanAnswers(~losing[images.ids.numpy()]), 0.05).accepted == accepted


@pytest.mark.parametrize(("lost", "accepted"), [(0.002, True), (0.01, False)])
def test_moved_images_cannot_make_up_for_losses_on_the_others(lost: float, accepted: bool) -> None:
    """As many answers gained on the moved half as are lost on the other: no loss in all, and yet no good plan."""
    n, ones = 20_000, replace(numbered(20_000), familiar=True)
    first = np.arange(n) // 2 < n // 2 * lost  # of either half: every second image of the one class is moved
    even = np.arange(n) % 2 == 0
    before, after = ~(first & ~even), ~(first & even)
    promise = Promise(ones, lambda images: before[images.ids.numpy()], 0.5)
    plan = lambda images: PlanAnswers(after[images.ids.numpy()])  # noqa: E731
    look = promise.look(plan, 0.05)
    assert (look.lost, look.gained, look.accepted) == (look.gained, look.lost, accepted)
    told = replace(ones, familiar=False)
    assert Promise(told, promise._reference, 0.5).look(plan, 0.05).accepted


def test_a_tolerance_that_the_images_cannot_show_is_refused_with_the_smallest_that_they_can() -> None:
    with pytest.raises(ConfigError, match=r"100 calibration images cannot show .* 2\.81 is the smallest"):
        Promise(numbered(100), lambda images: np.ones(len(images), dtype=bool), 0.2)
    assert smallest_tolerance(60_000, 0.05) < 0.04
    with pytest.raises(ConfigError, match="smallest tolerance"):
        Promise(numbered(60_000), lambda images: np.ones(len(images), dtype=bool), 0.0)


def test_images_needed_says_what_a_limit_takes() -> None:
    changed, loss, tolerance = 0.02, 0.05, 0.5
    n = round(images_needed(changed, loss, tolerance, 0.05))
    lost, gained = round(n * (changed / 2 + loss / 200)), round(n * (changed / 2 - loss / 200))
    assert new_loss_limit(n, lost, gained, 0.05) == pytest.approx(tolerance, rel=0.05)


@pytest.mark.parametrize("n", [300, 1_138, 5_000, 60_000])
def test_the_tolerance_that_images_can_prove_is_not_refused(n: int) -> None:
    least = provable_tolerance(n, 0.05)
    for given in (least, least - 1e-12, 100 * (least / 100 * n) / n):
        check_tolerance(given, n, 0.05, "images")
    with pytest.raises(ConfigError, match=f"{least:.2f} is the smallest"):
        check_tolerance(least - 0.01, n, 0.05, "images")
