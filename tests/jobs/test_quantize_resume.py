"""An interrupted quantization goes on to the result and cost of an uninterrupted one, and measures nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.data import Splits, load_data
from caplet.errors import ArtefactError
from caplet.jobs import searching
from caplet.jobs.quantize import PROBES, SEARCH, quantize
from caplet.jobs.quantizing import QuantizeSettings
from caplet.jobs.searching import CALIBRATION, SENSITIVITIES, TUNING
from caplet.models.base import CapsNet
from caplet.quant.evaluator import Evaluator
from caplet.quant.lines import JsonLines
from caplet.quant.search.susceptibility import Susceptibility
from caplet.quant.tune import Tuner


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digits", calibration_size=120)


@pytest.fixture
def model(trained: Path) -> CapsNet:
    return api.load_float(trained / "model.safetensors")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often what was measured, by kind; images for the float model and for plans."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            found[kind] += 1
            return result

        monkeypatch.setattr(owner, name, counted)

    count(searching, "calibrate", "calibration")
    count(Tuner, "_measure", "tuning")
    count(Susceptibility, "_noise", "sensitivities")
    measure = Evaluator._measure

    def measured(self: Evaluator, plan: Any, order: Any, start: int, stop: int) -> Any:
        result = measure(self, plan, order, start, stop)
        found["float" if plan is None else "probes"] += stop - start
        return result

    monkeypatch.setattr(Evaluator, "_measure", measured)
    return found


def without(value: Any, left_out: tuple[str, ...]) -> Any:
    """JSON values without some keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, left_out) for key, inner in value.items() if key not in left_out}
    return [without(inner, left_out) for inner in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """All records of a run but times."""
    names = (SEARCH, "metrics.json", "plan_satisfied.json", "predictions.json")
    return {name: without(json.loads((folder / name).read_text()), ("seconds",)) for name in names}


class Interruption:
    """Callbacks that stop a run: at the n-th note that starts with some words, or after so many batches."""

    def __init__(self, note: str = "", at: int = 1, batches: int | None = None) -> None:
        self.words, self.left, self.batches = note, at, batches

    def note(self, text: str) -> None:
        if self.words and text.startswith(self.words):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def progress(self, done: int, total: int) -> None:
        if self.batches is not None:
            self.batches -= 1
            if self.batches == 0:
                raise KeyboardInterrupt


POINTS = (
    Interruption("calibrating"),
    Interruption(batches=2),  # within the float model's pass
    Interruption("step"),
    Interruption("step", 4),
    Interruption("step", 9),
    Interruption("integers"),
    Interruption("measuring the test split"),
)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qcapsnets"},
        {"method": "progressive", "granularity": "tensor"},
        {"method": "ilp", "granularity": "tensor"},
        {"method": "ilp", "rounding": "all", "seed": 5},
        {"method": "progressive", "tune": False, "exact": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_in_parts_equals_a_whole_one_and_measures_as_much(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str], settings: dict[str, Any]
) -> None:
    chosen = QuantizeSettings(tolerance=5.0, **settings)
    quantize(model, splits, tmp_path / "whole", chosen)
    whole = Counter(counts)
    assert whole["calibration"] == 1
    assert (whole["tuning"] > 0) == chosen.tune
    assert (whole["sensitivities"] > 0) == (settings["method"] != "qcapsnets")
    counts.clear()
    for point in POINTS:
        stop = Interruption(point.words, point.left, point.batches)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, splits, tmp_path / "parts", chosen, resume=True, note=stop.note, progress=stop.progress)
    quantize(model, splits, tmp_path / "parts", chosen, resume=True)
    assert counts == whole
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize("name", [TUNING, SENSITIVITIES, PROBES])
def test_a_line_that_a_kill_cut_off_is_measured_again(
    model: CapsNet, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Counter[str], name: str
) -> None:
    chosen = QuantizeSettings(tolerance=5.0, method="ilp")
    quantize(model, splits, tmp_path / "whole", chosen)
    whole = Counter(counts)
    write, lines = JsonLines._write, Counter[str]()

    def cut(self: JsonLines, row: Any, mode: str) -> None:
        assert self.path is not None
        lines[self.path.name] += 1
        if lines[name] == 12 and self.path.name == name:
            with self.path.open("a") as stream:
                stream.write(json.dumps(row)[:30])
            raise KeyboardInterrupt
        write(self, row, mode)

    counts.clear()
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "_write", cut)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, splits, tmp_path / "parts", chosen)
    assert not (tmp_path / "parts" / name).read_bytes().endswith(b"\n")
    quantize(model, splits, tmp_path / "parts", chosen, resume=True)
    kind = {TUNING: "tuning", SENSITIVITIES: "sensitivities", PROBES: "probes"}[name]
    assert counts[kind] > whole[kind], "the measurement whose line was cut"
    assert {**counts, kind: 0} == {**whole, kind: 0}
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_another_model_is_not_mistaken_for_the_one_measured(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str]
) -> None:
    """The probe log refuses it first, and leaves everything as it was; without one, all is measured anew."""
    chosen, stop = QuantizeSettings(tolerance=5.0, method="ilp"), Interruption("step", 3)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, splits, tmp_path / "run", chosen, note=stop.note)
    files = {name: (tmp_path / "run" / name).read_bytes() for name in (CALIBRATION, TUNING, SENSITIVITIES, PROBES)}
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    with pytest.raises(ArtefactError, match="another weights"):
        quantize(model, splits, tmp_path / "run", chosen, resume=True)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in files} == files
    (tmp_path / "run" / PROBES).unlink()
    counts.clear()
    quantize(model, splits, tmp_path / "run", chosen, resume=True)
    again = Counter(counts)
    counts.clear()
    quantize(model, splits, tmp_path / "whole", chosen)
    assert again == counts
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_force_measures_everything_again(model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str]) -> None:
    chosen = QuantizeSettings(tolerance=5.0, method="ilp")
    quantize(model, splits, tmp_path, chosen)
    whole = Counter(counts)
    counts.clear()
    quantize(model, splits, tmp_path, chosen, force=True)
    assert counts == whole
    counts.clear()
    quantize(model, splits, tmp_path, chosen, resume=True)
    assert not counts
