import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import PlanError
from caplet.fixed.packing import pack_bits, packed_size, unpack_bits


def _range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


@given(st.data(), st.integers(1, 16), st.booleans(), st.integers(0, 60))
def test_round_trip_and_size(data: st.DataObject, bits: int, signed: bool, count: int) -> None:
    low, high = _range(bits, signed)
    codes = np.array(data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), dtype=np.int32)
    packed = pack_bits(codes, bits, signed)
    assert packed.shape == (packed_size(count, bits),)
    np.testing.assert_array_equal(unpack_bits(packed, count, bits, signed), codes)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [False, True])
def test_round_trip_across_chunks(bits: int, signed: bool) -> None:
    low, high = _range(bits, signed)
    codes = np.random.default_rng(bits).integers(low, high + 1, size=(1 << 16) + 77)
    packed = pack_bits(codes, bits, signed)
    assert packed.size == packed_size(codes.size, bits)
    np.testing.assert_array_equal(unpack_bits(packed, codes.size, bits, signed), codes)


@pytest.mark.parametrize("bits", range(1, 17))
def test_layout_is_the_documented_bit_stream(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, size=11)
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert pack_bits(codes, bits, False).tobytes() == stream.to_bytes(packed_size(11, bits), "little")


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match=r"span -5\.\.3"):
        pack_bits(np.array([-5, 3]), 3, True)
    with pytest.raises(PlanError, match="bits is 17"):
        pack_bits(np.array([0]), 17, True)


def test_damaged_bytes_are_refused() -> None:
    with pytest.raises(PlanError, match="unused bits"):
        unpack_bits(np.array([0b1000_0000], dtype=np.uint8), 2, 3, True)
    with pytest.raises(PlanError, match="shape"):
        unpack_bits(np.zeros(2, dtype=np.uint8), 2, 3, True)
