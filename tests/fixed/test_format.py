from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from caplet.errors import ModelError, PlanError
from caplet.fixed import AnyFormat, ChannelFormat, FixedFormat, LogFormat, Rounding, format_from_json, stochastic_noise

FIXED = st.builds(FixedFormat, st.integers(1, 16), st.integers(-12, 24), st.booleans())
LOG = st.builds(LogFormat, st.integers(2, 5), st.integers(-12, 12))
REALS = st.floats(-(2.0**20), 2.0**20, width=32)


@given(FIXED, REALS, st.sampled_from([Rounding.NEAREST, Rounding.TRUNCATE]))
def test_encode_rounds_the_exact_value_once(fmt: FixedFormat, x: float, mode: Rounding) -> None:
    scaled = Fraction(x) * Fraction(2) ** fmt.frac_bits
    rounded = floor(scaled + Fraction(1, 2)) if mode is Rounding.NEAREST else floor(scaled)
    expected = min(max(rounded, fmt.min_code), fmt.max_code)
    assert fmt.encode(np.array([x]), mode).tolist() == [expected]
    assert fmt.encode(np.array([x], dtype=np.float32), mode).tolist() == [expected]
    assert fmt.encode(torch.tensor([x]), mode).tolist() == [expected]


@given(FIXED, REALS, st.integers(0, 2**32 - 1))
@example(FixedFormat(1, 0, True), -(2.0**-126), 0)  # one below the next code, but by less than float64 tells from 1
@example(FixedFormat(8, 0, True), 2.0**-32 - 2.0**-56, 2**32 - 1)
@example(FixedFormat(8, 0, True), -(2.0**-32 + 2.0**-55), 1)
def test_stochastic_encode_is_floor_of_value_plus_noise(fmt: FixedFormat, x: float, noise: int) -> None:
    rounded = floor(Fraction(x) * Fraction(2) ** fmt.frac_bits + Fraction(noise, 2**32))
    expected = min(max(rounded, fmt.min_code), fmt.max_code)
    draw = np.array([noise], dtype=np.uint32)
    assert fmt.encode(np.array([x], dtype=np.float32), Rounding.STOCHASTIC, draw).tolist() == [expected]
    assert fmt.encode(torch.tensor([x]), Rounding.STOCHASTIC, torch.tensor([noise])).tolist() == [expected]


@given(st.one_of(FIXED, LOG), st.lists(REALS, max_size=8))
def test_quantize_is_decode_of_encode(fmt: AnyFormat, values: list[float]) -> None:
    for x in (np.array(values, dtype=np.float32), torch.tensor(values, dtype=torch.float32)):
        quantized = fmt.quantize(x)
        assert quantized.dtype == x.dtype
        assert fmt.encode(x).dtype in (np.int32, torch.int32)
        assert quantized.tolist() == fmt.decode(fmt.encode(x)).tolist()


@pytest.mark.parametrize("fmt", [FixedFormat(8, 3, True), FixedFormat(1, 0, True), FixedFormat(5, 20, False)])
def test_every_code_survives_a_round_trip(fmt: FixedFormat) -> None:
    codes = np.arange(fmt.min_code, fmt.max_code + 1, dtype=np.int32)
    assert codes.size == 2**fmt.bits
    np.testing.assert_array_equal(fmt.encode(fmt.decode(codes)), codes)
    np.testing.assert_array_equal(fmt.encode(fmt.decode(torch.from_numpy(codes))).numpy(), codes)
    assert fmt.decode(codes)[[0, -1]].tolist() == [fmt.min_value, fmt.max_value]


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_log_codes_are_signed_powers_of_two(bits: int) -> None:
    fmt = LogFormat(bits, 1)
    codes = np.arange(fmt.min_code, fmt.max_code + 1, dtype=np.int32)
    values = fmt.decode(codes)
    expected = [0.0 if c == 0 else float(np.sign(c)) * 2.0 ** (1 - (abs(c) - 1)) for c in codes.tolist()]
    assert values.tolist() == expected
    np.testing.assert_array_equal(fmt.encode(values), codes)
    np.testing.assert_array_equal(fmt.integers(codes) * 2.0**-fmt.frac_bits, values)
    assert np.abs(fmt.integers(codes)).max() < 2**15


@given(LOG, REALS)
def test_log_encode_is_nearest_in_value(fmt: LogFormat, x: float) -> None:
    values = fmt.decode(np.arange(fmt.min_code, fmt.max_code + 1, dtype=np.int32))
    assert abs(float(fmt.quantize(np.array([x]))[0]) - x) == np.abs(values - x).min()


def test_saturation_and_infinities() -> None:
    fmt = FixedFormat(4, 1, True)
    for x in (np.array([np.inf, -np.inf, 100.0, -100.0]), torch.tensor([torch.inf, -torch.inf, 100.0, -100.0])):
        assert fmt.encode(x).tolist() == [7, -8, 7, -8]
        assert LogFormat(3, 0).encode(x).tolist() == [1, -1, 1, -1]


def test_nearest_has_no_double_rounding_below_one_half() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert FixedFormat(8, 0, True).encode(np.array([below, 0.5, -0.5], dtype=np.float32)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("fmt", [FixedFormat(8, 4, True), LogFormat(4, 0)])
def test_nan_is_refused(fmt: AnyFormat) -> None:
    for x in (np.array([0.0, np.nan]), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ModelError, match="NaN"):
            fmt.encode(x)
        with pytest.raises(ModelError, match="NaN"):
            fmt.quantize(x)


@given(st.one_of(FIXED, LOG))
def test_json_round_trip(fmt: AnyFormat) -> None:
    assert format_from_json(fmt.to_json()) == fmt


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"kind": ["fixed"]},
        {"kind": "float", "bits": 8},
        {"kind": "fixed", "bits": 8, "frac_bits": 1},
        {"kind": "fixed", "bits": 8, "frac_bits": 1, "signed": True, "more": 1},
        {"kind": "fixed", "bits": 17, "frac_bits": 1, "signed": True},
        {"kind": "fixed", "bits": True, "frac_bits": 1, "signed": True},
        {"kind": "fixed", "bits": 8.0, "frac_bits": 1, "signed": True},
        {"kind": "fixed", "bits": 8, "frac_bits": 65, "signed": True},
        {"kind": "fixed", "bits": 8, "frac_bits": 1, "signed": 1},
        {"kind": "log2", "bits": 6, "max_exponent": 0},
        {"kind": "log2", "bits": 1, "max_exponent": 0},
        {"kind": "log2", "bits": 4, "max_exponent": "0"},
    ],
)
def test_bad_json_is_refused(data: object) -> None:
    with pytest.raises(PlanError):
        format_from_json(data)


def test_log_refuses_other_roundings_and_stochastic_needs_noise() -> None:
    with pytest.raises(PlanError, match="use nearest"):
        LogFormat(4, 0).encode(np.zeros(1), Rounding.TRUNCATE)
    with pytest.raises(PlanError, match="no noise"):
        FixedFormat(4, 0, True).encode(np.zeros(1), Rounding.STOCHASTIC)


def test_batched_noise_is_shared_by_all_images() -> None:
    fmt = FixedFormat(8, 4, True)
    noise = stochastic_noise(3, "conv1.activation", 6).reshape(2, 3)
    image = np.random.default_rng(0).normal(size=(2, 3))
    codes = fmt.encode(np.stack([image, image]), Rounding.STOCHASTIC, noise)
    np.testing.assert_array_equal(codes[0], codes[1])


@given(
    st.builds(
        ChannelFormat,
        st.integers(1, 16),
        st.integers(-12, 24),
        st.booleans(),
        st.lists(st.integers(0, 15), min_size=3, max_size=3).map(tuple),
        st.integers(0, 1),
    ),
    st.lists(REALS, min_size=9, max_size=9),
    st.sampled_from([Rounding.NEAREST, Rounding.TRUNCATE]),
)
def test_each_channel_is_the_fixed_format_of_its_own_exponent(
    fmt: ChannelFormat, values: list[float], mode: Rounding
) -> None:
    for x in (np.array(values).reshape(3, 3), torch.tensor(values).view(3, 3)):
        codes, rounded = fmt.encode(x, mode), fmt.quantize(x, mode)
        assert rounded.tolist() == fmt.decode(codes).tolist()
        for channel, shift in enumerate(fmt.shifts):
            alone = FixedFormat(fmt.bits, fmt.frac_bits + shift, fmt.signed)
            part = x[channel] if fmt.axis == 0 else x[:, channel]
            mine = codes[channel] if fmt.axis == 0 else codes[:, channel]
            assert mine.tolist() == alone.encode(part, mode).tolist()
    assert format_from_json(fmt.to_json()) == fmt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shifts": []}, "one per output channel"),
        ({"shifts": [16]}, "from 0 to 15"),
        ({"shifts": [-1]}, "from 0 to 15"),
        ({"shifts": [True]}, "from 0 to 15"),
        ({"shifts": 3}, "list of integers"),
        ({"axis": -1}, "axis"),
        ({"bits": 17}, "bits"),
        ({"more": 1}, "exactly the fields"),
    ],
)
def test_channel_formats_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        format_from_json({**ChannelFormat(4, 2, True, (0, 3), 0).to_json(), **change})


def test_a_channel_format_refuses_tensors_with_other_channels() -> None:
    fmt = ChannelFormat(4, 2, True, (0, 3), 1)
    for shape in ((2,), (2, 3)):
        with pytest.raises(PlanError, match="2 channels on axis 1"):
            fmt.encode(np.zeros(shape))
