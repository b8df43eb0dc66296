"""Compression as one job, on a small network for digits."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet import api
from caplet.data import Splits
from caplet.errors import ArtefactError, ConfigError
from caplet.fixed import FixedFormat
from caplet.jobs.compress.finish import CompressedModel
from caplet.jobs.compress.job import compress, estimate_compression, write_settings
from caplet.jobs.compress.settings import CompressSettings, checked, read_settings, settings_template
from caplet.jobs.train import fit_to_data
from caplet.models.checkpoint import save_model
from caplet.program.arena import plan_memory
from caplet.runs.folder import METRICS, read_record
from caplet.runs.records import DETAILS
from caplet.runs.stages import STAGES
from caplet.train.settings import TrainSettings
from caplet.train.task import build_model

QUICK = {
    "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 20},
    "quantize": {"probes": [8, 4], "method": "progressive"},
    "verify": {"images": 3, "timed": 1},
}


def settings(model: Path, **limits: Any) -> CompressSettings:
    return checked({**QUICK, "model": str(model), "data": "digits", "limits": limits})


@pytest.fixture(scope="module")
def data() -> Splits:
    return api.load_data("digits", calibration_size=120)


@pytest.fixture(scope="module")
def compressed(trained: Path, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    file = trained / "model.safetensors"
    folder = tmp_path_factory.mktemp("compressed") / "run"
    return compress(api.load_float(file), data, folder, settings(file, max_drop=20.0))


def test_the_result_is_what_the_files_hold(compressed: CompressedModel, data: Splits, tmp_path: Path) -> None:
    metrics = compressed.metrics
    assert compressed.met
    assert metrics["compressed"]["file_bytes"] == (compressed.folder / "model.caplet").stat().st_size
    assert compressed.accuracy(data.test).percent == metrics["compressed"]["test"]["percent"]
    assert {row["target"]: row["differing"] for row in metrics["verified"]} == {"interpreter": 0, "native": 0}
    assert compressed.report.read_text().startswith("<!")
    compressed.save(tmp_path / "copy.caplet")
    assert api.load_program(tmp_path / "copy.caplet").name == compressed.program.name


def test_images_that_no_decision_saw_accept_the_result(compressed: CompressedModel, data: Splits) -> None:
    promise = compressed.metrics["promise"]
    assert promise["images"]["available"] == 120 - 48  # 40 % of the calibration split is for decisions
    assert promise["expected"]["n"] == 72
    assert promise["expected"]["error"] <= 0.05 / 2  # the first of several networks may use half of the error
    assert compressed.metrics["limits"]["max_drop"]["found"] == promise["expected"]["limit"] <= 20.0
    assert promise["kept"] == (compressed.metrics["compressed"]["paired"]["loss"] <= 20.0)
    seen = compressed.metrics["float"]["calibration"]["n"]
    assert seen == 48


def test_computed_tensors_take_a_byte_each_where_that_will_do(compressed: CompressedModel) -> None:
    widths = {spec.format.bits for spec in compressed.program.tensors.values() if isinstance(spec.format, FixedFormat)}
    assert max(widths) <= 8
    attempts = [name for name in compressed.metrics["stages"] if name.startswith("quantize-")]
    assert attempts
    assert all(name.endswith("-byte") for name in attempts)


def test_a_loss_that_the_images_cannot_show_is_refused_before_training(data: Splits, tmp_path: Path) -> None:
    asked = checked({**QUICK, "recipe": "digits", "data": "digits", "limits": {"max_drop": 0.3}})
    with pytest.raises(ConfigError, match=r"72 images that decide cannot show a loss of at most 0.3 points .*measured"):
        compress(None, data, tmp_path / "run", asked)
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_nothing_again(compressed: CompressedModel, trained: Path, data: Splits) -> None:
    file = trained / "model.safetensors"
    before = (compressed.folder / STAGES).read_text()
    again = compress(api.load_float(file), data, compressed.folder, settings(file, max_drop=20.0), resume=True)
    assert (compressed.folder / STAGES).read_text() == before
    assert all(stage["skipped"] for stage in again.metrics["stages"].values())


def test_changed_inputs_are_refused_when_resuming(compressed: CompressedModel, trained: Path, data: Splits) -> None:
    file = trained / "model.safetensors"
    with pytest.raises(ConfigError, match=r"setting 'limits.max_drop' was 20.0 and is now 19.0"):
        compress(api.load_float(file), data, compressed.folder, settings(file, max_drop=19.0), resume=True)


TWO_MAPS = {
    "stem": [{"kernel": 3, "stride": 1, "channels": channels} for channels in (16, 32)],
    **{"primary_types": 2, "primary_dim": 4, "primary_kernel": 3, "primary_stride": 1},
    **{"class_dim": 4, "iterations": 2},
}


@pytest.mark.slow
def test_a_limit_of_ram_that_the_plan_small_misses_is_kept_by_the_firmware(data: Splits, tmp_path: Path) -> None:
    changes = {"model": "shallow", "dataset": "digits", "epochs": 1, "seed": 0, "overrides": TWO_MAPS}
    torch.manual_seed(0)
    save_model(build_model(fit_to_data(TrainSettings.of(changes), data)), tmp_path / "model.safetensors")
    asked = settings(tmp_path / "model.safetensors", max_drop=100.0, ram=1150)
    result = compress(api.load_float(tmp_path / "model.safetensors"), data, tmp_path / "run", asked)
    assert plan_memory(result.program, "small").bytes > 1150
    assert (result.met, result.metrics["plan"]) == (True, 1150)
    arena = read_record(tmp_path / "run" / "firmware" / "memory.json", dict)
    assert arena["bytes"] == result.metrics["limits"]["ram"]["found"] <= 1150
    details = read_record(tmp_path / "run" / DETAILS, dict)["models"]["compressed"]
    assert details["memory"]["1150"] == arena
    assert result.export_c(tmp_path / "again").plan.bytes == arena["bytes"]
    assert "Arena with as many votes stored as fit (--ram 1150)" in result.report.read_text()


@pytest.mark.slow
def test_limits_out_of_reach_give_the_nearest_network(trained: Path, data: Splits, tmp_path: Path) -> None:
    file = trained / "model.safetensors"
    result = compress(api.load_float(file), data, tmp_path / "run", settings(file, max_drop=30.0, ram=100, macs=10))
    assert not result.met
    assert result.metrics["missed"] == ["ram", "macs"]
    assert (tmp_path / "run" / "model.caplet").exists()
    assert result.metrics["plan"] == result.metrics["limits"]["ram"]["found"]
    assert read_record(tmp_path / "run" / METRICS, dict)["met"] is False


def test_the_template_shows_every_setting_with_its_default() -> None:
    text = settings_template('a "model".pt', data="digits")
    assert read_text(text) == checked({"model": 'a "model".pt', "data": "digits"})
    shown = read_text(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.M), recipe=None)
    default = checked({"model": "x", "data": "digits"})
    for table in ("prune", "quantize", "verify"):
        assert getattr(shown, table) == getattr(default, table)
        names = set(tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.M))[table])
        assert names == set(type(getattr(default, table)).model_fields)


def read_text(text: str, **changes: Any) -> CompressSettings:
    return checked({**tomllib.loads(text), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = 'digits'\nlimit = 3", "did you mean 'limits'"),
        ("recipe = 'digits'\n[limits]\nflsh = '3KB'", r"limits.flsh: .*did you mean 'flash'"),
        ("recipe = 'digits'\n[limits]\nflash = '3 cows'", "size '3 cows'"),
        ("recipe = 'digits'\n[limits]\nmax_drop = -1", "limits.max_drop"),
        ("recipe = 'digits'\n[prune]\nprobes = [2.0]", "prune.probes"),
        ("data = 'digits'", "neither given"),
        ("recipe = 'digits'\nmodel = 'x'", "both given"),
        ("model = 'x'", "data: not given"),
        ("model = ", "not a TOML file"),
    ],
)
def test_mistakes_in_a_settings_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "compress.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(path)


def test_a_settings_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "compress.toml"
    write_settings(path, model=None, recipe="digits", data="digits")
    assert read_settings(path, {"limits": {"max_drop": 0.5}}).limits.max_drop == 0.5
    with pytest.raises(ArtefactError, match="exists"):
        write_settings(path, model=None, recipe="digits", data="digits")


def test_an_estimate_names_every_stage() -> None:
    plan = estimate_compression(checked({"recipe": "digits"}))
    assert [row["stage"] for row in plan["stages"]] == ["train", "curves", "prune", "quantize", "firmware, verify"]
    assert plan["minutes"] > 0
    assert plan["memory_bytes"] > 5e8
