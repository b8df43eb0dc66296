"""Every op has a C function of its kind, a step of the host runtime and random cross-checks."""

from __future__ import annotations

import pytest

from caplet.program.c.sources import runtime_files
from caplet.program.ops import OPS
from random_ops import RandomOps


@pytest.mark.parametrize("kind", OPS)
def test_op_is_complete_in_c(kind: str) -> None:
    files = runtime_files(host=True)
    assert f"caplet_{kind}(" in files[f"{kind}.c"], "the runtime has no file with this op's function"
    step = f"CAPLET_STEP_{kind.upper()} = {list(OPS).index(kind)},"
    assert step in files["host.h"].replace("\n};", ",\n};")
    assert isinstance(RandomOps(0).draw(kind).op, OPS[kind])
