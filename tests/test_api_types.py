"""What type checkers know about the package: signatures, not Any."""

import subprocess
import sys
from pathlib import Path

import pytest

import caplet

USE = """\
import caplet
reveal_type(caplet.quantize)
reveal_type(caplet.load_data("digits"))
"""


@pytest.mark.slow
def test_a_user_sees_signatures(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(tmp_path / "use.py")]
    project = Path(__file__).parents[1]  # its settings, and what mypy remembers of an earlier run
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    quantize, splits = (line for line in done.stdout.splitlines() if "use.py:" in line)
    assert "QuantizeResult" in quantize, quantize
    assert "Any" not in quantize, quantize
    assert 'Revealed type is "caplet.data.splits.Splits"' in splits, splits


def test_every_name_is_one_of_the_interface() -> None:
    from caplet import api

    assert set(caplet.__all__) - {"__version__"} <= set(api.__all__)
