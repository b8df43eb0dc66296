"""A killed compression goes on to the very result of an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_compress.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork")
def test_killed_at_random_points_it_resumes_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "7", "--out", str(record)]
    command += ["--model", str(trained / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    assert found["files_compared"] > 20
    assert [row["different"] for row in found["trials"]] == [[], []]
    assert [row["unfinished"] for row in found["trials"]] == [[], []]
    assert sum("ended" not in kill for row in found["trials"] for kill in row["kills"]) >= 1
