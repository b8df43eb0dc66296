"""``caplet bench``: its three forms."""

import shlex
from pathlib import Path

import pytest
import typer

from caplet.bench.papers import job as papers
from caplet.bench.papers.rows import NETWORKS
from caplet.bench.speed import job
from caplet.cli.main import app
from caplet.errors import ToolMissing
from conftest import Caplet


def test_help_teaches_all_forms(caplet: Caplet) -> None:
    text = " ".join(caplet("bench", "--help").out.split())
    assert all(form in text for form in ("bench papers", "bench speed", "bench A B"))


def test_speed_prints_sides_and_what_is_left_out(
    caplet: Caplet, tiny_28: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise ToolMissing("no C compiler")

    monkeypatch.setattr(job, "NativeModel", no_compiler)
    monkeypatch.setattr(job, "plain_form", lambda model: None)
    words = ("--batch", 2, "--interpreted", 1, "--turns", 1)
    done = caplet("bench", "speed", tiny_28, *words)
    assert done.code == 0, done.err
    assert all(side in done.out for side in ("PyTorch, caplet", "fake-quant", "interpreter", "1 thread(s)"))
    assert "compiled C: not measured: no C compiler" in done.err
    assert "did you mean 'shallow'" in caplet("bench", "speed", "shalow", *words).error()


def test_papers_makes_rows_and_lists_them(caplet: Caplet, tiny_mnist: Path, tiny_28: Path, tmp_path: Path) -> None:
    given = ("--model", f"q7-mnist={tiny_28}", "--root", tiny_mnist, "--calibration-size", 20, "--only", "q7-mnist-8")
    listed = caplet("bench", "papers", *given, "--list", "--json").json()
    assert [(row["name"], row["missing"]) for row in listed["rows"]] == [("q7-mnist-8", None)]
    done = caplet("bench", "papers", *given, "--out", tmp_path / "run", "--quiet")
    assert done.code == 0
    assert "| Q7-CapsNets | mnist (" in done.out  # these are not the published files, and the page says so
    assert "| 8 bits everywhere |" in done.out
    assert (tmp_path / "run" / "papers.md").read_text() == done.out
    again = caplet("bench", "papers", *given, "--out", tmp_path / "run", "--json").error()
    assert "is not empty" in again


def test_an_interrupted_call_says_how_to_go_on(caplet: Caplet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(papers, "redo_papers", stop)
    done = caplet("bench", "papers", "--force", "--only", "q7", "--out", tmp_path / "run")
    assert done.code == 130
    assert f"go on with: caplet bench papers --only q7 --out {tmp_path / 'run'} --resume" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--model", "model.pt"), "the rule is NAME=FILE"),
        (("--model", "q7-mnist=a", "--model", "q7-mnist=b"), "q7-mnist is given twice"),
        (("--root", "a", "--root", "b"), "the folder is given twice"),
        (("--only", "q8-mnist"), "did you mean 'q7-mnist'"),
    ],
)
def test_papers_refuses(caplet: Caplet, tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    assert part in caplet("bench", "papers", *words, "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


def test_the_commands_that_make_checkpoints_exist() -> None:
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    for network in NETWORKS.values():
        if network.command is not None:
            caplet, name, *words = shlex.split(network.command)
            assert (caplet, name) == ("caplet", "train")
            train.make_context("train", words)
