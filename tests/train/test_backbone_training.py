"""Training on a CNN under capsules: frozen or not, from pretrained weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caplet.data import Splits
from caplet.errors import ModelError
from caplet.models.backbone import BackboneCaps
from caplet.train.finetune import FinetuneTask
from caplet.train.loop import train
from caplet.train.settings import FinetuneSettings, TrainSettings
from caplet.train.task import RecipeTask

NODES = [
    {"kind": "conv", "name": "conv", "channels": 6, "stride": 2, "padding": 1},
    {"kind": "conv", "name": "depthwise", "source": "conv", "channels": 6, "padding": 1, "depthwise": True},
]
BACKBONE = {
    "model": "resnet18-caps",
    "overrides": {
        "image": (1, 8, 8),
        "architecture": None,
        "trunk": {"blocks": [{"name": "stem", "nodes": NODES}]},
        "primary_types": 3,
        "class_dim": 4,
    },
}


def trunk_values(model: object) -> list[torch.Tensor]:
    assert isinstance(model, BackboneCaps)
    return [value.clone() for value in model.trunk.state_dict().values()]


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_leaves_the_trunk_as_it_was(
    tiny: Callable[..., TrainSettings], few_digits: Splits, tmp_path: Path, freeze: bool
) -> None:
    settings = tiny(**BACKBONE, freeze=freeze, epochs=1)
    before = trunk_values(RecipeTask(settings).model)
    result = train(settings, few_digits, tmp_path, progress=False)
    after = trunk_values(result.model)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(same) if freeze else not any(same[:4])
    assert sum(p.requires_grad for p in result.model.parameters()) > 0


def test_finetuning_can_freeze_too(tiny: Callable[..., TrainSettings], few_digits: Splits, tmp_path: Path) -> None:
    model = RecipeTask(tiny(**BACKBONE)).model
    before = trunk_values(model)
    tuned = train(
        FinetuneTask(FinetuneSettings(freeze=True, threads=1), model), few_digits, tmp_path, progress=False
    ).model
    assert isinstance(tuned, BackboneCaps)
    assert isinstance(model, BackboneCaps)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk_values(tuned), strict=True))
    assert not torch.equal(tuned.primary.weight, model.primary.weight)
    assert not model.frozen  # the model given is left alone


def test_models_without_a_trunk_cannot_be_frozen(tiny: Callable[..., TrainSettings]) -> None:
    with pytest.raises(ModelError, match="no backbone to freeze"):
        RecipeTask(tiny(freeze=True))


def test_pretrained_weights_are_where_training_starts(tiny: Callable[..., TrainSettings], tmp_path: Path) -> None:
    source = RecipeTask(tiny(**BACKBONE, seed=5)).model
    state = {}
    for index, layer in enumerate(list(source.layers())[1:3]):
        state[f"features.{index}.0.weight"] = layer.weight.detach()
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"features.{index}.1.{name}"] = layer.get_submodule("norm").state_dict()[name] + 0.25
    state["classifier.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "weights.pth")
    started = RecipeTask(tiny(**BACKBONE, pretrained=str(tmp_path / "weights.pth"))).model
    first = next(iter(list(started.layers())[1:]))
    assert torch.equal(first.weight, state["features.0.0.weight"])
    assert torch.equal(first.get_submodule("norm").running_mean, state["features.0.1.running_mean"])
