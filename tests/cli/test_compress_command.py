"""``caplet compress`` in other people's hands: mistakes, interruptions, full disks, limits out of reach."""

import errno
import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from caplet.runs.folder import open_run
from conftest import Caplet

SETTINGS = """
model = {model}
data = "digits"
calibration_size = 120
[limits]
max_drop = 20.0
[prune]
probes = [0.5]
probe_steps = 5
least_steps = 20
[quantize]
probes = [8, 4]
reconstruct = []
[verify]
images = 2
timed = 1
"""


@pytest.fixture
def settings(trained: Path, tmp_path: Path) -> Path:
    """A settings file for a compression of a few seconds."""
    path = tmp_path / "compress.toml"
    path.write_text(SETTINGS.format(model=json.dumps(str(trained / "model.safetensors"))))
    return path


@pytest.mark.slow
def test_interrupted_it_prints_the_command_that_goes_on(
    caplet: Caplet, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        replace(source, target)
        if str(target).endswith("point.json"):
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "a folder"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        done = caplet("compress", "--settings", settings, "--out", out, "--quiet")
    assert done.code == 130
    told = next(line for line in done.err.splitlines() if line.startswith("go on with: caplet "))
    words = shlex.split(told.removeprefix("go on with: caplet "))
    assert words == ["compress", "--settings", str(settings), "--out", str(out), "--quiet", "--resume"]

    line = caplet("report", out).error()
    assert "is not finished" in line
    assert "--resume" in line

    assert caplet(*words).code == 0
    assert caplet("report", out).code == 0
    assert (out / "report.html").exists()


def test_a_second_process_is_refused(caplet: Caplet, settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with open_run(out, {}):
        for options in ((), ("--resume",), ("--force",)):
            assert (
                "in use by another caplet process"
                in caplet("compress", "--settings", settings, "--out", out, *options).error()
            )
    assert not (out / "metrics.json").exists()


@pytest.mark.slow
def test_a_full_disk_is_named_and_gone_on_from(
    caplet: Caplet, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run whose disk is full three times: in a training, in a quantization, at the end."""
    replace = os.replace
    arguments, run = ("compress", "--settings", settings, "--out", tmp_path / "run", "--quiet"), tmp_path / "run"
    for name, options in (
        ("train.ckpt", ()),
        ("model_satisfied.caplet", ("--resume",)),
        ("model.caplet", ("--resume",)),
    ):

        def full(source: Any, target: Any, name: str = name) -> None:
            if str(target).endswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            line = caplet(*arguments, *options).error()
        assert name in line
        assert "no space left on device" in line.lower()
        assert "make room" in line
        assert not list(run.rglob(name))
        assert not (run / "metrics.json").exists()
        assert {path.name for path in run.rglob("*.part")} <= {".run.part"}
    assert caplet(*arguments, "--resume").code == 0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("max_drop = 20.0", "max_drop = 15.0", "setting 'limits.max_drop' was 20.0 and is now 15.0"),
        ("calibration_size = 120", "calibration_size = 130", "setting 'calibration_size' was 120 and is now 130"),
        ("probes = [0.5]", "probes = [0.4]", "setting 'prune.probes' was [0.5] and is now [0.4]"),
    ],
)
def test_changed_settings_are_named(
    caplet: Caplet, settings: Path, tmp_path: Path, before: str, after: str, message: str
) -> None:
    from caplet.api import compress_settings, load_data, load_float
    from caplet.train.finetune import weights_digest

    read = compress_settings(settings, {})
    data = load_data("digits", calibration_size=120)
    resolved = {
        **read.model_dump(mode="json", exclude={"assume", "labels_by_order"}),
        "weights": weights_digest(load_float(read.model)),
        "data_hashes": data.info["hashes"],
    }
    with open_run(tmp_path / "run", resolved):
        pass
    settings.write_text(settings.read_text().replace(before, after))
    assert message in caplet("compress", "--settings", settings, "--out", tmp_path / "run", "--resume").error()
    settings.write_text(settings.read_text().replace(after, before))
    stopped = {**resolved, "weights": "0" * 64}
    with open_run(tmp_path / "run", stopped, force=True):
        pass
    line = caplet("compress", "--settings", settings, "--out", tmp_path / "run", "--resume").error()
    assert "setting 'weights' was '0000" in line
    assert "use the same settings, model and data" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prune]\nprobess = [0.5]", "prune.probess: no setting of this name (found [0.5]); did you mean 'probes'?"),
        ("[limit]\nflash = 3", "did you mean 'limits'?"),
        ("limits = 3", "limits: a table of settings is needed (found 3)"),
    ],
)
def test_unknown_settings_are_named(caplet: Caplet, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'recipe = "digits"\n{text}\n')
    line = caplet("compress", "--settings", path, "--out", tmp_path / "run").error()
    assert message in line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_limits_out_of_reach_are_told(caplet: Caplet, settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--accept", "measured", "--max-drop", 1, "--flash", "15KB", "--macs", 30000)
    done = caplet("compress", "--settings", settings, "--out", out, *options, "--quiet", "--json")
    assert done.code == 5
    found = done.json()
    assert not found["met"]
    assert found["limits"]["macs"]["found"] <= 30000, "the limit is measured though it is not among the probes"
    assert found["missed"] == ["flash"] or found["missed"] == ["max_drop", "flash"] or found["missed"] == ["max_drop"]
    assert found["outlook"]
    line = done.err.splitlines()[-1]
    assert f"misses {', '.join(found['missed'])}. What would have to give: {'; or '.join(found['outlook'])}" in line
    assert (out / "model.caplet").exists()
    assert (out / "report.html").exists()
    assert {name for attempt in found["attempts"] for name in attempt["missed"]} >= set(found["missed"])
