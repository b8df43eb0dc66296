"""A killed run goes on to the very result of an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow(40)
@pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")
def test_a_compression_killed_at_random_points_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "7", "--only", "compress"]
    command += ["--out", str(tmp_path / "log.jsonl"), "--record", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    assert found["jobs"]["compress"]["files_compared"] > 40
    assert found["signals_sent"] >= 2 > found["of_them_after_the_end"]
    assert found["equal"] == found["trials"] >= 1
    assert found["half_written_files_left"] == 0
