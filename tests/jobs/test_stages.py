"""Stages: done once, gone on with, done again when their inputs change."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from caplet.errors import ArtefactError
from caplet.runs.folder import RUNNING
from caplet.runs.stages import Done, Stages


class Work:
    """Writes a file, can be made to fail half-way, and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.fails = False

    def __call__(self, folder: Path, resume: bool) -> None:
        self.calls.append(resume)
        folder.mkdir(exist_ok=resume)
        (folder / "half").write_text("half")
        if self.fails:
            raise KeyboardInterrupt
        (folder / "out").write_text("whole")


def do(folder: Path, work: Callable[[Path, bool], None], value: int = 1) -> Done:
    return Stages(folder).do("one", {"value": value}, work, ("out",))


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    work = Work()
    first = do(tmp_path, work)
    second = do(tmp_path, work)
    assert work.calls == [False]
    assert (first.skipped, second.skipped) == (False, True)
    assert first.outputs == second.outputs


def test_an_interrupted_stage_goes_on(tmp_path: Path) -> None:
    work = Work()
    work.fails = True
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, work)
    work.fails = False
    below = tmp_path / "one" / "run"
    below.mkdir()
    (below / ".model.safetensors.x7.part").write_text("what a killed process was writing")
    (below / RUNNING).write_text("")  # says that the run in this folder has not ended; its own business
    do(tmp_path, work)
    assert work.calls == [False, True]
    assert [path.name for path in below.iterdir()] == [RUNNING]


def test_other_inputs_start_again(tmp_path: Path) -> None:
    work = Work()
    work.fails = True
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, work)
    work.fails = False
    do(tmp_path, work, value=2)
    do(tmp_path, work, value=3)
    assert work.calls == [False, False, False]


def test_a_changed_or_missing_output_is_made_again(tmp_path: Path) -> None:
    work = Work()
    do(tmp_path, work)
    (tmp_path / "one" / "out").write_text("edited")
    do(tmp_path, work)
    (tmp_path / "one" / "out").unlink()
    done = do(tmp_path, work)
    assert work.calls == [False, False, False]
    assert (done.folder / "out").read_text() == "whole"


def test_a_stage_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="ended without out"):
        do(tmp_path, lambda folder, resume: folder.mkdir(exist_ok=True))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_stands_in_the_place_of_a_stage_is_removed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one")
    do(tmp_path, Work())
    assert (tmp_path / "one" / "out").read_text() == "whole"
