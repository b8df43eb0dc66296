"""Cached measurements: asked twice, measured once; cut, foreign and damaged files; tuning and sensitivities."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet.errors import ArtefactError
from caplet.fixed import Rounding
from caplet.quant.choices import Granularity
from caplet.quant.measure.effects import Perturber
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.log import MeasurementCache, model_identity
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.target import HARDWARE
from caplet.quant.plan.units import make_units
from caplet.quant.search.progressive import UnitSensitivity
from caplet.quant.search.search import Request, Workbench


class Meter:
    """A measurement that counts how often it is made."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> float:
        self.calls += 1
        return self.value


def kept(folder: Path, **identity: Any) -> MeasurementCache:
    return MeasurementCache(folder / "kept.jsonl", "log of a test", identity)


@pytest.mark.parametrize("value", [0.1 + 0.2, 0.0, 1e-300, 3.0, float("inf")])
def test_an_answer_is_measured_once_and_comes_back_exactly(tmp_path: Path, value: float) -> None:
    meter = Meter(value)
    first = kept(tmp_path)
    assert [first.answer({"a": 1, "b": [2]}, meter) for _ in range(2)] == [value, value]
    again = kept(tmp_path)
    assert again.answer({"b": [2], "a": 1}, meter) == value
    assert meter.calls == 1
    assert again.answer({"a": 1, "b": [3]}, meter) == value
    assert meter.calls == 2


def test_a_line_cut_off_is_measured_again(tmp_path: Path) -> None:
    first, meter = kept(tmp_path), Meter(2.0)
    for number in range(3):
        first.answer({"number": number}, meter)
    path = tmp_path / "kept.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = kept(tmp_path)
    for number in range(3):
        again.answer({"number": number}, meter)
    assert meter.calls == 4
    assert len(path.read_text().splitlines()) == 4


def test_a_file_of_another_identity_is_replaced(tmp_path: Path) -> None:
    meter = Meter(2.0)
    kept(tmp_path, weights="a").answer({}, meter)
    kept(tmp_path, weights="b").answer({}, meter)
    kept(tmp_path, weights="a").answer({}, meter)
    assert meter.calls == 3
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["{}", '{"asked": {}, "answer": "x", "seconds": 0}', "[1]", "garbage"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    kept(tmp_path).answer({}, Meter(1.0))
    with (tmp_path / "kept.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ArtefactError, match=r"line 3: .*move the file away"):
        kept(tmp_path)


def test_tuning_reads_what_was_measured(digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same formats at the same cost, without running the model; other images and other weights are measured."""
    images = digits.images[:16]

    def tuner(images: torch.Tensor = images) -> Tuner:
        return Tuner(digits.model, digits.calibration, images, kept(tmp_path, **model_identity(digits.model)))

    def formats(tuner: Tuner) -> list[Any]:
        return [tuner.format(key, width) for key in digits.model.points() for width in (3, 6)]

    first = tuner()
    chosen = formats(first)
    plain = Tuner(digits.model, digits.calibration, images)
    assert formats(plain) == chosen
    assert plain.spent == first.spent > len(images)
    other = tuner(digits.images[1:17])
    formats(other)
    with monkeypatch.context() as patch:
        patch.setattr(Perturber, "effect", lambda *asked: pytest.fail("measured again"))
        again = tuner()
        assert formats(again) == chosen
        assert again.spent == 0
        with pytest.raises(pytest.fail.Exception):
            formats(tuner(digits.images[2:18]))


def test_sensitivities_are_read(digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(digits.model, digits.images, digits.labels)
    units = make_units(digits.model, Granularity.LAYER, HARDWARE["portable"])

    def sensitivity(
        known: MeasurementCache | None, rounding: Rounding = Rounding.NEAREST, seed: int = 0
    ) -> UnitSensitivity:
        fail = partial(pytest.fail, "not needed")
        bench = Workbench(evaluator, digits.calibration, fail, cache=known, sensitivity_images=16)
        return UnitSensitivity(bench, Request(1.0, seed=seed), rounding, units)

    def noises(found: UnitSensitivity) -> list[float]:
        return [found.noise(index, width) for index in range(len(units)) for width in (5, 4)]

    identity = model_identity(digits.model)
    first = sensitivity(kept(tmp_path, **identity))
    measured = noises(first)
    plain = sensitivity(None)
    assert noises(plain) == measured
    assert plain.cost == first.cost > 16 / len(evaluator)
    stochastic = noises(sensitivity(kept(tmp_path, **identity), Rounding.STOCHASTIC, 7))
    with monkeypatch.context() as patch:
        patch.setattr(Perturber, "effect", lambda *asked: pytest.fail("measured again"))
        again = sensitivity(kept(tmp_path, **identity))
        assert noises(again) == measured
        assert again.cost == 0
        assert noises(sensitivity(kept(tmp_path, **identity), Rounding.STOCHASTIC, 7)) == stochastic
        for other in ((Rounding.STOCHASTIC, 8), (Rounding.TRUNCATE, 0)):
            with pytest.raises(pytest.fail.Exception):
                noises(sensitivity(kept(tmp_path, **identity), *other))
