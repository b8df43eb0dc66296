"""What a frozen trunk gives for every image: computed once, as it would be in every step, never of other images."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_backbone_training import BACKBONE, NODES

from caplet.data import Splits
from caplet.data.imageset import to_float
from caplet.errors import ArtefactError, ConfigError, ModelError
from caplet.files import locked
from caplet.models.trunk import TrunkModule
from caplet.train import features
from caplet.train.features import FeatureStore, view_count
from caplet.train.finetune import FinetuneTask
from caplet.train.loop import CHECKPOINT, FEATURES, train
from caplet.train.settings import FinetuneSettings, TrainSettings
from caplet.train.task import RecipeTask

TWO_BLOCKS = {
    "blocks": [
        {"name": "stem", "nodes": NODES},
        {"name": "last", "nodes": [{"kind": "conv", "name": "conv", "channels": 5}]},
    ]
}
Make = Callable[..., TrainSettings]


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images have passed each block of a trunk."""
    count: dict[str, int] = {}
    forward = TrunkModule.forward

    def counted(self: TrunkModule, x: torch.Tensor) -> torch.Tensor:
        count[self.block.name] = count.get(self.block.name, 0) + len(x)
        return forward(self, x)

    monkeypatch.setattr(TrunkModule, "forward", counted)
    return count


def frozen(tiny: Make, **changes: Any) -> TrainSettings:
    return tiny(**{**BACKBONE, "freeze": True, "flip": True, "initial_norm": None, **changes})


def store(tiny: Make, folder: Path, **changes: Any) -> tuple[FeatureStore, RecipeTask]:
    task = RecipeTask(frozen(tiny, **changes))
    return FeatureStore(folder, task.frozen, task.settings, stopped=lambda: False), task


def test_every_view_passes_the_trunk_once(
    tiny: Make, few_digits: Splits, tmp_path: Path, passed: dict[str, int]
) -> None:
    train(frozen(tiny, epochs=4), few_digits, tmp_path, progress=False)
    # two views of 100 images and one of 50, one image more for each file's shape, and the last word in float32
    assert passed == {"stem": 2 * 100 + 50 + 3 + 50}
    assert not (tmp_path / FEATURES).exists()  # of no use once the run is finished


def test_features_train_as_the_images_do(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    plain = {"shift": 0, "flip": False}
    on_features = train(frozen(tiny, **plain), few_digits, tmp_path / "a", progress=False)
    on_images = train(frozen(tiny, **plain, views=0), few_digits, tmp_path / "b", progress=False)
    for a, b in zip(on_features.history, on_images.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)  # float16 has 11 bits
    for a, b in zip(on_features.model.parameters(), on_images.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_views_are_the_image_its_mirror_image_and_shifts(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    files, task = store(tiny, tmp_path, views=4)
    found = files.of(task.model, few_digits.train, "train", 4)
    pixels = to_float(few_digits.train.images)
    with torch.no_grad():
        for view, images in enumerate((pixels, pixels.flip(3))):
            expected = task.model.stages()[1].run((task.model.stages()[0].run((images,))[0],))[0]
            np.testing.assert_allclose(found.views[view], expected.numpy(), rtol=1e-3, atol=1e-6)
    assert len({view.tobytes() for view in found.views}) == 4
    values = found.drawn(torch.tensor([3, 7]), torch.Generator().manual_seed(0))
    assert values.dtype == torch.float32
    assert all(
        any(np.array_equal(value, view[i]) for view in found.views) for i, value in zip((3, 7), values, strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "views"),
    [({}, 2), ({"flip": False}, 1), ({"views": 9}, 9), ({"shift": 0, "views": 9}, 2), ({"flip": False, "views": 3}, 3)],
)
def test_no_more_views_than_the_augmentation_has(tiny: Make, changes: dict[str, Any], views: int) -> None:
    assert view_count(frozen(tiny, **changes)) == views


def test_features_of_other_images_weights_and_settings_are_refused(
    tiny: Make, few_digits: Splits, tmp_path: Path
) -> None:
    files, task = store(tiny, tmp_path)
    files.of(task.model, few_digits.train, "train", 2)
    files.of(task.model, few_digits.train, "train", 2)  # the same again
    others = few_digits.train.subset(range(99, -1, -1))
    with pytest.raises(ConfigError, match=r"train-0\.npy: features of other images than this run's: choose another"):
        files.of(task.model, others, "train", 2)
    with pytest.raises(ConfigError, match="features of other images"):
        files.of(task.model, replace(few_digits.train, ids=few_digits.train.ids + 1), "train", 2)
    with torch.no_grad():
        task.model.get_parameter("trunk.0.layers.0.weight")[0, 0, 0, 0] += 1
    with pytest.raises(ConfigError, match="features of other weights"):
        files.of(task.model, few_digits.train, "train", 2)
    files, task = store(tiny, tmp_path, precision="bfloat16")
    with pytest.raises(ConfigError, match="features of other settings"):
        files.of(task.model, few_digits.train, "train", 2)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a system that cannot reserve room for a file")
def test_a_full_disk_is_an_error_and_no_crash(
    tiny: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    files, task = store(tiny, tmp_path)
    with pytest.raises(ArtefactError, match=r"cannot write the features.*no space left on device"):
        files.of(task.model, few_digits.train, "train", 1)


def test_a_record_of_more_images_than_there_are_is_refused(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    files, task = store(tiny, tmp_path)
    files.of(task.model, few_digits.train, "train", 1)
    beside = tmp_path / "train-0.json"
    record = json.loads(beside.read_text())
    for done in (-1, len(few_digits.train) + 1):
        beside.write_text(json.dumps({**record, "done": done}))
        with pytest.raises(ArtefactError, match=f"is damaged: done is {done}"):
            files.of(task.model, few_digits.train, "train", 1)


def test_damaged_features_are_refused(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    files, task = store(tiny, tmp_path)
    files.of(task.model, few_digits.train, "train", 1)
    path, beside = tmp_path / "train-0.npy", tmp_path / "train-0.json"
    data, record = path.read_bytes(), beside.read_text()
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:-2], b"", b"not an array"):
        path.write_bytes(wrong)
        with pytest.raises(ArtefactError, match=f"{path} is damaged: .*; delete {tmp_path}"):
            files.of(task.model, few_digits.train, "train", 1)
    path.unlink()
    with pytest.raises(ArtefactError, match="no such file"):
        files.of(task.model, few_digits.train, "train", 1)
    beside.write_text(json.dumps({**json.loads(record), "done": "all"}))
    with pytest.raises(ArtefactError, match="done is 'all'"):
        files.of(task.model, few_digits.train, "train", 1)


def test_two_processes_do_not_write_one_folder(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    files, task = store(tiny, tmp_path)
    with locked(tmp_path, "--features"), pytest.raises(ArtefactError, match=r"in use by .*; wait for it or choose"):
        files.of(task.model, few_digits.train, "train", 1)
    files.of(task.model, few_digits.train, "train", 1)


def test_values_beyond_float16_are_refused(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    files, task = store(tiny, tmp_path)
    with torch.no_grad():
        task.model.get_parameter("trunk.0.layers.1.norm.bias").fill_(1e5)
    with pytest.raises(ModelError, match="too large to be kept: set views=0"):
        files.of(task.model, few_digits.train, "train", 1)


def test_a_stopped_computation_goes_on(
    tiny: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: dict[str, int]
) -> None:
    monkeypatch.setattr(features, "CHUNK", 16)
    whole, task = store(tiny, tmp_path / "whole")
    expected = whole.of(task.model, few_digits.train, "train", 2)
    files, _ = store(tiny, tmp_path / "parts")
    calls = iter([False] * 4 + [True] * 3)
    with pytest.raises(KeyboardInterrupt):
        replace(files, stopped=lambda: next(calls)).of(task.model, few_digits.train, "train", 2)
    done = json.loads((tmp_path / "parts" / "train-0.json").read_text())["done"]
    assert 0 < done < 100
    passed.clear()
    found = files.of(task.model, few_digits.train, "train", 2)
    assert passed["stem"] == 200 - done + 2
    assert all(np.array_equal(a, b) for a, b in zip(found.views, expected.views, strict=True))


def test_a_stopped_run_on_features_gives_what_an_uninterrupted_one_gives(
    tiny: Make, few_digits: Splits, tmp_path: Path
) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    settings = frozen(tiny, epochs=3)
    whole = train(settings, few_digits, tmp_path / "a", progress=False, features=tmp_path / "shared")
    with pytest.raises(KeyboardInterrupt):
        train(settings, few_digits, tmp_path / "b", progress=False, on_epoch=stop)
    resumed = train(settings, few_digits, tmp_path / "b", progress=False, resume=True)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sorted(path.name for path in (tmp_path / "shared").glob("[!.]*")) == sorted(
        f"{name}.{kind}" for name in ("train-0", "train-1", "calibration-0") for kind in ("npy", "json")
    )


def test_a_run_begun_before_there_were_features_goes_on_as_it_began(
    tiny: Make, few_digits: Splits, tmp_path: Path, passed: dict[str, int]
) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(frozen(tiny), few_digits, tmp_path, progress=False, on_epoch=stop)
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del checkpoint["features"], checkpoint["made"]["views"], checkpoint["made"]["freeze_to"]
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    passed.clear()
    train(frozen(tiny), few_digits, tmp_path, progress=False, resume=True)
    assert passed["stem"] == 96 + 50 + 50  # six steps, and the calibration split twice


def test_a_trunk_is_frozen_up_to_a_block(tiny: Make, few_digits: Splits, tmp_path: Path) -> None:
    overrides = {**BACKBONE["overrides"], "trunk": TWO_BLOCKS}  # type: ignore[dict-item]
    settings = frozen(tiny, freeze=False, freeze_to="stem", overrides=overrides)
    before = RecipeTask(settings).model.state_dict()
    after = train(settings, few_digits, tmp_path, progress=False).model.state_dict()
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    assert all(equal for name, equal in same.items() if name.startswith("trunk.0"))
    assert not any(equal for name, equal in same.items() if name.startswith("trunk.1"))
    with pytest.raises(ModelError, match="unknown block of the trunk 'stm'; did you mean 'stem'"):
        RecipeTask(frozen(tiny, freeze_to="stm"))


def test_what_needs_the_images_gets_them(tiny: Make, few_digits: Splits) -> None:
    model = RecipeTask(tiny(**BACKBONE)).model
    assert not RecipeTask(frozen(tiny, decoder="dense")).on_features
    assert not RecipeTask(frozen(tiny, views=0)).on_features
    assert not RecipeTask(frozen(tiny, freeze=False)).on_features
    assert FinetuneTask(FinetuneSettings(freeze=True), model).on_features
    assert not FinetuneTask(FinetuneSettings(freeze=True), model, model).on_features
