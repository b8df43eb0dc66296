"""The loop: what it learns, when it stops, what it returns and writes, and that it never sees the test split."""

import csv
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caplet.data import ImageSet, Splits
from caplet.errors import CapletError, ConfigError, DataError, ModelError
from caplet.models.checkpoint import load_model, save_model
from caplet.models.plain import PlainCnn
from caplet.nn.caps import DenseCaps
from caplet.nn.device import mixed
from caplet.train import task
from caplet.train.loop import LOG, train
from caplet.train.loss import ClassificationScore, evaluate
from caplet.train.settings import TrainSettings
from caplet.train.task import build_model

Make = Callable[..., TrainSettings]


def test_it_learns(tiny: Make, digits: Splits, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    result = train(tiny(epochs=6), digits, tmp_path, progress=False, on_epoch=records.append)
    assert records == result.history
    assert [row["epoch"] for row in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert result.calibration_accuracy > 0.5
    assert result.images_per_second > 0
    assert result.seconds > 0


def test_the_returned_model_is_the_best_averaged_one_ready_for_use(
    tiny: Make, few_digits: Splits, tmp_path: Path
) -> None:
    result = train(tiny(epochs=4), few_digits, tmp_path, progress=False)
    assert not result.model.training
    accuracies = [row["calibration_accuracy"] for row in result.history]
    assert result.calibration_accuracy == max(accuracies)
    assert accuracies[result.epoch - 1] == max(accuracies)
    assert evaluate(result.model, few_digits.calibration).accuracy == result.calibration_accuracy


def test_early_stopping_keeps_the_best_epoch(
    tiny: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = iter([10, 30, 20, 30, 25, 40, 40])  # the third epoch without a rise is the fifth
    monkeypatch.setattr(task, "evaluate", lambda *_, **__: ClassificationScore(next(correct), 50, 0.0))
    result = train(tiny(epochs=7, patience=3), few_digits, tmp_path, progress=False)
    assert len(result.history) == 5
    assert result.epoch == 4  # of the equals 2 and 4, the longer trained


def test_keep_last(tiny: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = iter([30, 20, 20])
    monkeypatch.setattr(task, "evaluate", lambda *_, **__: ClassificationScore(next(correct), 50, 0.0))
    assert train(tiny(keep="last"), few_digits, tmp_path, progress=False).epoch == 2


def test_the_test_split_is_never_touched(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    plain = train(tiny(), few_digits, tmp_path / "a", progress=False)
    empty = few_digits.test.subset([])
    without = train(tiny(), replace(few_digits, test=empty), tmp_path / "b", progress=False)
    assert torch.equal(plain.model.digit.weight, without.model.digit.weight)


def test_the_seed_decides(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    a = train(tiny(epochs=1), few_digits, tmp_path / "a", progress=False)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    b = train(tiny(epochs=1), few_digits, tmp_path / "b", progress=False)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    c = train(tiny(epochs=1, seed=1), few_digits, tmp_path / "c", progress=False)
    assert torch.equal(a.model.digit.weight, b.model.digit.weight)
    assert not torch.equal(a.model.digit.weight, c.model.digit.weight)


def test_a_loss_that_is_not_finite_names_step_and_rate(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(CapletError, match=r"loss of step \d+ in epoch 1 is (nan|inf) at learning rate 1e\+30"):
        train(tiny(lr=1e30, schedule="constant", initial_norm=None), few_digits, tmp_path, progress=False)


def test_data_that_does_not_fit(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it takes 1x9x9 images"):
        train(tiny(overrides={"image": (1, 9, 9)}), few_digits, tmp_path, progress=False)
    with pytest.raises(ModelError, match="it has 4 classes"):
        train(tiny(overrides={"classes": 4}), few_digits, tmp_path, progress=False)
    empty = replace(few_digits, calibration=few_digits.calibration.subset([]))
    with pytest.raises(DataError, match="calibration"):
        train(tiny(), empty, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        train(tiny(), few_digits, tmp_path, progress=False, device="abacus")
    assert not any(tmp_path.iterdir())


def test_fewer_images_than_a_batch(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    small: ImageSet = few_digits.train.subset(range(11))
    result = train(tiny(epochs=1), replace(few_digits, train=small), tmp_path, progress=False)
    assert result.history[0]["global_step"] == 1


def test_the_log_has_steps_and_epochs(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    result = train(tiny(decoder="dense"), few_digits, tmp_path, progress=False, log_steps=3, tensorboard=True)
    with (tmp_path / LOG).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["global_step"]) for row in rows] == [
        ("step", "3"),
        ("step", "6"),
        ("epoch", "6"),
        ("step", "9"),
        ("step", "12"),
        ("epoch", "12"),
    ]
    assert float(rows[-1]["loss"]) == result.history[-1]["loss"]
    loss, parts = (float(rows[-1][k]) for k in ("loss", "margin")), float(rows[-1]["reconstruction"])
    total, margin = loss
    assert total == pytest.approx(margin + 0.392 * parts, rel=1e-5)
    assert any((tmp_path / "tensorboard").iterdir())


def test_progress_goes_to_stderr(
    tiny: Make, few_digits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(epochs=1), few_digits, tmp_path / "a", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "calibration" in err
    train(tiny(epochs=1), few_digits, tmp_path / "b", progress=False)
    assert capfd.readouterr() == ("", "")


def test_signal_handlers_are_given_back(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny(epochs=1), few_digits, tmp_path, progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_threads_are_set_and_given_back(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    seen: list[int] = []
    train(
        tiny(threads=3), few_digits, tmp_path, progress=False, on_epoch=lambda _: seen.append(torch.get_num_threads())
    )
    assert seen == [3, 3]
    assert torch.get_num_threads() == 1


def test_mixed_precision_routes_in_float32(tiny: Make, few_digits: Splits) -> None:
    model, seen = build_model(tiny()), []
    digit = next(m for m in model.modules() if isinstance(m, DenseCaps))
    digit.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    images = torch.rand(2, 1, 8, 8)
    with mixed(model, torch.device("cpu"), "bfloat16"):
        model(images)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(torch.float32, torch.float32)]
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError), mixed(model, torch.device("cpu"), "bfloat16"):
        digit(torch.rand(2, 3, 5))  # wrong shape: the layer fails inside
    assert not torch.is_autocast_enabled("cpu")
    with mixed(model, torch.device("cpu"), "float32"):
        assert not torch.is_autocast_enabled("cpu")


def test_hard_margins_begin_where_they_are_told_to(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    settings = tiny(hard_margins=0.5)  # 2 epochs of 6 steps
    used: list[tuple[float, ...]] = []
    original = task.margin_loss

    def note(lengths: torch.Tensor, labels: torch.Tensor, *margins: float) -> torch.Tensor:
        used.append(margins)
        return original(lengths, labels, *margins)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "margin_loss", note)
        train(settings, few_digits, tmp_path, progress=False)
    assert used == [(0.9, 0.1, 0.5)] * 6 + [(0.95, 0.05, 0.8)] * 6


def test_a_plain_cnn_of_the_size_of_a_model_trains_by_the_same_settings(
    tiny: Make, digits: Splits, tmp_path: Path
) -> None:
    capsules = build_model(tiny())
    settings = tiny(model="cnn-like:shallow-digits", epochs=8, initial_norms={"digit": 0.3})
    result = train(settings, digits, tmp_path, progress=False)
    assert isinstance(result.model, PlainCnn)
    assert result.model.parameter_count() == pytest.approx(capsules.parameter_count(), rel=0.04)
    assert result.calibration_accuracy > 0.5
    save_model(result.model, tmp_path / "cnn.safetensors")
    assert evaluate(load_model(tmp_path / "cnn.safetensors"), digits.calibration).accuracy == (
        result.calibration_accuracy
    )


def test_training_that_does_not_start_is_said(
    tiny: Make, digits: Splits, few_digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(lr=1e-9, epochs=1, initial_norm=None), few_digits, tmp_path / "a")
    shown = " ".join(capsys.readouterr().err.split())
    assert "warning: training has not started" in shown
    assert "initial_norms.digit=1.5" in shown
    train(tiny(epochs=2), digits, tmp_path / "b")
    assert "not started" not in capsys.readouterr().err.splitlines()[-1]


def test_images_are_blended_until_margins_are_hard(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    asked: list[tuple[float, bool]] = []
    settings = tiny(epochs=4, mixup=0.4, hard_margins=0.5)

    class Watched(task.RecipeTask):
        def losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            asked.append((self.done, labels.is_floating_point()))
            return super().losses(images, labels)

    train(Watched(settings), few_digits, tmp_path, progress=False)
    assert {done < 0.5 for done, _ in asked} == {True, False}
    assert all(blended == (done < 0.5) for done, blended in asked)
    with pytest.raises(ConfigError, match="mixup"):
        train(tiny(mixup=0.4, decoder="dense"), few_digits, tmp_path / "drawn", progress=False)
