"""Run folders: nothing is lost, nothing is half written, one process at a time."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caplet.errors import ArtefactError, ConfigError
from caplet.metrics import Accuracy, accuracy
from caplet.runs.finished import read_run
from caplet.runs.folder import RUNNING, environment, open_run, plain, read_record, typed, write_record
from caplet.runs.records import RoundMetrics, SearchRecord, Width

SETTINGS = {"a": 1, "b": [1, 2], "c": {"d": None}}


def _names(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name != ".lock"}


def _run(folder: Path, **options: Any) -> None:
    with open_run(folder, SETTINGS, **options) as run:
        write_record(run / "metrics.json", {"x": 1})


def test_a_new_folder_gets_settings_and_environment(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    _run(folder)
    assert _names(folder) == {"settings.json", "environment.json", "metrics.json"}
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS
    seen = json.loads((folder / "environment.json").read_text())
    assert seen["packages"]["torch"]
    assert str(Path.home()) not in json.dumps(environment().packages)


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"not empty \(thesis.tex, ...\); use --resume .* --force"):
        _run(tmp_path)
    assert _names(tmp_path) == {"thesis.tex"}
    _run(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_force_forgets_what_a_new_run_would_resume_from(tmp_path: Path) -> None:
    _run(tmp_path)
    for name in ("probes.jsonl", "train.ckpt", "model_satisfied.caplet"):
        (tmp_path / name).write_text("old")
    _run(tmp_path, force=True)
    assert _names(tmp_path) == {"settings.json", "environment.json", "metrics.json", "model_satisfied.caplet"}


def test_resume_keeps_everything_of_the_same_run(tmp_path: Path) -> None:
    _run(tmp_path)
    (tmp_path / "probes.jsonl").write_text("old")
    _run(tmp_path, resume=True)
    assert (tmp_path / "probes.jsonl").read_text() == "old"


def test_resume_starts_in_a_new_folder(tmp_path: Path) -> None:
    _run(tmp_path / "new", resume=True)
    assert "metrics.json" in _names(tmp_path / "new")


def test_resume_with_other_settings_names_the_first(tmp_path: Path) -> None:
    _run(tmp_path)
    with (
        pytest.raises(ConfigError, match=r"setting 'b' was \[1, 2\] and is now 3"),
        open_run(tmp_path, {**SETTINGS, "b": 3}, resume=True),
    ):
        pass
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_resume_does_not_move_into_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"holds no run to resume \(it has thesis.tex, but no settings.json\)"):
        _run(tmp_path, resume=True)
    assert _names(tmp_path) == {"thesis.tex"}


def test_resume_and_force_contradict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        _run(tmp_path / "new", resume=True, force=True)
    assert not (tmp_path / "new").exists()


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """What a kill in the middle of a write leaves is not taken for somebody's files, and is removed."""
    (tmp_path / ".settings.json.x1y2.part").write_text("{")
    _run(tmp_path)
    assert _names(tmp_path) == {"settings.json", "environment.json", "metrics.json"}


def test_damaged_settings_are_reported(tmp_path: Path) -> None:
    _run(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"settings.json is not valid JSON"):
        _run(tmp_path, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="advisory locks")
def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    code = f"""
import sys
from caplet.runs.folder import open_run
with open_run({str(tmp_path)!r}, {SETTINGS!r}):
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"open\n"
        for option in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(ArtefactError, match="in use by another caplet process"):
                _run(tmp_path, **option)
        other.stdin.close()
        other.wait()
    assert "metrics.json" not in _names(tmp_path)
    _run(tmp_path, resume=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for place in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(ArtefactError, match=r"cannot write to the folder .*; choose another --out"):
            _run(place)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere: let the system call refuse

        def refuse(path: object, *args: object, **kwargs: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(os, "open", refuse)
    else:
        tmp_path.chmod(0o555)
    try:
        with pytest.raises(ArtefactError, match="permission denied; choose another --out"):
            _run(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path)
    (tmp_path / "probes.jsonl").write_text("old")
    before = {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match=r"cannot write .*settings.json: no space left on device"):
        _run(tmp_path, force=True)
    assert {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)} == before


def test_a_run_that_stopped_is_marked(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run(tmp_path, SETTINGS):
        raise RuntimeError("stop")
    assert RUNNING in _names(tmp_path)
    _run(tmp_path, resume=True)
    assert RUNNING not in _names(tmp_path)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Dataclasses in tables and lists, too; whole numbers stay whole, and other keys of the file are passed over."""
    written = {"of": [accuracy(9, 10)], "width": Width(4, 0.5, 100)}
    write_record(tmp_path / "record.json", written)
    assert read_record(tmp_path / "record.json", dict) == plain(written)
    assert typed(Accuracy, {**plain(accuracy(9, 10)), "new": 1}, "it") == accuracy(9, 10)
    found = typed(SearchRecord, {"reference": {"correct": 9, "n": 10}, "needed": 8, "steps": [{"cost": 2}]}, "it")
    assert repr(found.steps[0]["cost"]) == "2"


def test_what_older_runs_did_not_record_has_a_default() -> None:
    measured = plain(accuracy(9, 10))
    found = typed(
        RoundMetrics,
        {"round": 1, "cost": {}, "calibration_before": measured, "calibration": measured, "seconds": 1},
        "a round",
    )
    assert found.calibration_cut is None
    assert found.finetuning == {}
    assert typed(Width, {"bits": 4, "drop": 0.5, "images": 100}, "a point").macs_kept == 1.0


@pytest.mark.parametrize(
    ("job", "metrics", "place"),
    [
        ("sensitivity", {"points": 3}, "metrics.points: "),
        ("train", {"history": []}, "metrics.recipe: "),
        ("quantize", {"models": [{}]}, "KeyError: 'role'"),
        ("prune", {"rounds": [{"round": "one"}]}, "metrics.met: "),
    ],
)
def test_a_damaged_run_is_one_line_that_says_where(tmp_path: Path, job: str, metrics: Any, place: str) -> None:
    for name, record in (("settings", {"job": job}), ("metrics", metrics)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(ArtefactError, match="is not what this version of caplet writes") as caught:
        read_run(tmp_path)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_other_types_are_other_settings_on_resume(tmp_path: Path) -> None:
    _run(tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(json.dumps({**SETTINGS, "reconstruct": [["bias"]]}))
    with pytest.raises(ConfigError, match=r"setting 'reconstruct' was \[\['bias'\]\] and is now None"):
        _run(tmp_path / "run", resume=True)
