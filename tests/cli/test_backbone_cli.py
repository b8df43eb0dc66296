"""``caplet train --model`` and ``caplet prune-backbone`` on a tiny CNN."""

import json
from pathlib import Path

from caplet.models.checkpoint import load_model
from conftest import Caplet

TRUNK = (
    'overrides.trunk={blocks=[{name="stem",nodes=[{kind="conv",name="conv",channels=8,stride=2,padding=1},'
    '{kind="conv",name="mix",source="conv",channels=12,padding=1}]}]}'
)
SMALL = (TRUNK, "overrides.primary_types=4", "overrides.class_dim=4", "epochs=1", "threads=1", "calibration_size=60")


def test_train_a_model_by_name_then_prune_its_cnn(tmp_path: Path, caplet: Caplet) -> None:
    changes = [part for change in SMALL for part in ("--set", change)]
    folder, model = tmp_path / "run", tmp_path / "run" / "model.safetensors"
    done = caplet("train", "--model", "resnet18-caps", "--data", "digits", "--limit", 160, "--out", folder, *changes)
    assert done.code == 0, done.err
    assert "test accuracy" in done.out
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["recipe"], settings["model"]) == ("backbone-cifar10", "resnet18-caps")
    before = load_model(model)
    assert before.family == "backbone"

    data = ("--data", "digits", "--limit", 120, "--calibration-size", 60)
    command = ("prune-backbone", model, "--score", "length", "--candidates", 2, "--threads", 1, *data)
    done = caplet(*command, "--macs", 0.5, "--out", tmp_path / "pruned", "--json")
    assert done.code == 0, done.err
    assert "candidate 0" in done.err
    metrics = done.json()
    assert 0.3 < metrics["macs_kept"] <= 0.5
    assert len(metrics["candidates"]) == 2
    after = load_model(metrics["model"]).config.model_dump()
    assert after["primary_types"] < before.config.model_dump()["primary_types"]
    assert "is not empty" in caplet(*command, "--macs", 0.5, "--out", tmp_path / "pruned").error()
    assert "macs" in caplet(*command, "--macs", 2, "--out", tmp_path / "other").error()


def test_freeze_and_pretrained_need_a_cnn_and_a_file(tmp_path: Path, caplet: Caplet) -> None:
    assert "no backbone to freeze" in caplet("train", "--recipe", "digits", "--freeze", "--out", tmp_path / "a").error()
    missing = ("--pretrained", tmp_path / "no.pth", "--data", "digits", "--channels", 3, "--size", 16)
    done = caplet("train", "--model", "mobilenetv2-caps", *missing, "--out", tmp_path / "b")
    assert "no.pth: no such file" in done.error()
