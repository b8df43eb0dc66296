"""Fine-tuning in float: it follows labels and teacher, ends where it should, and resumes exactly."""

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet.data import Splits
from caplet.data.imageset import to_float
from caplet.errors import ConfigError, ModelError
from caplet.models.base import CapsNet
from caplet.nn.functional import lengths
from caplet.train.finetune import FinetuneTask, distillation_loss
from caplet.train.loop import train
from caplet.train.settings import FinetuneSettings, TrainSettings
from caplet.train.task import build_model
from caplet.train.trainer import Trainer

Make = Callable[..., TrainSettings]


@pytest.fixture(scope="module")
def teacher(few_digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> CapsNet:
    """A tiny network after four epochs on a hundred digits."""
    settings = TrainSettings(
        model="shallow-digits",
        overrides={"stem": ({"kernel": 3, "channels": 8},), "primary_types": 2, "primary_dim": 4, "class_dim": 4},
        dataset="digits",
        epochs=4,
        batch_size=16,
        lr=5e-3,
        ema=0.9,
        threads=1,
    )
    return train(settings, few_digits, tmp_path_factory.mktemp("teacher"), progress=False).model


@pytest.fixture
def damaged(teacher: CapsNet) -> CapsNet:
    """The teacher with noise on all weights."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * weight.std().nan_to_num() * torch.randn(weight.shape, generator=generator)
    return model


def distance(model: CapsNet, teacher: CapsNet, splits: Splits, *, poses: bool) -> float:
    images = to_float(splits.calibration.images)
    with torch.no_grad():
        a, b = model(images), teacher(images)
    return float(((a - b) if poses else (lengths(a) - lengths(b))).square().mean())


def settings(**changes: Any) -> FinetuneSettings:
    return FinetuneSettings(**{"epochs": 10, "batch_size": 16, "lr": 2e-3, "ema": 0.9, **changes})


@pytest.mark.parametrize("poses", [False, True])
def test_a_teacher_is_followed_without_labels(
    teacher: CapsNet, damaged: CapsNet, few_digits: Splits, tmp_path: Path, poses: bool
) -> None:
    weights = {"distill_poses": 1.0, "distill_lengths": 0.0} if poses else {"distill_lengths": 1.0}
    before = {name: value.clone() for name, value in damaged.state_dict().items()}
    chosen = settings(margin_weight=0.0, **weights)
    result = train(FinetuneTask(chosen, damaged, teacher), few_digits, tmp_path, progress=False)
    far, near = (distance(model, teacher, few_digits, poses=poses) for model in (damaged, result.model))
    assert near < far / 3
    assert all(torch.equal(value, before[name]) for name, value in damaged.state_dict().items())
    history = [row["distillation"] for row in result.history]
    assert history[-1] < history[0] / 3
    assert [row["loss"] for row in result.history] == pytest.approx(history, rel=1e-5)


def test_labels_alone(damaged: CapsNet, few_digits: Splits, tmp_path: Path) -> None:
    result = train(FinetuneTask(settings(), damaged), few_digits, tmp_path, progress=False)
    assert result.history[-1]["margin"] < 0.7 * result.history[0]["margin"]
    assert {row["distillation"] for row in result.history} == {0.0}


def test_the_distance_is_what_it_says() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    a[0, 1, 2], b[1, 0] = 0.5, torch.tensor([0.3, 0.4, 0.0, 0.0])
    chosen = FinetuneSettings(distill_lengths=2.0, distill_poses=3.0)
    assert float(distillation_loss(a, b, chosen)) == pytest.approx((2 + 3) * (0.25 + 0.25) / 2, rel=1e-4)


@pytest.mark.parametrize(("steps", "epochs"), [(4, [4]), (6, [6]), (8, [6, 8]), (100, [6, 12])])
def test_steps_end_a_run(teacher: CapsNet, few_digits: Splits, tmp_path: Path, steps: int, epochs: list[int]) -> None:
    result = train(FinetuneTask(settings(epochs=2, steps=steps), teacher), few_digits, tmp_path, progress=False)
    assert [row["global_step"] for row in result.history] == epochs


def test_an_interrupted_run_resumes_to_the_same_weights(
    teacher: CapsNet, damaged: CapsNet, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, original, count = settings(epochs=2, steps=9), Trainer.step, 0
    whole = train(FinetuneTask(chosen, damaged, teacher), few_digits, tmp_path / "a", progress=False)

    def step(self: Trainer, images: torch.Tensor) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count in (3, 8):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, images)

    monkeypatch.setattr(Trainer, "step", step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(FinetuneTask(chosen, damaged, teacher), few_digits, tmp_path / "b", resume=True, progress=False)
    parts = train(FinetuneTask(chosen, damaged, teacher), few_digits, tmp_path / "b", resume=True, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True))
    with pytest.raises(ConfigError, match="the data of the teacher is not the same"):
        train(FinetuneTask(chosen, damaged, damaged), few_digits, tmp_path / "b", resume=True, progress=False)
    with pytest.raises(ConfigError, match="the data of the model is not the same"):
        train(FinetuneTask(chosen, teacher, teacher), few_digits, tmp_path / "b", resume=True, progress=False)


def test_teachers_and_weights_that_do_not_fit(teacher: CapsNet, few_digits: Splits, tmp_path: Path, tiny: Make) -> None:
    def attempt(other: CapsNet | None, **changes: Any) -> None:
        train(FinetuneTask(settings(**changes), teacher, other), few_digits, tmp_path, progress=False)

    wide = build_model(tiny(overrides={"class_dim": 6}))
    with pytest.raises(ModelError, match="teacher's classes are 4, the model's 10"):
        attempt(build_model(tiny(overrides={"classes": 4})))
    with pytest.raises(ConfigError, match="6 dimensions, the model's 4"):
        attempt(wide, distill_poses=1.0)
    with pytest.raises(ConfigError, match="all weights"):
        attempt(None, margin_weight=0.0)
    assert not any(tmp_path.iterdir())
    attempt(wide, epochs=1, steps=1)  # lengths can be compared


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"finetune: distil_poses: .*did you mean 'distill_poses'"):
        FinetuneSettings.of({"distil_poses": 1.0}, "finetune")
