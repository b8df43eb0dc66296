import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from caplet.errors import DataError
from caplet.metrics import accuracy, images_to_resolve, loss_limit, paired


def test_the_interval_is_wilsons() -> None:
    """Against the closed form, at z = 1.959964."""
    correct, n, z = 920, 2000, 1.959964
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    found = accuracy(correct, n)
    assert (found.correct, found.n, found.percent) == (920, 2000, 46.0)
    assert found.low == pytest.approx(100 * (centre - half), abs=1e-4)
    assert found.high == pytest.approx(100 * (centre + half), abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_accuracy(counts: tuple[int, int]) -> None:
    found = accuracy(*counts)
    assert -1e-9 <= found.low <= found.percent + 1e-9
    assert found.percent - 1e-9 <= found.high <= 100 + 1e-9
    assert found.low < found.high


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(DataError, match=f"{correct} correct out of {n}"):
        accuracy(correct, n)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_comparison_counts_discordant_images(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    found = paired(first, second)
    assert found.n10 == sum(a and not b for a, b in pairs)
    assert found.n01 == sum(b and not a for a, b in pairs)
    assert found.loss == pytest.approx(100 * (first.mean() - second.mean()))
    assert found.low <= found.loss <= found.high
    swapped = paired(second, first)
    assert (swapped.loss, swapped.p_value) == (pytest.approx(-found.loss), pytest.approx(found.p_value))


def test_mcnemars_exact_p_value() -> None:
    """2 * P(X <= 3) of 10 fair coins, from the binomial distribution's own sum."""
    first, second = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    first[:3], second[3:10] = True, True
    found = paired(first, second)
    assert (found.n10, found.n01) == (3, 7)
    assert found.p_value == pytest.approx(2 * binom.cdf(3, 10, 0.5))


def test_equal_models_do_not_differ() -> None:
    hits = np.array([True, False, True])
    found = paired(hits, hits)
    assert (found.loss, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_only_the_same_images_are_compared(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="the same images"):
        paired(np.ones(first, dtype=bool), np.ones(second, dtype=bool))


@pytest.mark.parametrize(("lost", "gained"), [(0.004, 0.003), (0.001, 0.0), (0.02, 0.03), (0.0, 0.0)])
def test_the_loss_is_above_its_limit_as_rarely_as_promised(lost: float, gained: float) -> None:
    """2,000 made-up samples of 2,000 images; 5 % promised, a little more is known of score limits at small counts."""
    draw = np.random.default_rng(0)
    counts = draw.multinomial(2000, [lost, gained, 1 - lost - gained], size=2000)
    pairs, repeats = np.unique(counts[:, :2], axis=0, return_counts=True)
    missed = sum(
        times * (loss_limit(2000, int(n10), int(n01)) < 100 * (lost - gained))
        for (n10, n01), times in zip(pairs, repeats, strict=True)
    )
    assert missed / 2000 < 0.065


def test_limits_of_the_loss_at_the_ends() -> None:
    assert loss_limit(100, 0, 0) == pytest.approx(100 * 2.7055 / 102.7055, rel=1e-4)  # z^2 / (n + z^2)
    assert loss_limit(100, 100, 0) == 100.0
    assert loss_limit(100, 0, 100) < -90
    assert loss_limit(5000, 20, 10, 0.5) == pytest.approx(0.2)
    assert loss_limit(5000, 20, 10, 0.9) < loss_limit(5000, 20, 10, 0.99)
    with pytest.raises(DataError, match="no limit"):
        loss_limit(10, 6, 6)


def test_enough_images_resolve_the_tolerance() -> None:
    enough = images_to_resolve(5000, 16, 16, 0.2)
    scale = enough / 5000
    assert loss_limit(enough, round(16 * scale), round(16 * scale)) == pytest.approx(0.2, rel=0.06)
