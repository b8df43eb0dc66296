"""The documentation: examples that run, commands that exist, links that lead somewhere."""

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from caplet.cli.main import app
from caplet.errors import CapletError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
RUN = ("arithmetic.md", "adding.md", "networks.md")
"""Pages whose Python runs without any data."""
METHODS = ("qcapsnets", "progressive", "ilp", "reconstruction", "routing", "finetune", "pruning", "backbones", "sweep")
"""Pages of methods."""
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


def command_of(line: str) -> tuple[Any, str, list[str]]:
    """The typer command of a command line, its name, and the words after it; KeyError where there is none."""
    command, name, words = typer.main.get_command(app), "caplet", shlex.split(line, comments=True)
    while hasattr(command, "commands") and words and words[0] != "--help":
        if name == "bench" and words[0] not in command.commands:
            words = ["models", *words]
        name, *words = words
        command = command.commands[name]
    return command, name, words


@by_page
def test_command_lines_parse(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = "\n".join(re.findall(r"^```\w*\n.*?^```|^ {4}[^\n]*$", text, re.DOTALL | re.MULTILINE))
    for line in re.findall(r"^(?:\$ | {4})?caplet (.+)$", code, re.MULTILINE):
        command, name, words = command_of(line)
        if "--help" not in words:
            command.make_context(name, words)  # a wrong option, choice or number raises; nothing is run


def commands_below(command: Any) -> Iterator[Any]:
    yield command
    for sub in getattr(command, "commands", {}).values():
        yield from commands_below(sub)


def test_examples_of_the_help_parse_and_stand_alone() -> None:
    texts = [inspect.cleandoc(command.help or "") for command in commands_below(typer.main.get_command(app))]
    examples = [part for text in texts for part in text.split("\n\n") if "Example:" in part]
    assert len(examples) > 10
    for line in "\n".join(examples).replace("\\\n", " ").splitlines():
        assert line.startswith("Example: caplet "), f"not an example, but in one's paragraph: {line}"
        for part in line.removeprefix("Example: caplet ").split(" && caplet "):
            command, name, words = command_of(part)
            command.make_context(name, words)


@by_page
def test_commands_named_in_the_text_and_their_options_exist(page: Path) -> None:
    for line in re.findall(r"`caplet ([a-z]+(?: [^`]*)?)`", page.read_text(encoding="utf-8")):
        command, _, words = command_of(line)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help"}, f"{page.name}: caplet {line}: unknown {sorted(given - known)}"


@pytest.mark.parametrize("name", METHODS)
def test_pages_of_methods_say_whose_they_are_and_when_to_use_them(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(r"\b(19|20)\d\d\b", text)
    assert re.search(r"^## .*(caplet differs|differs from the papers)", text, re.MULTILINE)
    assert re.search(r"^## When to use it\n\n\w", text, re.MULTILINE)
    headings = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert headings == ["What", "When", "Example", "How", "Measured", "Sources"]


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


MOST_WORDS = 700
"""Words of the README, code, table and links included."""


def test_the_readme_is_short() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= MOST_WORDS


def test_records_name_no_folder_of_the_machine_they_were_made_on() -> None:
    """Data are below ../shared or ROOT, runs below RUNS."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "records").glob("*.json")}
    assert len(texts) > 50
    found = {name: re.findall(r"""(?:^|[\s="'])(/\w[\w.-]*/[\w./-]*)""", text) for name, text in texts.items()}
    assert not {name: paths for name, paths in found.items() if paths}


def test_figures_of_the_readme_stand_in_records() -> None:
    """Every accuracy and every byte count of the table is that of one record."""
    records = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "records").glob("*.json")]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \w+-?Caps(?:Nets)?, .*$", text, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        size = cells[3].split(" ")[0].replace(",", "")
        wanted = [f'"percent": {float(cell.removesuffix(" %"))}' for cell in cells[1:3]] + [f'"file_bytes": {size}']
        rates = re.findall(r"[\d,]+(?= and |, \w+ thread)", cells[4])
        holding = [text for text in records if all(re.search(rf"{re.escape(word)}\b", text) for word in wanted)]
        assert holding, f"no record holds {wanted}"
        medians = {round(float(found)) for text in holding for found in re.findall(r'"median": ([\d.]+)', text)}
        assert {int(rate.replace(",", "")) for rate in rates} <= medians


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_exit_codes_are_those_of_the_errors() -> None:
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert {kind.exit_code for kind in (CapletError, *CapletError.__subclasses__())} <= listed


def test_what_the_design_names_exists() -> None:
    """Every dotted name of a module, class or function, and every path of a source file."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(caplet\.[\w.]+)(?:\(\))?`", text))
    assert len(names) >= 20
    for name in sorted(names):
        parts = name.split(".")
        found: Any = importlib.import_module(parts[0])
        for index, part in enumerate(parts[1:], start=2):
            if inspect.ismodule(found) and hasattr(found, "__path__") and not hasattr(found, part):
                importlib.import_module(".".join(parts[:index]))
            assert hasattr(found, part), f"docs/design.md: {name}: no {part} in {found}"
            found = getattr(found, part)
    for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"docs/design.md: {path}"
