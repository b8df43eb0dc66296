"""C identifiers: always legal, never two for one table, never one of the runtime's."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caplet.errors import ConfigError
from caplet.program.c.emit import EmitSettings, emit
from caplet.program.c.structure import Identifiers, identifier
from sample_programs import sample_shallow


@given(st.text())
def test_identifiers_are_legal(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", identifier(text))
    assert "__" not in identifier(text)


@given(st.lists(st.text(alphabet="ab._ 2", max_size=5), unique=True))
def test_identifiers_are_unique(texts: list[str]) -> None:
    names = Identifiers()
    given_names = [names.of(text) for text in texts]
    assert len(set(given_names)) == len(texts)
    assert [names.of(text) for text in texts] == given_names


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("net", "net"), ("my.net__v2_", "my_net_v2"), ("int", "m_int"), ("caplet", "m_caplet"), ("table", "m_table")],
)
def test_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    program = replace(sample_shallow(0), name=name)
    assert emit(program, tmp_path / "x").prefix == prefix
    assert f"int {prefix}_run(" in (tmp_path / "x" / f"{prefix}.h").read_text()
    assert emit(program, tmp_path / "y", EmitSettings(prefix=prefix)).prefix == prefix


@pytest.mark.parametrize("prefix", ["1 x", "", "a b", "a__b", "_a", "int", "table", "caplet_x", "a-b", "été"])
def test_a_prefix_that_was_asked_for_is_not_changed(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"prefix {prefix!r}; the rule is a C identifier")):
        emit(sample_shallow(0), tmp_path / "x", EmitSettings(prefix=prefix))
    assert not (tmp_path / "x").exists()
