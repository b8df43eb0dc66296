"""The documentation: examples that run, commands that exist, links that lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from caplet.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
RUN = ("arithmetic.md", "adding.md")
"""Pages whose Python runs without any data."""
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", RUN)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "docs" / name, "python")
    assert found
    exec(compile("\n".join(found), name, "exec"), {})


@by_page
def test_python_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@by_page
def test_commands_and_their_options_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^\$ caplet (.+)$", text, re.MULTILINE) + re.findall(r"`caplet ([a-z]+(?: [^`]*)?)`", text)
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        assert name in commands, f"{page.name}: caplet {line}"
        known = {
            option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help"}, f"{page.name}: caplet {line}: unknown {sorted(given - known)}"


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
