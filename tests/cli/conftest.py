"""Running the command line in this process."""

import json
import sys
from collections.abc import Callable
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
