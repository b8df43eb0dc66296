"""Damaged files of every kind that is read are read, or refused in one line; nothing else happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "hostile_files.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the script watches memory in /proc")
def test_many_of_them(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), "--count", "150", "--seed", "11", "--out", str(tmp_path / "log.jsonl")]
    done = subprocess.run(
        [*command, "--record", str(record)], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    assert found["files"] == 150
    assert found["outcomes"]["refused"] > 75
    assert found["outcomes"]["read"] > 15
