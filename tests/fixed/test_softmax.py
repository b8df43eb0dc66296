import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import PlanError
from caplet.fixed import FixedFormat, Rounding, softmax, stochastic_noise
from caplet.fixed.softmax import EXP2_TABLE, negative_exponential, sum_bits, uniform_coupling

COUPLING8 = FixedFormat(8, 8, False)


def _exact(logits: np.ndarray, fmt: FixedFormat, axis: int = -1) -> np.ndarray:
    real = fmt.decode(logits)
    e = np.exp(real - real.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _bound(outputs: int) -> float:
    """The bound of the module's docstring on the error in value, before the last rounding."""
    return 2.0**-15 + outputs * 2.0 ** -sum_bits(outputs)


def _assert_within_bound(codes: np.ndarray, logits: np.ndarray, fmt: FixedFormat, out: FixedFormat) -> None:
    exact = np.clip(_exact(logits, fmt), out.min_value, out.max_value)
    assert np.abs(out.decode(codes) - exact).max() <= 0.5 * out.step + _bound(logits.shape[-1])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("frac_bits", range(-6, 21))
def test_every_8_bit_format_over_all_triples_of_distances(frac_bits: int, signed: bool) -> None:
    fmt = FixedFormat(8, frac_bits, signed)
    distance = np.arange(256)
    grid = np.stack(np.broadcast_arrays(0, distance[:, None], distance[None, :]), axis=-1).reshape(-1, 3)
    logits = (fmt.max_code - grid).astype(np.int32)
    codes = softmax(logits, fmt, COUPLING8)
    assert np.abs(codes - COUPLING8.encode(_exact(logits, fmt))).max() <= 1
    _assert_within_bound(codes, logits, fmt, COUPLING8)


@pytest.mark.parametrize("outputs", [1, 2, 5, 10, 100, 512, 4096])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("frac_bits", [-8, -1, 0, 3, 5, 7, 12])
def test_within_one_code_of_the_rounded_softmax(outputs: int, bits: int, frac_bits: int) -> None:
    fmt = FixedFormat(bits, frac_bits, True)
    rng = np.random.default_rng(outputs)
    logits = rng.integers(fmt.min_code, fmt.max_code + 1, size=(40, outputs)).astype(np.int32)
    # One winner over equal losers: the worst case for the rounding of many small exponentials.
    winner = np.full((1 << bits, outputs), fmt.max_code, dtype=np.int32)
    winner[:, 1:] -= np.arange(1 << bits, dtype=np.int32)[:, None]
    logits = np.concatenate([logits, winner])
    for out_bits in (1, 3, 8):
        for out_frac in (out_bits, 8):
            out = FixedFormat(out_bits, out_frac, False)
            codes = softmax(logits, fmt, out)
            assert np.abs(codes - out.encode(_exact(logits, fmt))).max() <= 1
            _assert_within_bound(codes, logits, fmt, out)


@given(
    st.data(), st.builds(FixedFormat, st.integers(1, 16), st.integers(-20, 40), st.booleans()), st.integers(1, 16),
    st.integers(0, 16), st.integers(1, 12),
)  # fmt: skip
def test_error_bound_up_to_16_bits(
    data: st.DataObject, fmt: FixedFormat, out_bits: int, out_frac: int, outputs: int
) -> None:
    code = st.integers(fmt.min_code, fmt.max_code)
    logits = np.array([data.draw(st.lists(code, min_size=outputs, max_size=outputs))], dtype=np.int32)
    out = FixedFormat(out_bits, out_frac, False)
    codes = softmax(logits, fmt, out)
    _assert_within_bound(codes, logits, fmt, out)
    np.testing.assert_array_equal(softmax(torch.from_numpy(logits), fmt, out).numpy(), codes)


@pytest.mark.parametrize("frac_bits", range(17))
def test_equal_logits_give_exactly_the_rounded_share(frac_bits: int) -> None:
    out = FixedFormat(16, frac_bits, False)
    fmt = FixedFormat(8, 3, True)
    for outputs in [*range(1, 200), 288, 511, 512, 513, 1000, 1152, 2048, 4095, 4096]:
        exact = min((2 * 2**frac_bits + outputs) // (2 * outputs), out.max_code)
        for code in (fmt.min_code, 0, fmt.max_code):
            logits = np.full(outputs, code, dtype=np.int32)
            assert set(softmax(logits, fmt, out).tolist()) == {exact}
        assert uniform_coupling(outputs, out) == exact


def test_saturated_winner_takes_all() -> None:
    fmt = FixedFormat(8, 2, True)
    logits = np.full((1, 10), -128, dtype=np.int32)
    logits[0, 4] = 127
    assert softmax(logits, fmt, COUPLING8).tolist() == [[0] * 4 + [255] + [0] * 5]
    assert softmax(logits, fmt, FixedFormat(9, 8, False)).tolist() == [[0] * 4 + [256] + [0] * 5]


@pytest.mark.parametrize("rounding", list(Rounding))
def test_numpy_and_torch_agree_in_every_layout(rounding: Rounding) -> None:
    fmt = FixedFormat(8, 4, True)
    logits = np.random.default_rng(1).integers(-128, 128, size=(300, 10, 117)).astype(np.int32)
    noise = stochastic_noise(5, "digit.coupling", 1170).reshape(10, 117)
    whole = softmax(logits, fmt, COUPLING8, axis=1, rounding=rounding, noise=noise)
    per_image = [softmax(image[None], fmt, COUPLING8, axis=1, rounding=rounding, noise=noise)[0] for image in logits]
    np.testing.assert_array_equal(whole, np.stack(per_image))
    swapped = softmax(logits.swapaxes(1, 2).copy(), fmt, COUPLING8, rounding=rounding, noise=noise.T)
    np.testing.assert_array_equal(whole, swapped.swapaxes(1, 2))
    wide = torch.from_numpy(noise.astype(np.int64))
    other = softmax(torch.from_numpy(logits), fmt, COUPLING8, axis=1, rounding=rounding, noise=wide)
    np.testing.assert_array_equal(whole, other.numpy())


@pytest.mark.parametrize("frac_bits", [-64, -8, 0, 4, 5, 6, 15, 40, 64])
def test_exponential_for_every_distance(frac_bits: int) -> None:
    distance = np.arange(1 << 16)
    exact = np.exp(-distance * 2.0**-frac_bits)
    for scale in (24, 19):
        found = negative_exponential(distance, frac_bits, scale)
        assert found[0] == 1 << scale
        assert bool(np.all(np.diff(found) <= 0))
        assert np.abs(found * 2.0**-scale - exact).max() <= 2.0**-16 + 2.0 ** -(scale + 1)


def test_intermediate_values_fit_32_bits() -> None:
    assert 65535 * 47274 < 2**32
    assert int((EXP2_TABLE[:-1] - EXP2_TABLE[1:]).max()) * 8191 + 4096 < 2**32
    assert all(outputs << sum_bits(outputs) <= 2**31 for outputs in range(1, 4097))
    assert EXP2_TABLE[[0, 64, 128]].tolist() == [1 << 24, 11863283, 1 << 23]


def test_bad_formats_and_axes_are_refused() -> None:
    logits = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(PlanError, match="unsigned"):
        softmax(logits, FixedFormat(8, 0, True), FixedFormat(8, 7, True))
    with pytest.raises(PlanError, match="0 to 16"):
        softmax(logits, FixedFormat(8, 0, True), FixedFormat(8, 17, False))
    with pytest.raises(PlanError, match="first of several"):
        softmax(logits, FixedFormat(8, 0, True), COUPLING8, axis=0)
    with pytest.raises(PlanError, match="4097 output capsules"):
        softmax(np.zeros(4097, dtype=np.int32), FixedFormat(8, 0, True), COUPLING8)
