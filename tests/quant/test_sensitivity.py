"""The error analysis: effects of single points, draws, spreads, and resuming."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import ArtefactError, ConfigError
from caplet.fixed import FixedFormat
from caplet.models.staged import StagedModel
from caplet.nn.functional import lengths
from caplet.nn.points import Handler, Role
from caplet.quant.choices import SensitivitySettings
from caplet.quant.measure.effects import Effect, Perturber, decibels
from caplet.quant.measure.sensitivity import (
    SensitivityRow,
    draw_indices,
    measure_sensitivity,
    over_draws,
    summarise,
)
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import calibrate


def mean_error(size: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A simple loss."""
    return (1 - size.gather(1, labels[:, None])).mean()


@pytest.fixture(scope="module")
def perturber(digits: Any) -> Perturber:
    return Perturber(digits.model, digits.images[:100], digits.labels[:100], loss=mean_error, batch_size=32)


def test_rounding_nothing_changes_nothing(perturber: Perturber) -> None:
    before = perturber.spent
    effect = perturber.effect({})
    assert perturber.spent == before
    assert effect == Effect(100)
    figures = effect.figures()
    assert (figures["sqnr"], figures["output_sqnr"], figures["saturation"]) == (math.inf, math.inf, 0.0)


def test_every_point_is_measured(case: Any) -> None:
    perturber = Perturber(case.model, case.images[:20], case.labels[:20], batch_size=8)
    for key, spec in case.model.points().items():
        effect = perturber.effect({key: case.calibration.format(key, 2)})
        assert effect.n == 20
        assert effect.count >= spec.elements
        exact = effect.signal == 0 or spec.role is Role.COUPLING  # a parameter of zeros; a coupling of one half
        assert effect.noise > 0 or exact, key
    assert all(layer.handler is None for layer in case.model.layers())


def test_wider_is_better(digits: Any, perturber: Perturber) -> None:
    for key in digits.model.points():
        ratios = [
            perturber.effect({key: digits.calibration.format(key, width)}).figures()["sqnr"] for width in (4, 8, 12)
        ]
        assert ratios == sorted(ratios), key


def test_the_figures_are_those_of_the_definition(digits: Any, perturber: Perturber) -> None:
    key, fmt = "primary.activation", FixedFormat(4, 3, True)
    captured: list[torch.Tensor] = []

    class Round(Handler):
        def tap(self, at: str, spec: Any, value: torch.Tensor, iteration: int) -> torch.Tensor:
            if at != key:
                return value
            captured.append(value)
            return fmt.quantize(value)

    images, labels = digits.images[:100].float() / 255, digits.labels[:100]
    with torch.inference_mode():
        reference = digits.model(images)
        with digits.model.handle(Round()):
            changed = digits.model(images)
    effect = perturber.effect({key: fmt})
    value = captured[0].double()
    assert effect.signal == pytest.approx(float((value**2).sum()), rel=1e-5)
    assert effect.noise == pytest.approx(float(((fmt.quantize(value) - value) ** 2).sum()), rel=1e-5)
    assert effect.saturated == int(((value > 7.5 / 8) | (value < -8.5 / 8)).sum())
    assert effect.output_noise == pytest.approx(float(((changed - reference) ** 2).sum()), rel=1e-3)
    loss = mean_error(lengths(changed), labels) - mean_error(lengths(reference), labels)
    assert effect.figures()["loss_change"] == pytest.approx(float(loss), rel=1e-2, abs=1e-7)
    before, after = (lengths(c).argmax(1) == labels for c in (reference, changed))
    assert (effect.n10, effect.n01) == (int((before & ~after).sum()), int((~before & after).sum()))
    tuner = Tuner(digits.model, digits.calibration, digits.images[:100])
    assert effect.length_noise / 1000 == pytest.approx(tuner.perturber.noise({key: fmt}), rel=1e-3)


def test_only_later_stages_are_computed(digits: Any) -> None:
    perturber = Perturber(digits.model, digits.images[:50], digits.labels[:50])
    assert perturber.spent == 0
    perturber.effect({"digit.logits": FixedFormat(4, 2, True)})
    late = perturber.spent - 50
    assert late == pytest.approx(50 * StagedModel(digits.model).tail_cost[3])
    perturber.effect({"conv1.weight": FixedFormat(4, 3, True)})
    assert 0 < late < 50
    assert perturber.spent - 50 - late == pytest.approx(50)


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=5))
def test_effects_of_disjoint_images_add_up(parts: list[tuple[int, float, int]]) -> None:
    effects = [Effect(n, x, x / 2, k, 100, x, x, x, x, k, 1) for n, x, k in parts]
    total = sum(effects, Effect())
    assert total.n == sum(n for n, _, _ in parts)
    assert total.n10 == sum(k for _, _, k in parts)
    assert total.figures()["loss_change"] * total.n == pytest.approx(sum(x for _, x, _ in parts))
    assert Effect.from_json(json.loads(json.dumps(total.to_json()))) == total


def test_decibels() -> None:
    assert decibels(1000, 1) == pytest.approx(30)
    assert decibels(0, 1) == -math.inf
    assert over_draws([math.inf, 1.0]) == {"mean": None, "low": 1.0, "high": None}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(0, 3))
def test_draws_are_disjoint(n: int, draws: int, images: int, seed: int) -> None:
    settings = SensitivitySettings(draws=draws, images=images, seed=seed)
    if draws * images > n:
        with pytest.raises(ConfigError, match="calibration images"):
            draw_indices(n, settings)
        return
    found = draw_indices(n, settings)
    together = torch.cat(found).tolist()
    assert [len(draw) for draw in found] == [images] * draws
    assert len(set(together)) == draws * images
    assert set(together) <= set(range(n))


def test_an_analysis_resumes_and_summarises(digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    settings = SensitivitySettings(widths=(1, 2, 6), draws=2, images=30)
    chosen = digits.images[:80], digits.labels[:80]
    rows = measure_sensitivity(digits.model, *chosen, settings, loss=mean_error, log_path=path)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == len(rows) + 1
    signed = [row for row in rows if row.key == "digit.votes" and row.draw == 0]
    assert [row.bits for row in signed] == [6, 2]  # a signed computed tensor has at least 2 bits
    path.write_text("".join(lines[:40]) + lines[40][:20])  # killed in the middle of a line
    seen: list[tuple[int, int]] = []
    again = measure_sensitivity(
        digits.model, *chosen, settings, loss=mean_error, log_path=path, progress=lambda *d: seen.append(d)
    )
    assert again == rows
    assert path.read_text().splitlines(keepends=True) == lines
    assert seen[-1] == (len(rows), len(rows))
    summaries = summarise(rows)
    assert len(summaries) == len(rows) / 2
    for summary in summaries:
        assert summary["n"] == 60
        assert summary["sqnr"]["low"] <= summary["sqnr"]["mean"] <= summary["sqnr"]["high"]
        json.dumps(summary, allow_nan=False)
    draw = draw_indices(80, settings)[1]
    row = next(row for row in rows if row.draw == 1 and row.key == "conv1.activation" and row.bits == 6)
    assert row.format == calibrate(digits.model, digits.images[draw]).format(row.key, 6)


def test_a_log_of_something_else_is_refused(digits: Any, deep: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    settings = SensitivitySettings(widths=(4,), draws=1, images=8)
    measure_sensitivity(digits.model, digits.images[:10], digits.labels[:10], settings, log_path=path)
    with pytest.raises(ArtefactError, match="another images"):
        measure_sensitivity(digits.model, digits.images[:9], digits.labels[:9], settings, log_path=path)
    with pytest.raises(ArtefactError, match="another family"):
        measure_sensitivity(deep.model, deep.images, deep.labels, settings, log_path=path)
    path.write_text(path.read_text() + '{"point": 1}\n')
    with pytest.raises(ArtefactError, match="not a row"):
        measure_sensitivity(digits.model, digits.images[:10], digits.labels[:10], settings, log_path=path)
    path.write_text("garbage\n")
    with pytest.raises(ArtefactError, match="line 1: not JSON"):
        measure_sensitivity(digits.model, digits.images[:10], digits.labels[:10], settings, log_path=path)
    with pytest.raises(ArtefactError, match="cannot write"):
        measure_sensitivity(
            digits.model, digits.images[:10], digits.labels[:10], settings, log_path=tmp_path / "none" / "rows"
        )


def test_bad_settings(digits: Any) -> None:
    for widths in ((), (4, 4), (0,), (17,)):
        with pytest.raises(ConfigError, match="widths"):
            SensitivitySettings(widths=widths)
    with pytest.raises(ConfigError, match="draws: Input should be greater than or equal to 1"):
        SensitivitySettings(draws=0)
    with pytest.raises(ConfigError, match="0 images"):
        Perturber(digits.model, digits.images[:0], digits.labels[:0])


def test_rows_survive_json(digits: Any) -> None:
    row = SensitivityRow("a.weight", 4, 1, FixedFormat(4, 3, True), Effect(5, 1.0, 0.5))
    assert SensitivityRow.from_json(json.loads(json.dumps(row.to_json()))) == row
