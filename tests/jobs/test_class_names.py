"""Class names: every model file keeps them, and whatever pairs a model with data compares them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caplet import api
from caplet.data import Splits, load_data, load_saved_splits
from caplet.errors import DataError, ModelError
from caplet.jobs.prune.backbone import prune_backbone_model
from caplet.jobs.run import check, training_notes
from caplet.models.base import CapsNet
from caplet.models.registry import build
from caplet.prune.choices import BackbonePruneSettings
from tiny_networks import CONFIGS

NAMES = list("0123456789")
BACKWARDS = NAMES[::-1]
OTHERS = [f"digit {name}" for name in NAMES]
SMALL = {"stem": ({"kernel": 3, "channels": 4},), "primary_types": 4, "primary_dim": 4, "primary_kernel": 3}


@pytest.fixture
def splits() -> Splits:
    return load_data("digits", calibration_size=60, limit=90)


@pytest.fixture
def model() -> CapsNet:
    torch.manual_seed(3)
    return build("shallow", {"image": (1, 8, 8), **SMALL, "class_dim": 4})


def named(model: CapsNet, classes: list[str], path: Path) -> CapsNet:
    api.save_model(model, path, {"classes": classes})
    return api.load_float(path)


def test_a_file_keeps_the_names(model: CapsNet, tmp_path: Path) -> None:
    assert model.labels == ()
    again = named(model, BACKWARDS, tmp_path / "a.safetensors")
    assert again.labels == tuple(BACKWARDS)
    api.save_model(again, tmp_path / "b.safetensors", {"more": 1})
    assert api.load_float(tmp_path / "b.safetensors").notes == {"classes": BACKWARDS, "more": 1}
    for odd in (10, "0123456789", ["a"], [*range(10)], {}):  # metadata of a file may hold anything
        assert named(model, odd, tmp_path / "c.safetensors").labels == ()  # type: ignore[arg-type]  # that is the test


def test_the_same_names_in_another_order(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    plain = api.evaluate(model, splits.test)
    turned = named(model, BACKWARDS, tmp_path / "model.safetensors")
    found = api.evaluate(turned, splits.test)
    assert found.predictions.tolist() == plain.predictions.tolist()
    assert found.accuracy.correct == int((plain.predictions == 9 - splits.test.labels.numpy()).sum())
    expected = "labels reordered to the model's: the data's classes are 0, 1, 2, 3, ..., the model's 9, 8, 7, 6, ..."
    assert (plain.note, found.note) == ("", expected)
    notes: list[str] = []
    ordered = check(splits, turned, note=notes.append)
    assert notes == [expected]
    assert ordered.info["note"].endswith(expected)
    assert ordered.info["classes"] == list(ordered.train.classes) == BACKWARDS
    assert torch.equal(ordered.train.labels, 9 - splits.train.labels)
    assert ordered.info["hashes"] == {split: getattr(ordered, split).sha256() for split in splits.info["hashes"]}
    assert check(ordered, turned, note=notes.append) is ordered
    assert notes == [expected]
    turned.notes = {"classes": BACKWARDS, "stated": {"iterations": "3"}}
    assert training_notes(ordered, turned) == turned.notes
    ordered.save_ids(tmp_path / "ids.json")
    again = load_saved_splits(tmp_path / "ids.json")
    assert (again.info["hashes"], again.test.classes) == (ordered.info["hashes"], turned.labels)


def test_other_names(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    other = named(model, ["0", *OTHERS[1:]], tmp_path / "model.safetensors")
    message = (
        r"digits/test: the data's classes are 1, 2, 3, 4, \.\.\., the model's digit 1, digit 2, digit 3, digit 4,"
        r" \.\.\.; .* --labels-by-order"
    )
    with pytest.raises(DataError, match=message):
        api.evaluate(other, splits.test)
    with pytest.raises(DataError, match="the model's digit 1"):
        check(splits, other)
    twice = replace(splits.test, classes=("0", "0", *NAMES[2:]))
    with pytest.raises(DataError, match="the data's classes are 0, the model's 1;"):
        api.evaluate(named(model, NAMES, tmp_path / "named.safetensors"), twice)
    by_order = load_data("digits", calibration_size=60, limit=90, labels_by_order=True)
    found, plain = api.evaluate(other, by_order.test), api.evaluate(model, splits.test)
    assert found.accuracy == plain.accuracy
    assert found.note.startswith(
        "labels taken by their order: the data's classes are 1, 2, 3, 4, ..., the model's digit 1"
    )
    assert check(by_order, other).test.classes == other.labels


def test_models_that_work_together(model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    one, other = (named(model, names, tmp_path / "model.safetensors") for names in (NAMES, BACKWARDS))
    assert check(splits, one, model, one) is splits
    with pytest.raises(ModelError, match=r"classes differ, or their order: 0, 1, 2, 3, \.\.\. and 9, 8, "):
        check(splits, one, other)
    with pytest.raises(ModelError, match="classes differ"):
        api.finetune_model(one, splits, tmp_path / "run", teacher=other)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", ["finetune", "qat", "prune"])
def test_jobs_keep_the_models_order(job: str, model: CapsNet, splits: Splits, tmp_path: Path) -> None:
    """Every file that is made from a model has its names, whatever the order of the data's."""
    turned = named(model, BACKWARDS, tmp_path / "model.safetensors")
    right = api.evaluate(turned, splits.test).accuracy.correct
    if job == "prune":
        settings = api.PruneSettings(keep=0.7, epochs=0, images=60, refit=0)
        pruned = api.prune_model(turned, splits, tmp_path / "made", settings)
        assert pruned.original.correct == right
        made = pruned.model, pruned.metrics
    else:
        plan = api.plan_of_widths(turned, splits, "conv1=4/5, primary=3/5, digit=3/5/6") if job == "qat" else None
        tuning = api.finetune_settings({"steps": 1, "threads": 1}, under_plan=job == "qat")
        tuned = api.finetune_model(turned, splits, tmp_path / "made", plan, tuning, engine="interpreter")
        assert tuned.program is None or tuned.program.labels == tuple(BACKWARDS)
        assert tuned.metrics["float"]["test"]["correct"] == right
        made = tuned.model, tuned.metrics
    assert made[0].labels == tuple(BACKWARDS)
    assert "labels reordered" in made[1]["data_note"]
    files = [*(tmp_path / "made").rglob("*.safetensors")]
    assert len(files) == 1 + (job == "prune")
    assert {api.load_float(path).labels for path in files} == {tuple(BACKWARDS)}


def test_a_pruned_backbone_keeps_the_names(tmp_path: Path) -> None:
    splits = load_data("digits", calibration_size=60, limit=90, size=12, channels=3)
    torch.manual_seed(0)
    config = CONFIGS["backbone"].model_copy(update={"classes": 10})
    turned = named(build("backbone", config), BACKWARDS, tmp_path / "model.safetensors")
    settings = BackbonePruneSettings(macs=0.6, score="weight", candidates=1, images=60)
    prune_backbone_model(turned, splits, tmp_path / "run", settings)
    for name in ("pruned", "model"):
        assert api.load_float(tmp_path / "run" / f"{name}.safetensors").labels == tuple(BACKWARDS)


def test_a_trained_model_has_its_datas_names(trained: Path, quantized: Path) -> None:
    assert list(api.load_float(trained / "model.safetensors").labels) == NAMES
    assert list(api.load_program(quantized / "model_satisfied.caplet").labels) == NAMES


def test_a_model_without_names_takes_a_folders_in_their_order(model: CapsNet, digits: Splits) -> None:
    folder = replace(digits, info={**digits.info, "name": "folder", "note": ""})
    notes: list[str] = []
    found = check(folder, model, note=notes.append)
    assert notes == ["the model has no class names; its first ones are taken for 0, 1, 2, 3"]
    assert found.info["note"] == notes[0]
    assert (found.test is folder.test, found.info["hashes"]) == (True, digits.info["hashes"])
    assert check(found, model, note=notes.append) is found
    assert check(digits, model, note=notes.append) is digits
    assert len(notes) == 1


def test_letters_in_one_piece_and_with_their_accent_apart_are_equal(
    model: CapsNet, splits: Splits, tmp_path: Path
) -> None:
    whole, apart = "caf\u00e9", "cafe\u0301"
    mine, its = [apart, *NAMES[1:]], [whole, *NAMES[1:]]
    data = replace(
        splits, **{part: replace(getattr(splits, part), classes=tuple(mine)) for part in splits.info["hashes"]}
    )
    plain, notes = api.evaluate(model, splits.test), list[str]()
    same, turned = (named(model, names, tmp_path / "model.safetensors") for names in (its, its[::-1]))
    assert api.evaluate(same, data.test).accuracy == plain.accuracy
    assert check(data, same, note=notes.append) is data
    assert check(data, same, named(model, mine, tmp_path / "b.safetensors")) is data
    assert notes == []
    found = api.evaluate(turned, data.test)
    assert found.accuracy.correct == int((plain.predictions == 9 - splits.test.labels.numpy()).sum())
    assert check(data, turned).test.classes == tuple(its[::-1])
