"""Smallness: how many lines, files and names the package may have. What does not fit asks for a simpler house."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import caplet

SOURCE = Path(caplet.__file__).parent
PYTHON_AND_C = (".py", ".c", ".h")
LINES = 47_100
"""Of Python and C in the package without ``bench/``. The house takes 34,000; readers, kernels, packages the rest."""
FILES = 256
"""Python files in the package without ``bench/``."""
COLUMNS, FILE_LINES = 120, 400


def _sources(*endings: str) -> Iterator[Path]:
    return (path for path in sorted(SOURCE.rglob("*")) if path.suffix in endings and "__pycache__" not in path.parts)


def _house(*endings: str) -> list[Path]:
    return [path for path in _sources(*endings) if path.relative_to(SOURCE).parts[0] != "bench"]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_lines() -> None:
    found = sum(len(_lines(path)) for path in _house(*PYTHON_AND_C))
    assert found <= LINES, f"{found:,} lines of Python and C; the budget is {LINES:,}"


def test_files() -> None:
    found = len(_house(".py"))
    assert found <= FILES, f"{found} Python files; the budget is {FILES}"


@pytest.mark.parametrize("path", list(_sources(*PYTHON_AND_C)), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_crammed(path: Path) -> None:
    lines = _lines(path)
    assert len(lines) <= FILE_LINES, f"{path}: {len(lines)} lines; the rule is at most {FILE_LINES}: one concept?"
    wide = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not wide, f"{path}: more than {COLUMNS} columns in lines {wide}"


def test_no_class_name_occurs_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in _sources(".py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(SOURCE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, f"top-level classes of one name: {twice}"


def test_no_module_name_occurs_twice_in_a_room() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in _sources(".py"):
        parts = path.relative_to(SOURCE).parts
        if len(parts) > 1 and path.name != "__init__.py":
            room = ".".join(parts[:-1]) if parts[0] in ("quant", "jobs", "bench") else parts[0]  # a folder per command
            places[room, path.name].append("/".join(parts))
    twice = [found for found in places.values() if len(found) > 1]
    assert not twice, f"modules of one name inside a room: {twice}"
