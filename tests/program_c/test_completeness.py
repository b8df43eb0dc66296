"""Every op has a C function of its kind, a step of the host runtime and random cross-checks."""

from pathlib import Path

import pytest

from caplet.errors import ArtefactError
from caplet.program.c.structure import constants, runtime_files, structures
from caplet.program.op import OPS
from caplet.runtime import compiler
from caplet.runtime.compiler import build_library, compilers
from caplet.runtime.steps import size_checks
from random_ops import RandomOps


@pytest.mark.parametrize("kind", OPS)
def test_op_is_complete_in_c(kind: str) -> None:
    files = runtime_files(host=True)
    assert f"caplet_{kind}(" in files[f"{kind}.c"], "the runtime has no file with this op's function"
    assert f"CAPLET_STEP_{kind.upper()}" in constants(), "host.h has no step of this kind"
    assert isinstance(RandomOps(0).draw(kind).op, OPS[kind])


def test_structures_and_constants_are_read_from_the_headers() -> None:
    assert structures()["caplet_host_step"][2:4] == (("memory", "uint64_t", 5), ("output", "uint64_t", 0))
    assert [name for name, kind, _ in structures()["caplet_votes"] if kind != "*"] == ["stored_rows"]
    assert structures()["caplet_conv_op"][:3] == (("spread", "*", 0), ("multiply", "*", 0), ("any", "*", 0))
    assert structures()["caplet_conv_op"][5:8] == (
        ("weight", "caplet_constant", 0),
        ("acc", "caplet_accumulator", 0),
        ("out", "caplet_format", 0),
    )
    assert (constants()["CAPLET_POWERS"], constants()["CAPLET_STEP_MEMORY"]) == (2, 5)


@pytest.mark.skipif(not compilers(), reason="no C compiler")
def test_a_compiler_with_other_structures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = size_checks().replace("(caplet_squash_op) == ", "(caplet_squash_op) == 1")
    monkeypatch.setattr(compiler, "size_checks", lambda: wrong)
    with pytest.raises(ArtefactError, match="caplet_squash_op_has_another_size"):
        build_library(folder=tmp_path, flags=("-O0",))
