import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import PlanError
from caplet.fixed import FixedFormat, Rounding, squash, stochastic_noise
from caplet.fixed.squash import squash_factor

OUT8 = FixedFormat(8, 7, True)


def _exact(codes: np.ndarray, fmt: FixedFormat) -> np.ndarray:
    s = fmt.decode(codes)
    length = np.sqrt((s * s).sum(-1, keepdims=True))
    return s * length / (1 + length * length)


@pytest.mark.parametrize("frac_bits", range(-20, 31))
def test_factor_of_every_squared_length_of_8_bit_capsules(frac_bits: int) -> None:
    """The output is code * factor, rounded once: this covers every 8-bit capsule of up to 32 dimensions."""
    q = np.arange(1, 32 * 128 * 128 + 1)
    mult, shift = squash_factor(q, frac_bits, 7)
    assert int(mult.min()) > 2**29
    assert int(mult.max()) < 2**31
    assert int(shift.min()) >= 5
    length = np.sqrt(q) * 2.0**-frac_bits
    exact = 2.0 ** (7 - frac_bits) * length / (1 + length * length)
    error = mult * 2.0**-shift / exact - 1
    unclipped = shift < 62
    assert float(error[unclipped].max(initial=0)) < 2.0**-30 + 2.0**-50
    assert float(error[unclipped].min(initial=0)) > -(2.0**-29 + 2.0**-30 + 2.0**-50)
    # A clipped shift still rounds every code to zero.
    assert bool(np.all(exact[~unclipped] * 128 < 0.5))


@pytest.mark.parametrize("frac_bits", range(-10, 20))
def test_every_8_bit_capsule_of_two_dimensions(frac_bits: int) -> None:
    fmt = FixedFormat(8, frac_bits, True)
    codes = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)), axis=-1).astype(np.int32)
    error = squash(codes, fmt, OUT8) - OUT8.encode(_exact(codes, fmt))
    assert np.abs(error).max() <= 1
    assert np.count_nonzero(error) <= 0.001 * error.size


@pytest.mark.parametrize("dims", [4, 6, 8, 16, 32])
def test_within_one_code_at_8_bits_for_random_capsules(dims: int) -> None:
    rng = np.random.default_rng(dims)
    for frac_bits in range(-8, 16):
        for fmt in (FixedFormat(8, frac_bits, True), FixedFormat(8, frac_bits, False), FixedFormat(4, frac_bits, True)):
            spread = rng.integers(0, fmt.max_code + 1, size=(400, 1))
            codes = np.clip(rng.integers(-spread, spread + 1, size=(400, dims)), fmt.min_code, None).astype(np.int32)
            assert np.abs(squash(codes, fmt, OUT8) - OUT8.encode(_exact(codes, fmt))).max() <= 1


@pytest.mark.parametrize("dims", range(4, 33))
def test_zero_and_saturated_capsules_are_exact(dims: int) -> None:
    for bits in range(2, 9):
        for frac_bits in range(-12, 20):
            fmt = FixedFormat(bits, frac_bits, True)
            codes = np.array([[fmt.max_code] * dims, [fmt.min_code] * dims, [0] * dims], dtype=np.int32)
            mixed = np.where(np.arange(dims) % 2, fmt.max_code, fmt.min_code)[None].astype(np.int32)
            codes = np.concatenate([codes, mixed])
            np.testing.assert_array_equal(squash(codes, fmt, OUT8), OUT8.encode(_exact(codes, fmt)))


@given(
    st.data(), st.builds(FixedFormat, st.integers(1, 16), st.integers(-10, 30), st.booleans()),
    st.builds(FixedFormat, st.integers(1, 16), st.integers(0, 24), st.booleans()), st.integers(1, 64),
)  # fmt: skip
def test_error_bound_up_to_16_bits(data: st.DataObject, fmt: FixedFormat, out: FixedFormat, dims: int) -> None:
    code = st.integers(fmt.min_code, fmt.max_code)
    codes = np.array([data.draw(st.lists(code, min_size=dims, max_size=dims))], dtype=np.int32)
    exact = np.clip(_exact(codes, fmt), out.min_value, out.max_value)
    found = squash(codes, fmt, out)
    assert np.abs(out.decode(found) - exact).max() <= out.step * (0.5 + 2.0**-13)
    np.testing.assert_array_equal(squash(torch.from_numpy(codes), fmt, out).numpy(), found)


@pytest.mark.parametrize("rounding", list(Rounding))
def test_numpy_torch_and_single_images_agree(rounding: Rounding) -> None:
    fmt = FixedFormat(8, 4, True)
    codes = np.random.default_rng(3).integers(-128, 128, size=(50, 1152, 8)).astype(np.int32)
    noise = stochastic_noise(5, "caps.activation", 1152 * 8).reshape(1152, 8)
    whole = squash(codes, fmt, OUT8, rounding, noise)
    single = np.stack([squash(image[None], fmt, OUT8, rounding, noise)[0] for image in codes])
    np.testing.assert_array_equal(whole, single)
    wide = torch.from_numpy(noise.astype(np.int64))
    np.testing.assert_array_equal(whole, squash(torch.from_numpy(codes), fmt, OUT8, rounding, wide).numpy())


def test_out_of_range_formats_are_refused() -> None:
    codes = np.zeros((1, 8), dtype=np.int32)
    with pytest.raises(PlanError, match="frac_bits <= 30"):
        squash(codes, FixedFormat(8, 31, True), OUT8)
    with pytest.raises(PlanError, match="below 2"):
        squash(codes, FixedFormat(16, -20, True), OUT8)
    with pytest.raises(PlanError, match="0 to 24"):
        squash(codes, FixedFormat(8, 4, True), FixedFormat(8, 25, True))
    with pytest.raises(PlanError, match="65 dimensions"):
        squash(np.zeros((1, 65), dtype=np.int32), FixedFormat(8, 4, True), OUT8)
