import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize("package", ["caplet.fixed", "caplet.program"])
def test_imports_without_torch(package: str) -> None:
    """A reader of programs needs no torch: the import works where torch cannot be imported."""
    code = f"import sys; sys.modules['torch'] = None; import {package}; assert 'h5py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_program_runs_without_torch() -> None:
    code = f"""
import sys
sys.modules["torch"] = None
sys.path.append({str(SUPPORT)!r})
import numpy as np
from caplet.program import dumps, loads, run
from sample_programs import sample_deep
program = loads(dumps(sample_deep()))
assert run(program, np.zeros((1, *program.image_shape), dtype=np.uint8)).capsules.shape == (1, 5, 6)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
