"""``caplet sweep`` on the command line: its exit codes, in one line each."""

from pathlib import Path
from typing import Any

import pytest

from caplet.jobs.sweep import job
from conftest import Caplet

pytest.importorskip("optuna")


def test_nothing_that_fits_is_exit_code_5(caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "REFUSED", 40)
    done = caplet("sweep", "--data", "digits", "--flash", "9KB", "--ram", "1KB", "--out", tmp_path / "run", "--quiet")
    line = done.err.splitlines()[-1]
    assert (done.code, done.out) == (5, "")
    assert line.startswith("caplet: error: no network within the limits was found among 40 that were drawn")
    assert "bytes of flash instead of 9,000" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-accuracy", "90", "--max-drop", "1"], "both given"),
        (["--set", "leaning_rate=1"], "leaning_rate: no setting of this name"),
        (["--min-accuracy", "101"], "less than or equal to 100"),
        (["--flash", "some"], "size 'some'"),
        (["--data", "nowhere/images"], "no image folder"),
    ],
)
def test_bad_input_is_one_line(options: list[str], words: str, caplet: Caplet, tmp_path: Path) -> None:
    assert words in caplet("sweep", *options, "--quiet", "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_the_result_is_printed_and_a_missed_limit_is_exit_code_5(
    caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {
        "file": "model_satisfied.caplet",
        **{key: {"percent": 90, "low": 85, "high": 95} for key in ("test", "calibration")},
    }
    limits = {name: {"asked": None, "found": 1000} for name in ("flash", "ram", "macs", "errors")}
    metrics: dict[str, Any] = {"met": False, "models": [model], "limits": limits, "outlook": ["more"], "plan": "fast"}
    monkeypatch.setattr("caplet.api.sweep", lambda *given, **options: metrics)
    done = caplet("sweep", "--data", "digits", "--out", tmp_path)
    assert done.code == 5
    assert "test accuracy 90.00 [85.00, 95.00] %" in done.out
    assert "1,000 bytes of flash, 1,000 of RAM" in done.out
    assert done.err.splitlines()[-1].endswith("what would have to give: more")
    assert caplet("sweep", "--data", "digits", "--out", tmp_path, "--json").json()["folder"] == str(tmp_path)
