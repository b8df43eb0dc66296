"""Native checkpoints: round trip, equal bytes, atomic writing."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from foreign import shallow_capsnet

from caplet.errors import ArtefactError
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.registry import build

BLOCK = {"types": 2, "dim": 3}
NODE = {"kind": "conv", "name": "conv", "channels": 4, "stride": 2, "activation": "relu6"}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "shallow": (
        "shallow",
        {
            "image": (2, 11, 9),
            "stem": [{"kernel": 3, "channels": 4}, {"kernel": 2, "channels": 3}],
            "primary_kernel": 3,
        },
    ),
    "no biases": ("shallow", {"image": (1, 9, 9), "stem": [], "primary_bias": False, "class_bias": False}),
    "backbone": (
        "backbone",
        {"image": (3, 9, 9), "primary_types": 2, "trunk": {"blocks": [{"name": "a", "nodes": [NODE]}], "eps": 1e-3}},
    ),
    "deep": ("deep", {"image": (3, 9, 9), "channels": 4, "blocks": [BLOCK] * 4, "class_dim": 4, "skip_iterations": 1}),
}


def make(case: str) -> CapsNet:
    torch.manual_seed(1)
    family, config = CONFIGS[case]
    model = build(family, config)
    for _ in range(3):  # moves the batch-norm statistics
        model(torch.rand(4, *model.config.image))
    return model.eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_round_trip(case: str, tmp_path: Path) -> None:
    model = make(case)
    save_model(model, tmp_path / "a.safetensors", {"accuracy": 0.5, "note": "ä"})
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    for (name, ours), (_, theirs) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.stride() == theirs.stride(), name
    images = torch.rand(3, *model.config.image)
    assert torch.equal(loaded(images), model(images))
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = json.loads(file.metadata()["caplet"])
    assert (header["family"], header["metadata"]) == (model.family, {"accuracy": 0.5, "note": "ä"})
    assert build(header["family"], header["config"]).config == model.config


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    save_model(make("deep"), tmp_path / "a", {"b": 1, "a": 2})
    save_model(load_model(tmp_path / "a"), tmp_path / "b", {"a": 2, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_stored_names_follow_the_layers(tmp_path: Path) -> None:
    model = make("deep")
    save_model(model, tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        stored = set(file.keys())
    assert stored == set(named_tensors(model))
    assert len(stored) == len(model.state_dict())
    assert {"conv1.weight", "conv1.batch_norm.running_var", "block4.skip.vote_bias", "digit.bias"} <= stored


def test_loaded_models_train(tmp_path: Path) -> None:
    save_model(make("deep"), tmp_path / "a")
    model = load_model(tmp_path / "a")
    model.train()
    model(torch.rand(2, 3, 9, 9)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_foreign_files_load_too(tmp_path: Path) -> None:
    torch.save(shallow_capsnet().state, tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").config.image == (1, 28, 28)
    assert load_model(tmp_path / "a.safetensors", 27).config.image == (1, 27, 27)


def test_usual_permissions_and_no_leftovers(tmp_path: Path) -> None:
    save_model(make("shallow"), tmp_path / "a")
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "other"}


def test_full_disk_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save_model(make("shallow"), path, {"run": 1})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match=r"cannot write .*a: no space .*make room.*; nothing was changed there"):
        save_model(make("shallow"), path, {"run": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(make("shallow"), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_missing_folder_and_no_permission(tmp_path: Path) -> None:
    save_model(make("shallow"), tmp_path / "none" / "a")
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match=r"not a directory|file exists"):
        save_model(make("shallow"), tmp_path / "file" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtefactError, match="is a directory"):
        save_model(make("shallow"), tmp_path / "folder")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() != 0:
        with pytest.raises(ArtefactError, match="permission denied"):
            save_model(make("shallow"), locked / "a")
    assert not list(locked.iterdir())


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_model(make("shallow"), tmp_path / "a", {"x": object()})
    assert not list(tmp_path.iterdir())
