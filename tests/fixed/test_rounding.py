from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import PlanError
from caplet.fixed import Rounding, carried_shift, rounding_shift, stochastic_noise
from caplet.fixed.rounding import fnv1a32, noise_keys

ACC = st.integers(-(2**40), 2**40)


@given(ACC, st.integers(-8, 45), st.sampled_from([Rounding.NEAREST, Rounding.TRUNCATE]))
def test_shift_is_the_rounded_quotient(acc: int, shift: int, mode: Rounding) -> None:
    exact = Fraction(acc) / Fraction(2) ** shift
    expected = floor(exact + Fraction(1, 2)) if mode is Rounding.NEAREST else floor(exact)
    array = np.array([acc], dtype=np.int64)
    assert rounding_shift(array, shift, mode).tolist() == [expected]
    assert rounding_shift(array, np.array([shift]), mode).tolist() == [expected]
    assert rounding_shift(torch.tensor([acc]), shift, mode).tolist() == [expected]
    assert rounding_shift(torch.tensor([acc]), torch.tensor([shift]), mode).tolist() == [expected]


@given(ACC, st.integers(-8, 45), st.integers(0, 2**32 - 1))
def test_stochastic_shift_agrees_with_noise_on_reals(acc: int, shift: int, noise: int) -> None:
    expected = floor(Fraction(acc) / Fraction(2) ** shift + Fraction(noise, 2**32))
    array = np.array([acc], dtype=np.int64)
    draw = np.array([noise], dtype=np.uint32)
    assert rounding_shift(array, shift, Rounding.STOCHASTIC, draw).tolist() == [expected]
    assert rounding_shift(array, np.array([shift]), Rounding.STOCHASTIC, draw).tolist() == [expected]
    torch_draw = torch.tensor([noise], dtype=torch.int64)
    assert rounding_shift(torch.tensor([acc]), shift, Rounding.STOCHASTIC, torch_draw).tolist() == [expected]


def test_stochastic_without_noise_is_refused() -> None:
    with pytest.raises(PlanError, match="no noise"):
        rounding_shift(np.array([1]), 1, Rounding.STOCHASTIC)


def _mix(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B % 2**32
    value ^= value >> 13
    value = value * 0xC2B2AE35 % 2**32
    return value ^ value >> 16


@given(st.integers(0, 2**32 - 1), st.text(max_size=20), st.integers(0, 2**33), st.integers(0, 5))
def test_noise_is_the_documented_hash(seed: int, key: str, first: int, count: int) -> None:
    a, b = noise_keys(seed, key)
    assert (a, b) == (_mix(seed ^ fnv1a32(key)), _mix((seed + 0x9E3779B9 * (fnv1a32(key) | 1)) % 2**32))
    expected = [_mix(_mix((i + a) % 2**32) ^ b) for i in range(first, first + count)]
    assert stochastic_noise(seed, key, count, first).tolist() == expected


def test_fnv1a32_known_answers() -> None:
    assert (fnv1a32(""), fnv1a32("foobar")) == (0x811C9DC5, 0xBF9CF968)


def test_noise_can_be_drawn_in_pieces_and_differs_between_keys_and_seeds() -> None:
    whole = stochastic_noise(7, "digit.votes", 1000)
    np.testing.assert_array_equal(stochastic_noise(7, "digit.votes", 600, first=400), whole[400:])
    for other in (stochastic_noise(8, "digit.votes", 1000), stochastic_noise(7, "digit.logits", 1000)):
        assert np.count_nonzero(other == whole) < 3


def test_noise_is_uniform_and_uncorrelated() -> None:
    count = 1 << 18
    draw = stochastic_noise(1, "block1.l1.votes", count) / 2.0**32
    # Five standard errors of the mean, the second moment and the lag-1 correlation of uniform draws.
    assert abs(draw.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / count**0.5
    assert abs((draw**2).mean() - 1 / 3) < 5 * (4 / 45) ** 0.5 / count**0.5
    assert abs(np.corrcoef(draw[1:], draw[:-1])[0, 1]) < 5 / count**0.5
    buckets = np.histogram(draw, bins=256, range=(0, 1))[0]
    chi2 = ((buckets - count / 256) ** 2 / (count / 256)).sum()
    assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5


def test_bad_seed_is_refused() -> None:
    with pytest.raises(PlanError, match="32-bit seed"):
        stochastic_noise(2**32, "x", 1)


@given(st.lists(ACC, min_size=1, max_size=30), st.integers(-8, 45))
def test_carried_sums_stay_within_half_a_code_and_remainders_go_on(acc: list[int], shift: int) -> None:
    left, expected = Fraction(0), []
    for value in acc:
        left += Fraction(value) / Fraction(2) ** shift
        expected.append(floor(left + Fraction(1, 2)))
        left -= expected[-1]
        assert -Fraction(1, 2) <= left < Fraction(1, 2)
    array = np.array(acc, dtype=np.int64)
    assert carried_shift(array, shift, 0).tolist() == expected
    both = carried_shift(np.stack([array, -array]), np.array(shift), 1)
    assert both[0].tolist() == expected
    assert carried_shift(torch.from_numpy(array)[:, None], shift, 0)[:, 0].tolist() == expected
