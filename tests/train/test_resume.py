"""A run that was interrupted or killed anywhere and resumed equals an uninterrupted one, bit for bit."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caplet.data import Splits
from caplet.errors import ArtefactError, ConfigError
from caplet.train import loop
from caplet.train.loop import CHECKPOINT, LOG, TrainResult, train
from caplet.train.settings import TrainSettings
from caplet.train.trainer import Trainer

Make = Callable[..., TrainSettings]
TIMES = ("seconds", "images_per_second")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "decoder": "conv",
        "precision": "bfloat16",
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "clip_norm": 0.5,
        "flip": True,
        "patience": 2,
    },
}


def same(a: TrainResult, b: TrainResult) -> bool:
    """Whether weights, buffers and history (but times) are equal."""
    history = [[{k: v for k, v in row.items() if k not in TIMES} for row in r.history] for r in (a, b)]
    x, y = a.model.state_dict(), b.model.state_dict()
    equal = x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
    return equal and history[0] == history[1] and a.calibration_accuracy == b.calibration_accuracy


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Callable[[], None]]], None]:
    """``at_step({7: action})``: do something before the 7th step from now (from 1)."""
    original = Trainer.step

    def install(actions: dict[int, Callable[[], None]]) -> None:
        count = 0

        def step(self: Trainer, chosen: Tensor) -> dict[str, Any]:
            nonlocal count
            count += 1
            if count in actions:
                actions[count]()
            return original(self, chosen)

        monkeypatch.setattr(Trainer, "step", step)

    return install


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop handles it."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_in_mid_epoch_and_at_its_end(
    variant: str, tiny: Make, few_digits: Splits, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    settings = tiny(**VARIANTS[variant])
    whole = train(settings, few_digits, tmp_path / "whole", progress=False, log_steps=2)
    # 6 steps per epoch: stop in the first epoch, on its last step, and in the second
    at_step({2: send(signal.SIGINT), 6: send(signal.SIGTERM), 9: send(signal.SIGINT)})
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(settings, few_digits, tmp_path / "parts", resume=True, progress=False, log_steps=2)
    parts = train(settings, few_digits, tmp_path / "parts", resume=True, progress=False, log_steps=2)
    assert same(whole, parts)
    assert rows(tmp_path / "whole" / LOG) == rows(tmp_path / "parts" / LOG)


@pytest.mark.parametrize("step", [1, 5, 8, 12])
def test_killed_without_warning(
    step: int, tiny: Make, few_digits: Splits, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    settings = tiny(decoder="dense")
    whole = train(settings, few_digits, tmp_path / "whole", progress=False, log_steps=1)
    at_step({step: kill})
    minutes = 0.0 if step == 5 else 5.0  # every step has a checkpoint, or only every epoch
    with pytest.raises(Killed):
        train(settings, few_digits, tmp_path / "b", progress=False, log_steps=1, checkpoint_minutes=minutes)
    parts = train(settings, few_digits, tmp_path / "b", resume=True, progress=False, log_steps=1)
    assert same(whole, parts)
    assert rows(tmp_path / "whole" / LOG) == rows(tmp_path / "b" / LOG)


def test_killed_between_the_log_and_the_checkpoint(
    tiny: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    whole = train(settings, few_digits, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        saves = [loop.save_state] * 11 + [lambda *_: kill()]
        patch.setattr(loop, "save_state", lambda *args: saves.pop(0)(*args))
        with pytest.raises(Killed):  # the last step of an epoch is saved, then its end is logged, then the kill
            train(settings, few_digits, tmp_path / "b", progress=False, checkpoint_minutes=0.0)
    (tmp_path / "b" / LOG).open("a").write("step,2,9")  # and a row cut short
    assert same(whole, train(settings, few_digits, tmp_path / "b", resume=True, progress=False))
    assert rows(tmp_path / "whole" / LOG) == rows(tmp_path / "b" / LOG)


def test_resuming_a_finished_run_gives_its_result(
    tiny: Make, few_digits: Splits, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    first = train(tiny(), few_digits, tmp_path, progress=False)
    at_step({1: kill})
    assert same(first, train(tiny(), few_digits, tmp_path, resume=True, progress=False))


def test_a_run_is_not_overwritten(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"something")
    with pytest.raises(ArtefactError, match="exists"):
        train(tiny(), few_digits, tmp_path, progress=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == b"something"


def test_other_settings_or_data_are_refused_and_named(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    train(tiny(epochs=1), few_digits, tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"setting 'epochs' was 1, now 2; setting 'lr' was 0.005, now 0.1"):
        train(tiny(lr=0.1), few_digits, tmp_path, resume=True, progress=False)
    other = Splits(few_digits.train.subset(range(99)), few_digits.calibration, few_digits.test, few_digits.info)
    with pytest.raises(ConfigError, match="the data of split 'train' is not the same"):
        train(tiny(epochs=1), other, tmp_path, resume=True, progress=False)


def test_a_setting_that_is_newer_than_the_checkpoint_counts_as_its_default(
    tiny: Make, few_digits: Splits, tmp_path: Path
) -> None:
    train(tiny(epochs=1), few_digits, tmp_path, progress=False)
    record = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del record["made"]["clip_norm"]
    torch.save(record, tmp_path / CHECKPOINT)
    train(tiny(epochs=1), few_digits, tmp_path, resume=True, progress=False)
    with pytest.raises(ConfigError, match=r"setting 'clip_norm' was null, now 2\.0"):
        train(tiny(epochs=1, clip_norm=2.0), few_digits, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("size", [0, 10, 5000, 1 << 40])
def test_a_damaged_checkpoint_is_a_clear_error(size: int, tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    train(tiny(epochs=1), few_digits, tmp_path, progress=False)
    assert (tmp_path / CHECKPOINT).stat().st_size > 5000
    os.truncate(tmp_path / CHECKPOINT, size)  # what is added is a hole, which takes no room and no memory
    with pytest.raises(ArtefactError, match=r"train\.ckpt"):
        train(tiny(epochs=1), few_digits, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("made", [{("a", "b"): "1"}, {None: "1"}, {"seed": 1}, ["seed"]])
def test_a_checkpoint_of_other_types_is_a_clear_error(
    made: Any, tiny: Make, few_digits: Splits, tmp_path: Path
) -> None:
    train(tiny(epochs=1), few_digits, tmp_path, progress=False)
    record = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    torch.save({**record, "made": made}, tmp_path / CHECKPOINT)
    with pytest.raises(
        ArtefactError, match=r"train\.ckpt is damaged or not a training checkpoint; delete it to start anew"
    ):
        train(tiny(epochs=1), few_digits, tmp_path, resume=True, progress=False)


def test_a_checkpoint_cannot_run_code(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"format": "caplet-training", "version": 1, "x": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(ArtefactError, match="not a training checkpoint"):
        train(tiny(), few_digits, tmp_path, resume=True, progress=False)
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_cannot_be_written(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write"):
        train(tiny(), few_digits, tmp_path / "file" / "run", progress=False)
