"""An interrupted quantization goes on to the result of an uninterrupted one, and measures nothing twice."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.data import Splits, load_data
from caplet.errors import ArtefactError
from caplet.jobs.quantize import job as searching
from caplet.jobs.quantize.job import CALIBRATION, PROBES, SENSITIVITIES, TUNING, quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.models.base import CapsNet
from caplet.quant.choices import Granularity, Method, Part
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.log import MeasurementCache, MeasurementLog
from caplet.runs.records import SEARCH
from quantize_requests import as_measured

Whole = Callable[[str], tuple[Path, Counter[str]]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digits", calibration_size=120)


@pytest.fixture
def model(trained: Path) -> CapsNet:
    return api.load_float(trained / "model.safetensors")


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter[str]]:
    """How often what was measured, by kind; images for the float model and for plans."""
    found: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def count(owner: Any, name: str, kind: str) -> None:
            original = getattr(owner, name)

            def counted(*arguments: Any, **named: Any) -> Any:
                result = original(*arguments, **named)
                found[kind] += 1
                return result

            patch.setattr(owner, name, counted)

        count(searching, "calibrate", "calibration")
        answer = MeasurementCache.answer

        def answered(self: MeasurementCache, asked: Any, measure: Any) -> float:
            def measured() -> float:
                found[Path(str(self._log.path)).stem] += 1
                return float(measure())

            return answer(self, asked, measured)

        patch.setattr(MeasurementCache, "answer", answered)
        measure = Evaluator._measure

        def measured(self: Evaluator, plan: Any, order: Any, start: int, stop: int) -> Any:
            result = measure(self, plan, order, start, stop)
            found["float" if plan is None else "probes"] += stop - start
            return result

        patch.setattr(Evaluator, "_measure", measured)
        yield found


@pytest.fixture
def counts(counter: Counter[str]) -> Counter[str]:
    """What the test at hand measures."""
    counter.clear()
    return counter


SEARCHES: dict[str, dict[str, Any]] = {
    "qcapsnets": {},
    "progressive": {"method": "progressive", "granularity": "network", "rounding": "all", "seed": 5},
    "ilp": {"method": "ilp"},
}
SMALL = as_measured(tolerance=5.0, method=Method.PROGRESSIVE, granularity=Granularity.NETWORK)


def chosen(name: str) -> QuantizeSettings:
    return as_measured(tolerance=5.0, **SEARCHES[name])


@pytest.fixture(scope="module")
def whole(trained: Path, splits: Splits, counter: Counter[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted run of each search, made when first asked for: its folder, and what it measured."""

    @cache
    def run(name: str) -> tuple[Path, Counter[str]]:
        folder = tmp_path_factory.mktemp(name) / "run"
        counter.clear()
        quantize(api.load_float(trained / "model.safetensors"), splits, folder, chosen(name))
        measured = Counter(counter)
        counter.clear()
        return folder, measured

    return run


def without(value: Any, left_out: tuple[str, ...]) -> Any:
    """JSON values without some keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, left_out) for key, inner in value.items() if key not in left_out}
    return [without(inner, left_out) for inner in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    """All records of a run but times and costs, which are those of its last part, and the bytes of what ships."""
    names = (SEARCH, "metrics.json", "plan_satisfied.json", "predictions.json")
    own = ("seconds", "cost", "sensitivity_cost", "full_passes")
    shipped = {path.name: path.read_bytes() for path in folder.glob("*.caplet")}
    return {name: without(json.loads((folder / name).read_text()), own) for name in names} | shipped


@dataclass
class Interruption:
    """Callbacks that stop a run: at the n-th note that starts with some words, or after so many batches."""

    words: str = ""
    at: int = 1
    batches: int = 0

    def note(self, text: str) -> None:
        if self.words and text.startswith(self.words):
            self.at -= 1
            if self.at == 0:
                raise KeyboardInterrupt

    def progress(self, done: int, total: int) -> None:
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt


POINTS = (
    Interruption("calibrating"),
    Interruption(batches=2),  # within the float model's pass
    Interruption("step"),
    Interruption("step", 6),
    Interruption("measuring the test split"),
)


@pytest.mark.parametrize("name", list(SEARCHES))
@pytest.mark.slow
def test_a_run_in_parts_equals_a_whole_one_and_measures_as_much(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str], whole: Whole, name: str
) -> None:
    folder, expected = whole(name)
    assert expected["calibration"] == 1
    assert expected["tuning"] > 0
    assert (expected["sensitivities"] > 0) == (name != "qcapsnets")
    for point in POINTS:
        stop = replace(point)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, splits, tmp_path, chosen(name), resume=True, note=stop.note, progress=stop.progress)
    quantize(model, splits, tmp_path, chosen(name), resume=True)
    assert counts == expected
    assert results(tmp_path) == results(folder)


@pytest.mark.slow
def test_a_line_that_a_kill_cut_off_is_measured_again(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str], whole: Whole
) -> None:
    folder, expected = whole("ilp")
    write = MeasurementLog._write
    for file in (TUNING, SENSITIVITIES):
        lines = Counter[str]()

        def cut(self: MeasurementLog, row: Any, mode: str, file: str = file, lines: Counter[str] = lines) -> None:
            assert self.path is not None
            lines[self.path.name] += 1
            if lines[file] == 12 and self.path.name == file:
                with self.path.open("a") as stream:
                    stream.write(json.dumps(row)[:30])
                raise KeyboardInterrupt
            write(self, row, mode)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MeasurementLog, "_write", cut)
            with pytest.raises(KeyboardInterrupt):
                quantize(model, splits, tmp_path, chosen("ilp"), resume=file != TUNING)
        assert not (tmp_path / file).read_bytes().endswith(b"\n")
    quantize(model, splits, tmp_path, chosen("ilp"), resume=True)
    assert counts == expected + Counter({"tuning": 1, "sensitivities": 1})
    assert results(tmp_path) == results(folder)


def test_another_model_is_not_mistaken_for_the_one_measured(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str]
) -> None:
    """The probe log refuses it first, and leaves everything as it was; without one, all is measured anew."""
    folder, stop = tmp_path / "run", Interruption("step", 3)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, splits, folder, SMALL, note=stop.note)
    files = {name: (folder / name).read_bytes() for name in (CALIBRATION, TUNING, PROBES)}
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    with pytest.raises(ArtefactError, match="another weights"):
        quantize(model, splits, folder, SMALL, resume=True)
    assert {name: (folder / name).read_bytes() for name in files} == files
    (folder / PROBES).unlink()
    counts.clear()
    quantize(model, splits, folder, SMALL, resume=True)
    again = Counter(counts)
    counts.clear()
    quantize(model, splits, tmp_path / "whole", SMALL)
    assert again == counts
    assert results(folder) == results(tmp_path / "whole")


def test_force_measures_everything_again_and_a_finished_run_nothing(
    model: CapsNet, splits: Splits, tmp_path: Path, counts: Counter[str], whole: Whole
) -> None:
    folder, expected = whole("qcapsnets")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    quantize(model, splits, tmp_path, chosen("qcapsnets"), resume=True)
    assert not counts
    quantize(model, splits, tmp_path, chosen("qcapsnets"), force=True)
    assert counts == expected


@pytest.mark.slow
def test_plans_whose_fits_were_tried_are_not_fitted_again(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    settings = as_measured(tolerance=5.0, method=Method.ILP, reconstruct=(Part.BIAS, Part.ROUNDING), narrow=True)
    whole, parts = list[str](), list[str]()
    quantize(model, splits, tmp_path / "whole", settings, note=whole.append)
    for trial in (2, 1):
        stop = Interruption("fitted", trial)

        def heard(text: str, stop: Interruption = stop) -> None:
            parts.append(text)
            stop.note(text)

        with pytest.raises(KeyboardInterrupt):
            quantize(model, splits, tmp_path / "run", settings, resume=trial == 1, note=heard)
    quantize(model, splits, tmp_path / "run", settings, resume=True, note=parts.append)
    tried = [[text for text in notes if text.startswith("fitted")] for notes in (whole, parts)]
    assert tried[0] == tried[1]
    assert len(tried[0]) > 3
    assert results(tmp_path / "run") == results(tmp_path / "whole")
