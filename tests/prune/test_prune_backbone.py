"""Pruning the CNN under capsules: torch-pruning's groups, targets, adaptive batch norm, the whole path to integers."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caplet.data import Splits
from caplet.data.imageset import ImageSet
from caplet.errors import ConfigError, ModelError, ToolMissing
from caplet.models.backbone import BackboneCaps, backbone_caps
from caplet.models.base import CapsNet
from caplet.models.cost import cost_of
from caplet.prune.backbone import (
    _best,
    judge,
    propose,
    prune_backbone,
    recalibrate,
)
from caplet.prune.backbone_groups import PlainTrunk, group_importance, torch_pruning
from caplet.prune.choices import BackbonePruneSettings
from caplet.prune.scores import measure_scores
from caplet.prune.structure import cut, structure_of
from caplet.train.loss import margin_loss
from quantize_requests import as_measured
from tiny_networks import PRUNED, model_and_images

BACKBONES = [name for name in PRUNED if name.startswith("backbone")]


def backbone(name: str) -> tuple[BackboneCaps, torch.Tensor]:
    model, images = model_and_images(name)
    assert isinstance(model, BackboneCaps)
    return model, images


def image_set(images: torch.Tensor, classes: int) -> ImageSet:
    names = tuple(f"c{i}" for i in range(classes))
    return ImageSet(images, torch.arange(len(images)) % classes, torch.arange(len(images)), names, "noise")


@pytest.mark.parametrize("name", BACKBONES)
def test_plain_modules_compute_what_the_trunk_does(name: str) -> None:
    model, images = backbone(name)
    stages = model.stages()
    state: tuple[torch.Tensor, ...] = (images.float() / 255,)
    with torch.no_grad():
        for stage in stages[:-2]:
            state = stage.run(state)
        ours = torch.nn.functional.conv2d(state[0], model.primary.weight, model.primary.bias)
        theirs = PlainTrunk(model).eval()(images.float() / 255)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*BACKBONES, "mobilenetv2", "resnet50"])
def test_torch_prunings_groups_are_the_rules_spaces(name: str) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = backbone(name)[0] if name in PRUNED else backbone_caps(name, image=(3, 32, 32), width=0.125)
    structure = structure_of(model)
    found = group_importance(model, structure)
    assert {key: len(value) for key, value in found.items()} == {
        key: group.size
        for key, group in structure.groups.items()
        if key.endswith(".channels") or key == "primary.types"
    }
    assert all((value >= 0).all() and value.std() > 0 for value in found.values())


def test_importance_is_of_the_right_channel() -> None:
    pytest.importorskip("torch_pruning")
    model = copy.deepcopy(backbone("backbone")[0])
    structure = structure_of(model)
    with torch.no_grad():
        for name in ("layer2.conv2", "layer2.down", "layer3.conv2"):
            layer = next(layer for layer in model.layers() if layer.name == name)
            layer.get_parameter("weight")[3] = 0.0
            layer.get_submodule("norm").get_parameter("weight")[3] = 0.0
        model.primary.weight[4:8] = 0.0
        model.primary.weight[:, 3] = 0.0
        next(layer for layer in model.layers() if layer.name == "layer3.conv1").get_parameter("weight")[:, 3] = 0.0
    found = group_importance(model, structure)
    assert int(found["layer2.down.channels"].argmin()) == 3
    assert int(found["primary.types"].argmin()) == 1


def test_without_torch_pruning_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ToolMissing, match=r"pip install 'caplet\[pruning\]'"):
        torch_pruning()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("macs", [1.0, 0.75, 0.5, 0.35])
def test_candidates_reach_the_target_and_differ(name: str, macs: float) -> None:
    model, images = backbone(name)
    structure = structure_of(model)
    scores = measure_scores(model, images, None, ["weight"], margin_loss)["weight"]
    settings = BackbonePruneSettings(macs=macs, score="weight", candidates=3, spread=0.9)
    whole = cost_of(model).macs
    candidates = list(propose(model, structure, scores, settings))
    assert len(candidates) == 3
    for selection, kept in candidates:
        assert kept <= macs * whole
        assert kept == cost_of(cut(model, selection)).macs
    shapes = [{key: int(keep.sum()) for key, keep in selection.items()} for selection, _ in candidates]
    if macs == 1.0:
        assert [kept for _, kept in candidates] == [whole] * 3
    elif name == "backbone" and macs <= 0.5:  # the other has too few channels to choose from
        assert shapes[0] != shapes[1] or shapes[0] != shapes[2]


def test_primary_types_follow_the_channels_or_stay() -> None:
    model, images = backbone("backbone")
    structure = structure_of(model)
    scores = measure_scores(model, images, None, ["weight"], margin_loss)["weight"]
    for primary, expected in (("follow", True), ("keep", False)):
        settings = BackbonePruneSettings(macs=0.4, score="weight", candidates=1, primary=primary)  # type: ignore[arg-type]
        ((selection, _),) = propose(model, structure, scores, settings)
        types, last = selection["primary.types"], selection["layer2.down.channels"]
        assert last.mean() < 0.8
        assert types.sum() == (max(1, round(float(last.mean()) * len(types))) if expected else len(types))


def test_the_smallest_share_is_named() -> None:
    model, images = backbone("backbone")
    calibration = image_set(images, 3)
    with pytest.raises(ConfigError, match=r"still needs 0\.\d+ of them"):
        prune_backbone(model, calibration, calibration, BackbonePruneSettings(macs=1e-4, score="weight"), margin_loss)
    with pytest.raises(ConfigError, match=r"unknown score 'wait'; did you mean 'weight'\? \(known: torch-"):
        prune_backbone(model, calibration, calibration, BackbonePruneSettings(macs=0.5, score="wait"), margin_loss)
    plain: CapsNet = model_and_images("shallow")[0]
    with pytest.raises(ModelError, match="no CNN under its capsules"):
        prune_backbone(plain, calibration, calibration, BackbonePruneSettings(macs=0.5), margin_loss)


def test_best_keeps_the_largest_scores() -> None:
    scores = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert _best(scores, 0.4, 1).tolist() == [False, False, False, True, True]
    assert _best(scores, 0.01, 1).sum() == 1
    assert _best(scores, 0.7, 2).sum() == 4
    assert _best(scores, 1.0, 4).sum() == 4
    assert _best(scores, 0.1, 8).sum() == 5


def test_recalibration_measures_the_statistics_of_all_batches() -> None:
    model = copy.deepcopy(backbone("backbone")[0])
    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8)
    weight = model.primary.weight.detach().clone()
    recalibrate(model, images, batch_size=20)
    first = next(layer for layer in model.layers() if layer.name == "stem.conv")
    norm = first.get_submodule("norm")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.trunk.mean, model.config.trunk.std))
    conv = torch.nn.functional.conv2d((images.float() / 255 - mean) / std, first.get_parameter("weight"), None, 2, 1)
    torch.testing.assert_close(norm.running_mean, conv.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    expected = torch.stack([part.var((0, 2, 3)) for part in conv.split(20)]).mean(0)
    torch.testing.assert_close(norm.running_var, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(weight, model.primary.weight)
    assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_the_best_candidate_wins_and_is_whole(digits: Splits) -> None:
    torch.manual_seed(2)
    model = backbone_caps("resnet18", image=(1, 8, 8), width=0.125, class_dim=4).eval()
    train, calibration = digits.train.subset(range(80)), digits.calibration.subset(range(60))
    settings = BackbonePruneSettings(macs=0.5, score="length", candidates=3, images=60, refit=False)
    notes: list[str] = []
    found = prune_backbone(model, train, calibration, settings, margin_loss, notes.append)
    assert [candidate.index for candidate in found.candidates] == [0, 1, 2]
    assert found.best.rank == max(candidate.rank for candidate in found.candidates)
    right, margin = judge(found.model, calibration)
    assert (right, margin) == (found.best.accuracy, found.best.margin)
    assert cost_of(found.model).macs == found.best.macs <= 0.5 * cost_of(model).macs
    assert len(notes) == 3
    assert found.refitted is None
    assert found.best.to_json()["kept"]["primary.types"] == found.model.config.model_dump()["primary_types"]


@pytest.mark.slow
def test_the_whole_path_on_a_tiny_network(digits: Splits, tmp_path: Path) -> None:
    """Train, prune to a quarter of the multiply-accumulates, fine-tune, quantize, lower, verify."""
    from caplet.api import load_program, quantize, verify_engines
    from caplet.models.checkpoint import load_model, save_model
    from caplet.runtime import compilers
    from caplet.train.finetune import FinetuneTask
    from caplet.train.loop import train
    from caplet.train.settings import FinetuneSettings, TrainSettings

    splits = replace(
        digits,
        train=digits.train.subset(range(400)),
        calibration=digits.calibration.subset(range(140)),
        test=digits.test.subset(range(100)),
    )
    whole = backbone_caps("resnet18", image=(1, 8, 8), width=0.25, primary_types=6, class_dim=4).config
    shorter = whole.trunk.model_copy(update={"blocks": whole.trunk.blocks[:4]})
    small = whole.model_copy(update={"trunk": shorter})
    settings = TrainSettings(
        model="resnet18-caps",
        overrides=small.model_dump(mode="json"),
        dataset="digits",
        epochs=3,
        lr=4e-3,
        ema=0.9,
        batch_size=32,
        threads=1,
    )
    trained = train(settings, splits, tmp_path / "train", progress=False)
    score = "torch-pruning" if "torch_pruning" in sys.modules or _has_torch_pruning() else "taylor"
    pruned = prune_backbone(
        trained.model,
        splits.train,
        splits.calibration,
        BackbonePruneSettings(macs=0.25, score=score, candidates=2, images=200),
        margin_loss,
    )
    assert cost_of(pruned.model).macs <= 0.25 * cost_of(trained.model).macs
    assert pruned.refitted == judge(pruned.model, splits.calibration)[0]
    assert pruned.refitted.correct > pruned.best.accuracy.correct
    tuning = FinetuneSettings(epochs=2, lr=2e-3, ema=0.9, batch_size=32, threads=1)
    tuned = train(FinetuneTask(tuning, pruned.model, trained.model), splits, tmp_path / "tune", progress=False)
    assert tuned.calibration_accuracy > 0.2  # of ten classes
    save_model(tuned.model, tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors")
    result = quantize(model, splits, tmp_path / "quantized", as_measured(tolerance=5.0))
    program = load_program(result.models[0].path)
    kinds = {op.kind for op in program.ops}
    assert {"conv2d", "max_pool2d", "add", "squash", "dense_votes", "routing"} <= kinds
    targets = ("interpreter", *(["native"] if compilers() else []))
    verified = verify_engines(program, splits.test.images.numpy()[:40], targets)
    assert [(row.target, row.differing) for row in verified] == [(target, 0) for target in targets]


def _has_torch_pruning() -> bool:
    from importlib.util import find_spec

    return find_spec("torch_pruning") is not None
