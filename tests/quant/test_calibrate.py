"""Histograms count every value, and the chosen exponents make the least error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caplet.errors import ArtefactError, ConfigError, ModelError, PlanError
from caplet.fixed import FixedFormat, LogFormat, Rounding, stochastic_noise
from caplet.jobs.quantize.job import PAPER_ROUNDINGS
from caplet.nn.points import Role, flash, ram
from caplet.quant.choices import Exponents
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import Calibration, calibrate
from caplet.quant.plan.formats import (
    HALF,
    FormatRule,
    Histogram,
    best_fixed_format,
    best_log_format,
    bits_of,
    choose_format,
    fixed_error,
)

RANDOM = {
    "normal": lambda g: torch.randn(5_000, generator=g) * 0.3,
    "heavy": lambda g: torch.randn(5_000, generator=g) ** 5,
    "uniform": lambda g: torch.rand(5_000, generator=g) * 3 - 1,
    "relu": lambda g: torch.relu(torch.randn(5_000, generator=g) * 7),
    "tiny": lambda g: torch.randn(5_000, generator=g) * 1e-5,
}


def values(name: str, seed: int = 0) -> torch.Tensor:
    return RANDOM[name](torch.Generator().manual_seed(seed))


def counted(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("name", RANDOM)
def test_no_value_is_lost_and_batches_do_not_matter(name: str) -> None:
    x = values(name)
    whole, parts = counted(x), counted(*x.sort().values.split(777))
    assert whole.total == parts.total == len(x)
    assert whole.zeros == parts.zeros == int((x == 0).sum())
    assert (whole.exponent, whole.low, whole.high) == (parts.exponent, parts.low, parts.high)
    assert (whole.low, whole.high) == (min(0.0, float(x.min())), float(x.max()))
    index = np.floor(x.numpy() / 2.0**whole.exponent).astype(int) + HALF
    exact = np.bincount(np.clip(index[x.numpy() != 0], 0, 2 * HALF - 1), minlength=2 * HALF)
    for counts in (whole.counts, parts.counts):
        difference = counts - exact
        difference[HALF - 1 : HALF + 1] = difference[HALF - 1 : HALF + 1].sum()  # either side of zero
        assert np.abs(difference).sum() <= 0.002 * len(x)  # a value may be counted on either side of a bin's edge


def test_zeros_only_and_bad_values() -> None:
    histogram = counted(torch.zeros(5), torch.zeros(0))
    assert (histogram.total, histogram.exponent, histogram.largest) == (5, None, 0.0)
    assert best_fixed_format(histogram, 8, True, Rounding.NEAREST) == FixedFormat(8, 7, True)
    assert best_log_format(histogram, 4) == LogFormat(4, 0)
    with pytest.raises(ModelError, match="NaN"):
        histogram.add(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ModelError, match="infinite"):
        histogram.add(torch.tensor([float("inf")]))


@pytest.mark.parametrize("rounding", PAPER_ROUNDINGS)
@pytest.mark.parametrize("bits", [1, 2, 3, 6, 12, 16])
@pytest.mark.parametrize("name", RANDOM)
def test_the_chosen_exponent_minimises_the_squared_error(name: str, bits: int, rounding: Rounding) -> None:
    x = values(name).double().numpy()
    signed = name != "relu"
    noise = stochastic_noise(1, "x", len(x))

    def error(frac_bits: int) -> float:
        return float(((x - FixedFormat(bits, frac_bits, signed).quantize(x, rounding, noise)) ** 2).sum())

    chosen = best_fixed_format(counted(values(name)), bits, signed, rounding)
    least = min(error(frac_bits) for frac_bits in range(-12, 31))
    assert error(chosen.frac_bits) <= 1.02 * least


@pytest.mark.parametrize("rounding", PAPER_ROUNDINGS)
@pytest.mark.parametrize("frac_bits", [2, 6, 9, 11, 12, 14])
def test_the_expected_error_is_the_real_one(frac_bits: int, rounding: Rounding) -> None:
    x = values("uniform").double().numpy()
    fmt = FixedFormat(14, frac_bits, True)
    real = ((x - fmt.quantize(x, rounding, stochastic_noise(1, "x", len(x)))) ** 2).sum()
    assert fixed_error(counted(values("uniform")), fmt, rounding) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["normal", "heavy", "uniform"])
def test_the_chosen_powers_of_two_minimise_the_squared_error(name: str, bits: int) -> None:
    x = values(name).double().numpy()
    errors = {e: float(((x - LogFormat(bits, e).quantize(x)) ** 2).sum()) for e in range(-12, 13)}
    chosen = best_log_format(counted(values(name)), bits)
    assert errors[chosen.max_exponent] <= 1.02 * min(errors.values())


def test_bounded_points_follow_their_bound(case: Any) -> None:
    for key, spec in case.model.points().items():
        for bits in (2, 5, 8, 16):
            fmt = case.calibration.format(key, bits)
            expected = {(0.0, 1.0): bits, (-1.0, 1.0): bits - 1, (-2.0, 2.0): bits - 2}
            if spec.bound is not None:
                assert fmt == FixedFormat(bits, expected[spec.bound], spec.signed)


def test_paper_formats_have_one_integer_bit(case: Any) -> None:
    rule = FormatRule(Exponents.PAPER)
    for key, spec in case.model.points().items():
        assert case.calibration.format(key, 6, rule) == FixedFormat(6, 5, spec.signed)


def test_widths_that_a_point_cannot_have() -> None:
    votes = ram("votes", Role.VOTES, ("out",), (3,), signed=True)
    assert bits_of(votes, 1, FormatRule()) == 2
    bias = flash("bias", Role.BIAS, ("out",), (3,))
    assert (bits_of(bias, 3, FormatRule()), bits_of(bias, 11, FormatRule())) == (8, 11)
    assert bits_of(bias, 3, FormatRule(Exponents.PAPER)) == 3
    assert bits_of(flash("weight", Role.WEIGHT, ("out",), (3,)), 3, FormatRule()) == 3
    with pytest.raises(PlanError, match="17 bits"):
        choose_format(votes, Histogram(), 17, FormatRule(), Rounding.NEAREST)


def test_log2_rule_is_for_weights_only(digits: Any) -> None:
    rule = FormatRule(log2_weights=True)
    for key, spec in digits.model.points().items():
        fmt = digits.calibration.format(key, 9, rule)
        assert isinstance(fmt, LogFormat) == (spec.role is Role.WEIGHT)
        assert fmt.bits == (5 if spec.role is Role.WEIGHT else 9)


def test_calibration_sees_every_point_and_survives_a_file(case: Any, tmp_path: Path) -> None:
    calibration = case.calibration
    assert list(calibration.histograms) == list(case.model.points())
    for key, spec in case.model.points().items():
        assert calibration.histograms[key].total % spec.elements == 0
    calibration.save(tmp_path / "c.npz")
    loaded = Calibration.load(tmp_path / "c.npz", case.model)
    assert loaded.images == len(case.images)
    for key in case.model.points():
        assert loaded.format(key, 5) == calibration.format(key, 5)
        assert loaded.histograms[key].low == calibration.histograms[key].low


def test_calibration_errors(digits: Any, deep: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        calibrate(digits.model, digits.images[:0])
    with pytest.raises(ModelError, match="1x8x8"):
        calibrate(digits.model, deep.images)
    with pytest.raises(PlanError, match=r"unknown point 'digit\.vote'"):
        digits.calibration.format("digit.vote", 8)
    digits.calibration.save(tmp_path / "c.npz")
    with pytest.raises(PlanError, match="other points"):
        Calibration.load(tmp_path / "c.npz", deep.model)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:500])
    with pytest.raises(ArtefactError, match=r"not a sound \.npz file"):
        Calibration.load(tmp_path / "bad.npz", digits.model)
    with pytest.raises(ArtefactError, match="no such file"):
        Calibration.load(tmp_path / "none.npz", digits.model)


def test_progress_counts_images(digits: Any) -> None:
    seen: list[tuple[int, int]] = []
    calibrate(digits.model, digits.images[:25], batch_size=10, progress=lambda *done: seen.append(done))
    assert seen == [(10, 25), (20, 25), (25, 25)]


def test_tuned_formats_disturb_the_output_no_more_than_calibrated_ones(digits: Any) -> None:
    tuner = Tuner(digits.model, digits.calibration, digits.images[:32])
    for key, spec in digits.model.points().items():
        start, tuned = digits.calibration.format(key, 5), tuner.format(key, 5)
        assert tuned.bits == start.bits
        assert tuner.perturber.noise({key: tuned}) <= tuner.perturber.noise({key: start})
        if spec.bound is not None:
            assert tuned == start
    assert tuner.format("digit.votes", 16) == digits.calibration.format("digit.votes", 16)
