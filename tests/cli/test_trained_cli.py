"""Trained networks on the command line: their list, their names in place of a path, the demo that uses one."""

from pathlib import Path

import pytest

from caplet.jobs.trained import trained_networks
from conftest import Caplet

DIGITS = trained_networks()["digits"]


def test_the_list(caplet: Caplet) -> None:
    shown = caplet("models", "--trained")
    assert shown.code == 0
    assert f"{DIGITS.test.percent:.2f}" in shown.out
    rows = caplet("models", "--trained", "--json").json()["trained"]
    assert [row["path"] for row in rows] == [network.path for network in trained_networks().values()]
    assert Path(rows[0]["float"]).stat().st_size == rows[0]["float_bytes"]


def test_the_demo_classifies_at_once(caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = caplet("demo", "--trained")
    assert str(DIGITS.test) in " ".join(shown.out.split())
    assert shown.out.count("taken for") == 4
    assert caplet("demo", "--trained", "--json").json()["accuracy"]["correct"] == DIGITS.test.correct
    assert not list(tmp_path.iterdir())


def test_names_in_place_of_paths(caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("trained:digits", "trained:digits.safetensors"):
        found = caplet("eval", path, "--json").json()
        assert found["accuracy"]["n"] == DIGITS.test.n
        assert (found["engine"] == "torch") == path.endswith("safetensors")
        assert caplet("inspect", path, "--json").json()["kind"] == ("float" if "tensors" in path else "program")
        assert caplet("check", path, "--json").code == 0
    assert caplet("verify", "trained:digits", "--on", "interpreter", "--images", 3).code == 0
    assert caplet("export", "trained:digits").code == 0
    assert (tmp_path / "runs" / "trained-digits" / "export" / "Makefile").exists()
    assert caplet("finetune", "trained:digits", "--steps", 3, "--quiet").code == 0
    assert (tmp_path / "runs" / "trained-digits-finetuned").is_dir()
    assert "did you mean 'trained:digits'" in caplet("eval", "trained:digit").error()
