"""Surgery equals masking, for random selections of every model family, and gives ordinary models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caplet.data.imageset import to_float
from caplet.errors import ConfigError, ModelError
from caplet.lower import lower
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.nn.layer import Layer
from caplet.program.interpreter import run
from caplet.prune.choices import UnitKind
from caplet.prune.rules import RULES, rule_of
from caplet.prune.structure import Keep, Structure, cut, structure_of
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import FormatRule
from caplet.quant.plan.plan import QuantPlan
from masked import Masked
from tiny_networks import PRUNED, model_and_images

names = pytest.mark.parametrize("name", PRUNED)


def draw(structure: Structure, seed: int) -> dict[str, Keep]:
    """A random selection over a random choice of groups that leaves no layer empty."""
    rng = np.random.default_rng(seed)
    selection: dict[str, Keep] = {}
    for name, group in structure.groups.items():
        if rng.random() < 0.7:
            keep = rng.random(group.size) < rng.uniform(0.3, 1.0)
            keep[rng.integers(group.size)] = True
            selection[name] = keep
    for voters in structure.voters:
        for units, types, _ in structure.by_source(voters):
            group = voters.sources[0][0] if len(voters.sources) == 1 else None
            alive = units[selection[group][types]] if group in selection else units
            if voters.group in selection and len(alive):
                selection[voters.group][rng.choice(alive)] = True
    return selection


def outputs(model: CapsNet, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(to_float(images))


@names
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_outputs_equal_the_masked_original(name: str, seed: int) -> None:
    model, images = model_and_images(name)
    structure = structure_of(model)
    selection = draw(structure, seed)
    try:
        selection = structure.close(selection)
    except ConfigError:  # a drawn type took the last voting capsule of its source along: another draw
        assume(False)
    pruned = cut(model, selection)
    with model.handle(Masked(model, structure, selection)):
        masked = outputs(model, images)
    result = outputs(pruned, images)
    kept = structure.kept(structure.layers["digit"].units[1], selection)
    torch.testing.assert_close(result, masked[..., torch.from_numpy(kept)], atol=1e-5, rtol=0)
    sizes = {group.name: group.size for group in structure_of(pruned).groups.values()}
    assert sizes == {key: int(keep.sum()) for key, keep in selection.items()}


@names
def test_nothing_removed_changes_nothing(name: str) -> None:
    model, images = model_and_images(name)
    pruned = cut(model, {})
    assert pruned.config == model.config
    torch.testing.assert_close(outputs(pruned, images), outputs(model, images), atol=0, rtol=0)


@names
def test_twice_is_as_good_as_once(name: str) -> None:
    model, images = model_and_images(name)
    structure = structure_of(model)
    halves = {
        group.name: np.arange(group.size) % 2 == 0
        for group in structure.groups.values()
        if group.kind is UnitKind.TYPES
    }
    once = cut(model, {**halves, "digit.dim": np.arange(structure.groups["digit.dim"].size) < 2})
    dims = np.arange(structure_of(once).groups["digit.dim"].size) < 1
    twice = cut(once, {"digit.dim": dims})
    direct = cut(model, {**halves, "digit.dim": np.arange(structure.groups["digit.dim"].size) < 1})
    torch.testing.assert_close(outputs(twice, images), outputs(direct, images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in PRUNED if name != "backbone-gated"])  # its gate has no integers
def test_pruned_models_are_saved_loaded_and_lowered_like_any(name: str, tmp_path: Path) -> None:
    model, images = model_and_images(name)
    structure = structure_of(model)
    group = "digit.capsules" if "digit.capsules" in structure.groups else "digit.dim"  # flat capsules stay
    keep = np.arange(structure.groups[group].size) % 3 != 1
    pruned = cut(model, {group: keep})
    path = tmp_path / "model.safetensors"
    save_model(pruned, path)
    loaded = load_model(path)
    assert loaded.config == pruned.config
    torch.testing.assert_close(outputs(loaded, images), outputs(pruned, images), atol=0, rtol=0)
    calibration, rule = calibrate(loaded, images), FormatRule()
    plan = QuantPlan({key: calibration.format(key, 10, rule) for key in loaded.points()})
    labels = torch.zeros(len(images), dtype=torch.int64)
    evaluator = Evaluator(loaded, images, labels)
    zeros = (run(lower(loaded, plan), images.numpy()).predictions == 0).sum()
    assert abs(evaluator.evaluate(plan).correct - int(zeros)) <= 1  # float sums may differ in the last place


def test_types_go_with_their_last_capsule_and_capsules_with_their_type() -> None:
    model, _ = model_and_images("shallow")
    structure = structure_of(model)
    positions = structure.voters[0].sources[0][1]
    only_first = np.arange(structure.groups["digit.capsules"].size) < 2
    assert cut(model, {"digit.capsules": only_first}).config.model_dump()["primary_types"] == 1
    second = np.array([False, True, False])
    closed = structure.close({"primary.types": second})
    assert closed["digit.capsules"].sum() == positions
    assert cut(model, {"primary.types": second}).config.model_dump()["kept"] is None


def test_a_block_type_without_votes_stays_where_the_next_block_reads_it() -> None:
    model, _ = model_and_images("deep")
    structure = structure_of(model)
    keep = np.ones(structure.groups["digit.capsules"].size, dtype=np.bool_)
    (third, types, _), _ = structure.by_source(structure.voters[0])
    keep[third[types == 0]] = False
    assert structure.close({"digit.capsules": keep})["block3.types"].all()


def test_blocks_3_and_4_share_their_dimensions() -> None:
    structure = structure_of(model_and_images("deep")[0])
    assert "block3.dim" in structure.groups
    assert "block4.dim" not in structure.groups


def test_an_emptied_layer_is_named_with_its_smallest_size() -> None:
    model, _ = model_and_images("shallow")
    with pytest.raises(ConfigError, match=r"primary\.types: all 3 types .* smallest size is 1 \(keep at least 0\.33"):
        cut(model, {"primary.types": np.zeros(3, dtype=np.bool_)})
    with pytest.raises(ConfigError, match=r"conv1\.channels: all 5 channels"):
        cut(model, {"conv1.channels": np.zeros(5, dtype=np.bool_)})
    with pytest.raises(ConfigError, match=r"there is no group 'primary\.typ'"):
        cut(model, {"primary.typ": np.zeros(5, dtype=np.bool_)})
    with pytest.raises(ConfigError, match=r"\(5,\)"):
        cut(model, {"conv1.channels": np.ones(4, dtype=np.bool_)})


def test_every_layer_has_a_rule_that_covers_its_tensors() -> None:
    kinds = {type(layer) for name in PRUNED for layer in model_and_images(name)[0].layers()}
    assert kinds == set(RULES)
    for name in PRUNED:  # structure_of compares names and lengths with those of the layer
        structure_of(model_and_images(name)[0])


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    class Odd(Layer):
        pass

    with pytest.raises(ModelError, match=r"layer odd1: type Odd has no pruning rule; supported types: ConvCaps2d"):
        rule_of(Odd("odd1"), ())
    with pytest.raises(ValueError, match="is registered already"):
        RULES.of(next(iter(RULES)))(next(iter(RULES.values())))
