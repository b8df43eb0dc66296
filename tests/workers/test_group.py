"""Processes that compute one result together: what one would; and one line where one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from caplet.data import Splits, load_data
from caplet.data.imageset import to_float
from caplet.errors import ConfigError, WorkerError
from caplet.jobs.prune.job import prune
from caplet.jobs.prune.settings import PruneSettings
from caplet.models.backbone import backbone_caps
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.prune.choices import UnitKind
from caplet.prune.scores import SCORES, measure_scores
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan
from caplet.runs.records import KEPT
from caplet.train.backend import MEASURED, Backend
from caplet.train.finetune import FinetuneTask
from caplet.train.loop import train
from caplet.train.loss import margin_loss
from caplet.train.qat import QatSettings, QatTask
from caplet.train.settings import FinetuneSettings, TrainSettings
from caplet.train.task import RecipeTask, Task
from caplet.train.trainer import Trainer
from caplet.workers import group
from caplet.workers.group import Group, current, join
from worker_tasks import fails, troubled

pytestmark = pytest.mark.slow(2)

SIZES = {"stem": ({"kernel": 3, "channels": 8},), "primary_types": 4, "primary_dim": 4, "class_dim": 4}
TINY = {"batch_size": 15, "lr": 5e-3, "ema": 0.9, "threads": 1}
RECIPE = {**TINY, "model": "shallow-digits", "overrides": SIZES, "dataset": "digits", "epochs": 2, "decoder": "dense"}


def few() -> Splits:
    """96 images to train on, 60 to calibrate with, 40 to test on."""
    whole = load_data("digits")
    cut = {"train": 96, "calibration": 60, "test": 40}
    return replace(whole, **{name: getattr(whole, name).subset(range(count)) for name, count in cut.items()})


def shallow() -> CapsNet:
    torch.manual_seed(3)
    return build("shallow", {"image": (1, 8, 8), "primary_kernel": 3, **SIZES}).eval()


def on_a_trunk() -> CapsNet:
    """With batch norms."""
    torch.manual_seed(2)
    return backbone_caps("resnet18@layer1_1", image=(1, 8, 8), width=0.125, class_dim=4).eval()


def under_a_plan(data: Splits, **changes: Any) -> QatTask:
    model = shallow()
    plan = uniform_plan(model, calibrate(model, data.calibration.images), 4)
    return QatTask(QatSettings.of({**TINY, "exponents": "learned", **changes}), model, model, plan)


def one_step(task: Task[Any], data: Splits) -> dict[str, Tensor]:
    """The gradients of 15 images, what batch norms have seen of them, and what was measured."""
    backend = Backend("cpu")
    task.to(backend.device)
    with backend.training(task):
        measured = backend.gradients(task, to_float(data.train.images[:15]), data.train.labels[:15])
    found = {name: each.grad for name, each in task.network.named_parameters() if each.grad is not None}
    return {**found, **dict(task.model.named_buffers()), "measured": torch.tensor(measured)}


def everything(folder: Path) -> dict[str, Any]:
    """What one process and several must compute alike."""
    data = few()
    seen = data.calibration
    told: list[tuple[int, int]] = []
    scores = measure_scores(
        *(shallow(), seen.images, seen.labels, list(SCORES), margin_loss),
        batch_size=9,
        progress=lambda done, total: told.append((done, total)),
    )
    asked = PruneSettings(keep=0.5, units=tuple(UnitKind), epochs=1, batch_size=15, refit=0, images=60, threads=1)
    pruned = prune(shallow(), data, folder / "pruned", asked)
    trunk, tuned = on_a_trunk(), FinetuneSettings.of({**TINY, "distill_poses": 0.1})
    learned = under_a_plan(data, exponents_lr=0.5, steps=5, watch_steps=2)
    frozen = FinetuneTask(FinetuneSettings.of({**TINY, "freeze": True, "flip": True, "steps": 4}), trunk)
    return {
        "told": told[-1],
        "scores": {(score, space): sums for score, by in scores.items() for space, sums in by.items()},
        "kept": (folder / "pruned" / KEPT).read_text(),
        "after pruning": pruned.metrics["rounds"][0]["calibration"],
        "gradients": one_step(FinetuneTask(tuned, trunk, trunk), data),
        "gradients with a decoder": one_step(RecipeTask(TrainSettings.of(RECIPE)), data),
        "gradients under a plan": one_step(under_a_plan(data), data),
        "trained under a plan": train(learned, data, folder / "learned", progress=False).history,
        "plan": {key: fmt.to_json() for key, fmt in learned.plan.points.items()},
        "trained on features": train(frozen, data, folder / "frozen", progress=False).history,
        "trained": train(TrainSettings.of(RECIPE), data, folder / "trained", progress=False).history,
    }


def rendezvous() -> dict[str, str]:
    """What torchrun says to two processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def start(rank: int, told: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1] / "support")])
    environment = {**os.environ, **told, "RANK": str(rank), "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)


@dataclass
class Pair:
    """What one process found, and two; and how the second of the two ended."""

    one: dict[str, Any]
    two: dict[str, Any]
    errors: list[str]
    code: int
    said: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """This process as the first of two."""
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("pair")
    torch.set_num_threads(1)
    one, told, errors = everything(folder / "one"), rendezvous(), []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**told, "RANK": "0"}.items():
            patch.setenv(name, value)
        other = start(1, told, "-c", "from caplet.workers.group import join; join()")
        try:
            join()
            with pytest.raises(ValueError) as raised:
                current().each(troubled, Factor(2), [0, 1, 3, 4], lambda done: None)
            errors.append(str(raised.value))
            two = everything(folder / "two")
            current().start(fails)
            with pytest.raises(WorkerError) as lost:
                current().deal([0, 1])
            errors.append(str(lost.value))
            said = other.communicate(timeout=60)[1]
        finally:
            current().end()
            other.kill()
    torch.set_num_threads(threads)
    return Pair(one, two, errors, other.returncode, said)


@dataclass
class Factor:
    """Stands for a sheet."""

    factor: int


def test_scores_and_kept_units_are_those_of_one_process(pair: Pair) -> None:
    """To the last bit: sums go in the order of the batches; scores that are no sums over images are not added up."""
    assert pair.one["scores"].keys() == pair.two["scores"].keys()
    assert {score for score, _ in pair.one["scores"]} == set(SCORES)
    for name, values in pair.one["scores"].items():
        assert np.array_equal(values, pair.two["scores"][name]), name
    assert pair.one["told"] == pair.two["told"] == (60, 60)
    assert pair.one["kept"] == pair.two["kept"]
    assert pair.one["after pruning"] == pair.two["after pruning"]


def test_gradients_are_those_of_the_whole_batch(pair: Pair) -> None:
    """Of 15 images among two, with batch norms, a teacher, a decoder, and trained exponents."""
    for kind in ("gradients", "gradients with a decoder", "gradients under a plan"):
        one, two = pair.one[kind], pair.two[kind]
        assert one.keys() == two.keys()
        largest = max(float(value.abs().max()) for value in one.values())
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-7 * largest, msg=f"{kind}: {name}")
    assert any("running_var" in name for name in pair.one["gradients"])
    assert pair.one["gradients"]["measured"][MEASURED.index("distillation")] > 0
    assert pair.one["gradients with a decoder"]["measured"][MEASURED.index("reconstruction")] > 0


def test_training_goes_as_in_one_process(pair: Pair) -> None:
    """Two epochs of 6 steps; under a plan whose exponents are trained and move; on features of a frozen trunk."""
    for kind in ("trained", "trained under a plan", "trained on features"):
        one, two = pair.one[kind], pair.two[kind]
        assert len(one) == len(two)
        for before, after in zip(one, two, strict=True):
            assert after["global_step"] == before["global_step"]
            for name in ("loss", "margin", "reconstruction", "calibration_loss", "accuracy", "calibration_accuracy"):
                assert after[name] == pytest.approx(before[name], rel=1e-4), (kind, name)
    assert pair.one["plan"] == pair.two["plan"]


def test_errors_of_other_processes_are_told_here(pair: Pair) -> None:
    """A task's error leaves the processes together; one outside of tasks ends its process."""
    assert pair.errors == ["no such thing", "process 1 of 2 failed: ValueError: no such thing"]
    assert (pair.code, pair.said) == (WorkerError.exit_code, "")
    assert current().count == 1


@pytest.mark.slow(20)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_command_in_one_line(tmp_path: Path, lost: int) -> None:
    """In the middle of training."""
    words = ["-m", "caplet", "train", "--recipe", "digits", "--limit", "64", "--quiet", "--set", "epochs=10000"]
    words += ["--set", "calibration_size=40", "--out", str(tmp_path / "run")]
    told = rendezvous()
    both = [start(rank, told, *words) for rank in (0, 1)]
    victim, other = both[lost], both[1 - lost]
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "train.ckpt").exists() and time.monotonic() < until and other.poll() is None:
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    said = other.communicate(timeout=60)[1]
    assert other.returncode == WorkerError.exit_code
    assert said.startswith(f"caplet: error: process {lost} of 2 is lost: no sign of life for")
    assert len(said.splitlines()) == 1
    assert victim.communicate(timeout=60)[1] == ""


def test_processes_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**rendezvous(), "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(group, "START", 1.0)
    with pytest.raises(ConfigError, match=r"the 2 processes did not meet at 127\.0\.0\.1:\d+ within 1 s"):
        join()
    assert current().count == 1


def test_a_process_of_another_version_is_refused_by_name() -> None:
    class Store:
        def get(self, key: str) -> bytes:
            return b"caplet 9.9 and torch 9.9"

    with pytest.raises(WorkerError, match=r"process 3 is refused: it has caplet 9\.9 and torch 9\.9, here is caplet"):
        group._meet(Store(), 3, 4)


def test_commands_that_nothing_is_shared_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from caplet.cli.main import app

    for name, value in {**rendezvous(), "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["quantize", "trained:digits"])
    assert "torchrun is for train, finetune, prune" in str(done.exception)


def test_more_processes_than_images_in_a_batch() -> None:
    backend = Backend("cpu")
    backend.group = Group(0, 16)
    with pytest.raises(ConfigError, match="batch_size 15 is too small for 16 processes"):
        Trainer(RecipeTask(TrainSettings.of(RECIPE)), few(), backend)
