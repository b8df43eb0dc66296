from math import isqrt as exact_isqrt

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.fixed.integer import bit_length, isqrt, squared_length

N = st.one_of(
    st.integers(0, 2**62 - 1),
    st.integers(0, 2**31 - 2).map(lambda root: (root + 1) ** 2 - 1),
    st.integers(0, 2**31 - 1).map(lambda root: root**2),
    st.integers(0, 61).map(lambda e: 2**e),
    st.integers(1, 62).map(lambda e: 2**e - 1),
)


@given(st.lists(N, min_size=1, max_size=50))
def test_isqrt_and_bit_length_are_exact(values: list[int]) -> None:
    for n in (np.array(values, dtype=np.int64), torch.tensor(values, dtype=torch.int64)):
        assert isqrt(n).tolist() == [exact_isqrt(value) for value in values]
        assert bit_length(n).tolist() == [value.bit_length() for value in values]


def test_isqrt_of_every_small_integer() -> None:
    n = np.arange(1 << 20)
    root = isqrt(n)
    assert bool(np.all(root * root <= n))
    assert bool(np.all((root + 1) ** 2 > n))


def test_squared_length_of_the_largest_capsule_does_not_overflow() -> None:
    codes = np.full((2, 64), 65535, dtype=np.int32)
    assert squared_length(codes).tolist() == [64 * 65535**2] * 2
    assert squared_length(torch.from_numpy(codes)).tolist() == [64 * 65535**2] * 2
