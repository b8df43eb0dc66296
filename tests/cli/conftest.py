"""Running the command line: in this process, or in one of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    def error(self) -> str:
        """The one line of a user error, after checking that it is one, with nothing on stdout."""
        lines = self.err.splitlines()
        assert self.code == 3, (self.code, self.err)
        assert lines[-1].startswith("caplet: error: "), self.err
        assert [line for line in lines if "error" in line.lower()] == [lines[-1]], self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[-1]


Caplet = Callable[..., Done]


@pytest.fixture
def caplet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caplet:
    """``caplet("eval", path, "--json")`` as on the command line."""
    from caplet.cli import main

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["caplet", *map(str, arguments)])
        capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return Done(int(code or 0), out, err)

    return run


FORKS = """
import json, os, sys
import torch._dynamo  # which every training needs
from caplet import api
from caplet.cli import main
api.load_data("digits")
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(job["out"], os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(job["err"], os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["caplet", *job["words"]]
        exec(job["before"])
        main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs commands, each in a process that is forked from this one, which has imported what takes seconds."""


@pytest.fixture(scope="session")
def forks() -> Iterator[Callable[[dict[str, Any]], int]]:
    """Runs a job for :data:`FORKS` and gives the exit code of its process; a signal is below 0."""
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ask, answer = process.stdin, process.stdout
        assert ask is not None
        assert answer is not None

        def run(job: dict[str, Any]) -> int:
            print(json.dumps(job), file=ask, flush=True)
            return int(answer.readline())

        yield run
        ask.close()


Process = Callable[..., Done]


@pytest.fixture
def process(forks: Callable[[dict[str, Any]], int], tmp_path_factory: pytest.TempPathFactory) -> Process:
    """``process("models", out="/dev/full")``: ``caplet models`` in a process of its own, which ends as a program does.

    ``out`` and ``err`` are files for what it prints; ``before`` is Python that it runs first.
    """
    folder = tmp_path_factory.mktemp("process")

    def run(*arguments: object, out: str = "", err: str = "", before: str = "") -> Done:
        files = [out or str(folder / "out"), err or str(folder / "err")]
        for name in ("out", "err"):
            (folder / name).write_text("")
        words = [*map(str, arguments)]
        code = forks({"words": words, "out": files[0], "err": files[1], "before": before})
        return Done(code, (folder / "out").read_text(), (folder / "err").read_text())

    return run
