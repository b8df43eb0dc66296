"""What the doctor says: the truth, and what to do."""

import importlib.util
import subprocess
import sys
from importlib.metadata import version

import pytest

from caplet.runtime import compiler, doctor
from caplet.runtime.doctor import examine


def test_what_is_here_is_found() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert findings["numpy"].about == version("numpy")
    assert findings["Python"].found
    assert findings["cache folder"].found
    for finding in findings.values():
        assert finding.found or finding.install, finding
    if findings["C compiler"].found:
        assert findings["compiled runtime"].found


def test_what_is_absent_is_named_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str) -> object:
        return None if name in ("torch", "ziglang") else find_spec(name)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", without)
    monkeypatch.setattr(compiler, "_examine", compiler._examine.__wrapped__)  # what was found before is remembered
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    findings = {finding.name: finding for finding in examine()}
    for name in ("torch", "C compiler", "cortex-m4 emulator", "cortex-m4 compiler"):
        assert not findings[name].found
        assert "install" in findings[name].install
    assert findings["torch"].required
    assert not findings["cortex-m4 emulator"].required


def test_an_unwritable_cache_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "file"))
    finding = next(finding for finding in examine() if finding.name == "cache folder")
    assert not finding.found
    assert "CAPLET_CACHE" in finding.install


def test_the_command_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
sys.argv = ["caplet", "doctor", "--json"]
from caplet.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert '"findings"' in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
