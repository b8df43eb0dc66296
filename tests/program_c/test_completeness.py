"""Every op has a descriptor, a C function of its kind, a step of the host runtime and random cross-checks."""

from __future__ import annotations

import pytest

from caplet.program.c.describe import describe
from caplet.program.c.sources import runtime_files
from caplet.program.ops import OPS, Op
from caplet.runtime.steps import KINDS
from random_ops import RandomOps


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.kind)
def test_op_is_complete_in_c(op: type[Op]) -> None:
    assert describe.dispatch(op) is not describe.dispatch(object), "describe.py has no descriptor"
    files = runtime_files(host=True)
    assert f"caplet_{op.kind}(" in files[f"{op.kind}.c"], "the runtime has no file with this op's function"
    assert f"CAPLET_STEP_{op.kind.upper()} = {KINDS.index(op)}," in files["host.h"].replace("\n};", ",\n};")
    assert isinstance(RandomOps(0).draw(op.kind).op, op)
