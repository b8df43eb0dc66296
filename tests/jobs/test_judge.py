"""The last word on a plan: counts, confidence, and what is said where the images are too few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caplet.jobs.quantize.judge import Judge
from caplet.metrics import loss_limit


def answers(lost: int, gained: int, n: int = 5000) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A float model with 90 % correct, and a Program that loses and gains so many images."""
    float_hits = np.arange(n) < 0.9 * n
    hits = float_hits.copy()
    hits[:lost] = False
    hits[n - gained :] = True
    return float_hits, hits


def test_without_a_confidence_the_count_decides() -> None:
    float_hits, hits = answers(18, 8)
    judge = Judge(float_hits, 4490, 10.0)
    assert judge.accepts(hits)
    assert not Judge(float_hits, 4491, 9.0).accepts(hits)
    assert judge.describe(hits) == "4,490 correct, 4,490 needed"
    assert judge.tolerance == 0.2


def test_a_confidence_asks_for_more() -> None:
    float_hits, hits = answers(12, 8)
    assert loss_limit(5000, 12, 8) > 0.2
    judge = Judge(float_hits, 4490, 10.0, 0.95)
    assert not judge.accepts(hits)
    assert "loss at most 0.24 points at a confidence of 0.95, 0.20 allowed" in judge.describe(hits)
    assert judge.accepts(answers(3, 2)[1])
    assert judge.warning(hits) is None


def test_too_few_images_are_told_with_how_many_would_do() -> None:
    float_hits, hits = answers(18, 14)
    warning = Judge(float_hits, 4490, 10.0).warning(hits)
    assert warning is not None
    assert "loss is 0.08 points; on others like them it may be 0.28" in warning
    assert "about" not in warning, "4,329 images at this rate are fewer than there are: the loss itself is too near"
    float_hits, hits = answers(5, 4, 1000)
    warning = Judge(float_hits, 898, 2.0).warning(hits)
    assert warning is not None
    assert "about 6,088 images would tell 0.2 points from none" in warning
    few_hits, hits = answers(1, 1)
    assert Judge(few_hits, 4490, 10.0).warning(hits) is None


def test_the_record_has_the_pair_and_the_limit() -> None:
    float_hits, hits = answers(18, 14)
    record = Judge(float_hits, 4490, 10.0).record(hits)
    assert (record["n10"], record["n01"], record["accepted"]) == (18, 14, True)
    assert record["loss_limit_95"] == loss_limit(5000, 18, 14)
