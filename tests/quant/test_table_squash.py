"""The squash by table gives the integers of the one definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caplet.errors import PlanError
from caplet.fixed import FixedFormat, Rounding, squash
from caplet.quant.simulate.fake_quant import LARGEST, table_length, table_squash


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(2, 8),
    frac=st.integers(-3, 12),
    dims=st.sampled_from([1, 3, 4, 8]),
    out_bits=st.integers(2, 10),
    out_frac=st.integers(0, 12),
    rounding=st.sampled_from([Rounding.NEAREST, Rounding.TRUNCATE]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_integers_are_the_same(
    bits: int, frac: int, dims: int, out_bits: int, out_frac: int, rounding: Rounding, seed: int
) -> None:
    fmt, out = FixedFormat(bits, frac, True), FixedFormat(out_bits, out_frac, True)
    count = max(2000, table_length(fmt, dims))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(fmt.min_code, fmt.max_code + 1, (count, dims), generator=generator, dtype=torch.int32)
    codes[0] = fmt.min_code
    codes[1] = 0
    found = table_squash(fmt.decode(codes), fmt, out, rounding)
    if table_length(fmt, dims) > LARGEST:
        assert found is None
        return
    assert found is not None
    assert torch.equal(found, out.decode(squash(codes, fmt, out, rounding)))


def test_few_capsules_are_left_to_the_integers() -> None:
    fmt, out = FixedFormat(6, 4, True), FixedFormat(6, 5, True)
    assert table_squash(torch.zeros(10, 8), fmt, out, Rounding.NEAREST) is None
    with pytest.raises(PlanError, match="frac_bits"):
        table_squash(torch.zeros(10, 8), FixedFormat(6, 31, True), out, Rounding.NEAREST)
