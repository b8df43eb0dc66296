"""Sweeps: seeded, gone on with, joined, within limits, decided without the test split."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caplet import api
from caplet.data import Splits
from caplet.errors import ArtefactError, ConfigError, TargetNotMet
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.sweep import job
from caplet.jobs.sweep.job import JOURNAL, _Sweep, sweep, winner
from caplet.jobs.sweep.networks import Maker, draw
from caplet.jobs.sweep.settings import SweepSettings
from caplet.metrics import Accuracy, accuracy
from caplet.models.registry import named_model
from caplet.program.arena import plan_memory
from caplet.progress import silent
from caplet.runs.finished import read_run
from caplet.runs.folder import RUNNING
from caplet.runs.swept import SweepMetrics, TrialMetrics
from caplet.train.task import plan_model

optuna = pytest.importorskip("optuna")

TINY: dict[str, Any] = {"flash": "32KB", "trials": 3, "trial_images": 640, "trial_epochs": 2, "epochs": 2}
TINY |= {"finalists": 2, "tolerance": 5}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return api.load_data("digits", calibration_size=100)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(splits: Splits, notes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "digits"
    assert sweep(splits, out, SweepSettings.of(TINY), note=notes.append)["met"]
    return out


def trials(splits: Splits, run: Path, note: Callable[[str], None] = silent, **changes: Any) -> list[TrialMetrics]:
    """The trials of a sweep alone, by number, without what the clock says."""
    run.mkdir(exist_ok=True)
    part = _Sweep(run, Maker(SweepSettings.of(TINY | changes), splits), optuna, note)
    part.trials()
    found = part.found("made", "stopped", "failed", "rejected")
    return sorted((TrialMetrics(**{**vars(each), "seconds": 0}) for each in found), key=lambda each: each.number)


@pytest.fixture(scope="module")
def uninterrupted(splits: Splits, run: Path) -> list[TrialMetrics]:
    return trials(splits, run)


def test_the_run_is_one_that_the_rest_understands(run: Path, splits: Splits) -> None:
    records = read_run(run)
    assert (records.job, (run / RUNNING).exists()) == ("sweep", False)
    metrics = records.metrics
    assert isinstance(metrics, SweepMetrics)
    program = api.load_program(api.find_program(run))
    arena = min((plan_memory(program, ram) for ram in ("fast", "small")), key=lambda plan: plan.bytes)
    assert arena.bytes == metrics.limits["ram"]["found"]
    assert program.firmware_bytes + arena.code_bytes == metrics.limits["flash"]["found"] <= 32_000
    assert api.evaluate(program, splits.test).accuracy == metrics.models[0].test
    assert api.load_model(run / "model.safetensors").config.classes == 10
    assert api.diff_runs(run, run).pair is not None


def test_the_most_accurate_finalist_wins_and_the_arena_is_no_larger_than_it_was(run: Path) -> None:
    metrics = read_run(run).metrics
    full = [each for each in metrics.networks if each.state == "full"]
    won = next(each for each in full if each.number == metrics.winner)
    made = [each for each in metrics.networks if each.state == "made"]
    best = sorted(made, key=lambda each: (-each.percent, each.loss))[:2]
    assert {each.number for each in full} == {each.number for each in best}
    assert (won.percent, -won.loss) == max((each.percent, -each.loss) for each in full)
    assert all(0 < each.loss < 1 for each in full)
    assert metrics.limits["ram"]["found"] <= won.ram
    assert metrics.limits["flash"]["found"] <= won.flash


def test_the_smallest_accurate_enough_wins_or_the_most_accurate_and_of_equals_the_one_with_the_lower_loss() -> None:
    def full(number: int, flash: int, correct: int, loss: float) -> TrialMetrics:
        return TrialMetrics(number, "full", "", flash=flash, accuracy=accuracy(correct, 100), loss=loss)

    done = [full(0, 9, 98, 0.2), full(1, 10, 98, 0.1), full(2, 8, 97, 0.05)]
    assert [winner(done, target).number for target in (None, 97, 98, 99)] == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("tolerance", "target", "asked"),
    [(0, None, ("confidence", 0.23)), (5, None, ("confidence", 5)), (5, 40, ("measured", 5))],
)
def test_training_images_decide_how_far_the_winner_is_narrowed_unless_an_accuracy_was_asked_for(
    tolerance: float,
    target: float | None,
    asked: tuple[str, float],
    splits: Splits,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    won = next(each for each in read_run(run).metrics.networks if each.state == "full")
    shutil.copytree(run / won.folder, tmp_path / "won", ignore=shutil.ignore_patterns("quantized"))
    given: list[QuantizeSettings] = []
    monkeypatch.setattr(
        "caplet.jobs.sweep.job.quantize", lambda model, data, out, settings, **how: given.append(settings)
    )
    part = _Sweep(tmp_path, Maker(SweepSettings.of(TINY | {"tolerance": tolerance}), splits), optuna, silent)
    part.quantized(tmp_path / "won", won, target)
    assert [(each.accept, each.tolerance) for each in given] == [asked]


def test_every_decision_is_made_before_the_test_split_is_opened_once(notes: list[str], run: Path) -> None:
    assert sum("test split" in text for text in notes) == 1
    after = notes[next(index for index, text in enumerate(notes) if "test split" in text) + 1 :]
    assert after == []


def test_a_line_tells_of_each_trial_what_is_best_and_the_time_left(notes: list[str], run: Path) -> None:
    assert [text for text in notes if re.match(r"trial \d+ \(3 of 3\): [\d.]+ %, [\d,]+ bytes of flash", text)]
    assert sum(bool(re.match(r"  best so far .*; about \d+ minutes left", text)) for text in notes) == 3


def test_time_alone_ends_the_trials_where_only_it_is_given(splits: Splits, run: Path, tmp_path: Path) -> None:
    """The first one takes longer than there is time for."""
    assert SweepSettings().most == 40
    assert len([each for each in trials(splits, tmp_path, trials=None, minutes=1e-4) if each.state == "made"]) == 1


def test_every_mark_that_was_made_leads_to_its_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    links = set(re.findall(r'<a href="([\w/]+/report\.html)">', page))
    made = {each.folder for each in read_run(run).metrics.networks if each.folder}
    assert links == {f"{folder}/report.html" for folder in made}
    for folder in made:
        assert "calibration images" in (run / folder / "report.html").read_text()


@pytest.mark.slow
def test_the_same_seed_draws_and_makes_the_same(
    splits: Splits, uninterrupted: list[TrialMetrics], tmp_path: Path
) -> None:
    assert trials(splits, tmp_path / "again") == uninterrupted
    assert trials(splits, tmp_path / "other", seed=1, trials=1) != uninterrupted[:1]


def test_families_that_are_drawn(splits: Splits) -> None:
    """Plain convolutions, the small network for CIFAR-10 with batch norms, the first blocks of a MobileNetV1."""
    choices: dict[str, Any] = {
        "depth": 4,
        "channels": 32,
        "growth": 2.0,
        "kernel": 3,
        "types": 16,
        "dim": 4,
        "keep": 1.0,
    }
    choices |= {"stride0": 1, "stride1": 1, "stride2": 2, "stride3": 2, "primary_kernel": 3, "primary_stride": 2}
    choices |= {"class_dim": 4, "iterations": 3, "width": 0.25, "blocks": 5}
    shape, maker = {"image": (3, 32, 32), "classes": 10}, Maker(SweepSettings(), splits)
    found: dict[str, Any] = {}
    for family in ("plain", "normed", "trunk"):
        network = draw(optuna.trial.FixedTrial(choices | {"family": family}), 32)
        recipe = maker.recipe(False, network)
        model = plan_model(recipe.model_copy(update={"overrides": {**network.overrides, **shape}}))
        found[family] = model.config
    small: Any = named_model("small-32").config.model_copy(update={"class_dim": 4})
    plain = [conv.model_copy(update={"batch_norm": None}) for conv in small.stem]
    assert found["normed"] == small
    assert found["plain"] == small.model_copy(update={"stem": tuple(plain)})
    assert [block.name for block in found["trunk"].trunk.blocks] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert found["trunk"].trunk.blocks[-1].nodes[-1].channels == 64


def test_a_network_that_was_drawn_before_is_not_trained_again(splits: Splits, run: Path, tmp_path: Path) -> None:
    part = _Sweep(tmp_path, Maker(SweepSettings.of(TINY), splits), optuna, silent)
    first = next(trial for _ in range(50) if (trial := part.ask()) is not None)
    part.study.enqueue_trial(first.params)
    assert part.ask() is None
    again = max(part.found("rejected"), key=lambda each: each.number)
    assert (again.number, again.about) == (len(part.drawn()) - 1, f"the network of trial {first.number}")


def test_an_interrupted_trial_is_gone_on_with(
    splits: Splits, uninterrupted: list[TrialMetrics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, calls = _Sweep.valued, []

    def interrupted(self: _Sweep, found: TrialMetrics) -> TrialMetrics:
        calls.append(found.number)
        if len(calls) == 4:  # after the first epoch of the second trial
            raise KeyboardInterrupt
        return value(self, found)

    monkeypatch.setattr(_Sweep, "valued", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trials(splits, tmp_path)
    assert len(set(calls)) == 2
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker')  # as a kill leaves it
    assert trials(splits, tmp_path) == uninterrupted


def test_more_trials_go_on_with_a_finished_sweep(splits: Splits, run: Path, tmp_path: Path) -> None:
    before = read_run(run).metrics
    more = SweepSettings.of(TINY | {"trials": 4})
    with pytest.raises(ArtefactError, match="use --resume"):
        sweep(splits, run, more)
    sweep(splits, run, more, resume=True)
    taken = [each for each in read_run(run).metrics.networks if each.state in ("made", "stopped")]
    assert len(taken) == 4
    assert {each.number for each in before.networks if each.state == "made"} < {each.number for each in taken}


JOIN = """
import sys
from pathlib import Path
from caplet import api
sys.path.insert(0, {tests!r})
from test_sweep import TINY
splits, settings = api.load_data("digits", calibration_size=100), api.SweepSettings.of(TINY)
print("ready", flush=True)
api.sweep(splits, {out!r}, settings)
"""


@pytest.mark.slow
def test_two_processes_share_one_sweep(splits: Splits, uninterrupted: list[TrialMetrics], tmp_path: Path) -> None:
    code = JOIN.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()  # so that both begin at once
        sweep(splits, tmp_path, SweepSettings.of(TINY))
        error = other.communicate()[1]
    assert other.returncode == 0, error
    networks = read_run(tmp_path).metrics.networks
    assert [each.state for each in networks].count("made") + [each.state for each in networks].count("stopped") == 3
    numbers = [each.number for each in networks if each.state != "full"]
    assert numbers == [*range(len(numbers))]


@pytest.mark.parametrize("settings", [{"flash": "9KB"}, {"ram": "500"}, {"macs": "100"}])
def test_limits_that_nothing_meets_say_what_the_nearest_network_needs(
    settings: dict[str, str], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "REFUSED", 15)
    name = {"flash": "bytes of flash", "ram": "bytes of RAM", "macs": "multiply-accumulates"}[next(iter(settings))]
    with pytest.raises(TargetNotMet, match=rf"among 15 that were drawn.*: .*[\d,]+ {name} instead of") as caught:
        sweep(splits, tmp_path / "run", SweepSettings.of(settings))
    assert caught.value.exit_code == 5


def test_an_accuracy_that_is_missed_is_written_and_said(splits: Splits, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("quantized"))
    part = _Sweep(tmp_path / "run", Maker(SweepSettings.of(TINY | {"min_accuracy": 99.9}), splits), optuna, silent)
    metrics = part.finish(*part.finals())
    assert (metrics["met"], metrics["missed"]) == (False, ["errors"])
    assert "instead of 99.90 %" in metrics["outlook"][0]


def test_a_limit_of_ram_is_judged_by_the_plan_that_export_makes_for_it(splits: Splits, run: Path) -> None:
    choices: dict[str, Any] = {
        "depth": 2,
        "channels": 16,
        "growth": 2.0,
        "kernel": 3,
        "stride0": 1,
        "stride1": 1,
        "types": 2,
        "dim": 4,
    }
    choices |= {"family": "plain"}
    choices |= {"primary_kernel": 3, "primary_stride": 1, "class_dim": 4, "iterations": 2, "keep": 1.0}
    network, settings = draw(optuna.trial.FixedTrial(choices), 8), SweepSettings.of(TINY | {"ram": "1250"})
    free, limited = (Maker(each, splits).estimate(network) for each in (SweepSettings.of(TINY), settings))
    assert limited["ram"] <= 1250 < free["ram"]
    least = _Sweep(run, Maker(SweepSettings.of(TINY | {"ram": "500"}), splits), optuna, silent)
    metrics = least.finish(*least.finals())
    assert metrics["missed"] == ["ram"]
    assert metrics["plan"] == metrics["limits"]["ram"]["found"]


def test_the_smallest_network_is_found_by_bisection(splits: Splits, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven networks on the front, of which the fifth and larger ones have the accuracy."""
    front = [TrialMetrics(at, "made", "", flash=at, accuracy=Accuracy(at, 10, 10.0 * at, 0, 0)) for at in range(7)]
    tried: list[int] = []

    def full(self: _Sweep, trial: TrialMetrics, count: int) -> TrialMetrics:
        tried.append(trial.number)
        return trial

    monkeypatch.setattr(_Sweep, "found", lambda self, *states: front)
    monkeypatch.setattr(_Sweep, "full", full)
    for changes, expected in (
        ({"min_accuracy": 40.0, "finalists": 9}, [3, 5, 4]),
        ({"max_drop": 20.0, "finalists": 9}, [6, 3, 5, 4]),
        ({"max_drop": 20.0, "finalists": 2}, [6, 3]),
        ({"finalists": 3}, [6, 5, 4]),
    ):
        tried.clear()
        part = _Sweep(run, Maker(SweepSettings.of(TINY | changes), splits), optuna, silent)
        assert part.finals()[1] == [front[at] for at in expected]
        assert tried == expected


def test_other_settings_data_or_folders_are_refused(splits: Splits, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="setting 'seed' was 0 and is now 3"):
        sweep(splits, run, SweepSettings.of(TINY | {"seed": 3}), resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="it is a file"):
        sweep(splits, tmp_path / "file", SweepSettings.of(TINY))
    with pytest.raises(ConfigError, match="one of them"):
        sweep(splits, tmp_path / "none", resume=True, force=True)
    with pytest.raises(ConfigError, match="both given"):
        SweepSettings(min_accuracy=90, max_drop=1)
    with pytest.raises(ConfigError, match="leaning_rate"):
        sweep(splits, tmp_path / "none", SweepSettings(train={"leaning_rate": 1}))
    assert not (tmp_path / "none").exists()


def test_without_optuna_it_says_what_to_install(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'caplet\[sweep\]'"):
        sweep(splits, tmp_path / "none")
    assert not (tmp_path / "none").exists()
