"""docs/tutorial.md, run from its first line to its last."""

import json
import re
import shlex
from pathlib import Path

import pytest

from caplet.errors import ToolMissing
from caplet.runtime.emulator import CORTEX_M4
from conftest import Caplet

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def has_device() -> bool:
    """Whether a Cortex-M4 can be built for and emulated here."""
    try:
        CORTEX_M4.require_emulator()
        CORTEX_M4.find_compiler()
    except ToolMissing:
        return False
    return True


@pytest.mark.slow(50)
def test_the_tutorial_runs(caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), {})
    lines = re.findall(r"^\$ caplet (.+)$", text, re.MULTILINE)
    if not has_device():
        lines = [line.replace(",cortex-m4", "").replace("--target cortex-m4", "--target host") for line in lines]
    printed = {}
    for line in lines:
        words = shlex.split(line)
        done = caplet(*words)
        assert done.code == 0, (line, done.out, done.err)
        printed[words[0]] = done.out
    assert list(printed) == ["train", "check", "compress", "inspect", "export", "verify", "report", "eval"]
    assert re.search(r"digit\.votes +\S+ +ram +s\d+\.-?\d+ ", printed["inspect"])
    metrics = json.loads((tmp_path / "runs" / "small" / "metrics.json").read_text())
    assert metrics["missed"] == []
    trained = json.loads((tmp_path / "runs" / "shapes" / "metrics.json").read_text())
    assert trained["test"]["percent"] > 80
    assert (tmp_path / "firmware" / "README.md").exists()
    assert (tmp_path / "shapes.html").stat().st_size > 10_000
