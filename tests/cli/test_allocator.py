"""Settings of the process's allocator belong to the command line; the library leaves the process alone."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import caplet
from caplet.cli.main import app
from caplet.data import ImageSet
from caplet.jobs.run import float_predictions
from caplet.quant.plan.calibrate import calibrate
from caplet.train.loss import evaluate
from tiny_networks import model_and_images

SOURCE = Path(caplet.__file__).parent


@pytest.mark.parametrize(("arguments", "calls"), [(["check", "absent.pt"], 1), (["models"], 0), (["--version"], 0)])
def test_commands_that_compute_set_it_once(monkeypatch: pytest.MonkeyPatch, arguments: list[str], calls: int) -> None:
    called: list[bool] = []
    monkeypatch.setattr(sys.modules["caplet.cli.main"], "keep_freed_memory", lambda: called.append(True))
    CliRunner().invoke(app, arguments)
    assert len(called) == calls


def test_the_library_does_not_know_of_it() -> None:
    users = {path for path in SOURCE.rglob("*.py") if {"keep_freed_memory", "mallopt"} & set(words(path))}
    assert users == {SOURCE / "cli" / "main.py"}


def words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").replace("(", " ").replace(".", " ").split()


def test_computing_leaves_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the allocator is none of the library's business")

    model, images = model_and_images("shallow")
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    labels = torch.zeros(len(images), dtype=torch.int64)
    data = ImageSet(images, labels, torch.arange(len(images)), tuple(map(str, range(model.config.classes))), "x")
    assert len(float_predictions(model, data)) == len(images)
    calibrate(model, images)
    evaluate(model, data)
