"""The one rule of acceptance: counts, intervals, and what is said where the images are too few."""

import numpy as np
import pytest
from numpy.typing import NDArray

from caplet.acceptance import Acceptance
from caplet.errors import ConfigError
from caplet.metrics import loss_limit, paired


def answers(lost: int, gained: int, n: int = 5000) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A float model with 90 % correct, and a Program that loses and gains so many images."""
    reference = np.arange(n) < 0.9 * n
    correct = reference.copy()
    correct[:lost] = False
    correct[n - gained :] = True
    return reference, correct


def test_the_count_decides() -> None:
    reference, correct = answers(18, 8)
    acceptance = Acceptance(reference, 0.2)
    assert acceptance.accepts(correct)
    assert acceptance.describe(correct) == "4,490 correct, 4,490 needed"
    assert acceptance.reason(correct) is None
    assert acceptance.points == 0.2
    stricter = Acceptance(reference, 0.18)
    assert stricter.reason(correct) == "4,490 of 5,000 calibration images are correct, 4,491 are needed"


def test_a_tolerance_relative_to_the_float_accuracy() -> None:
    reference, _ = answers(0, 0, 1000)
    acceptance = Acceptance(reference, 1.0, relative=True)
    assert (acceptance.allowed, acceptance.points) == pytest.approx((9.0, 0.9))
    assert acceptance.needed() == 891
    assert acceptance.needed(0.5) == 896


@pytest.mark.parametrize("n", [7, 100, 999, 1000, 5000])
def test_a_tolerance_of_exactly_k_images_allows_k_and_no_more(n: int) -> None:
    """Whatever the rounding of percentages: 7 of 1,000 images are 0.7 points."""
    reference = np.ones(n, bool)
    for k in range(n):
        acceptance = Acceptance(reference, 100 * k / n)
        assert acceptance.accepts(np.arange(n) >= k), k
        assert not acceptance.accepts(np.arange(n) >= k + 1), k


def test_the_interval_asks_for_more_too() -> None:
    reference, correct = answers(12, 8)
    high = paired(reference, correct).high
    assert Acceptance(reference, high + 0.001, interval=True).accepts(correct)
    stricter = Acceptance(reference, high - 0.005, images="images", interval=True)
    assert stricter.reason(correct) == "the loss on 5,000 images may be 0.26 points, 0.25 are allowed"
    assert stricter.describe(correct) == "loss +0.08 points, at most +0.26, 0.25 allowed"


def test_too_few_images_are_told_with_how_many_would_do() -> None:
    reference, correct = answers(18, 14)
    warning = Acceptance(reference, 0.2).warning(correct)
    assert warning is not None
    assert "loss is 0.08 points; on others like them it may be 0.28" in warning
    assert "about" not in warning, "4,329 images at this rate are fewer than there are: the loss itself is too near"
    few, correct = answers(5, 4, 1000)
    warning = Acceptance(few, 0.2).warning(correct)
    assert warning is not None
    assert "about 6,088 images would tell 0.2 points from none" in warning
    assert Acceptance(reference, 0.2).warning(answers(1, 1)[1]) is None


def test_the_record_has_the_pair_and_the_limit() -> None:
    reference, correct = answers(18, 14)
    record = Acceptance(reference, 0.2).to_json(correct)
    assert (record["n10"], record["n01"], record["accepted"]) == (18, 14, True)
    assert record["loss_limit_95"] == loss_limit(5000, 18, 14)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_what_makes_no_sense_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError):
        Acceptance(np.ones(3, bool), tolerance)
