"""Whole pruning runs on a tiny trained network."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caplet.data import Splits, load_data
from caplet.errors import ArtefactError, CapletError, ConfigError
from caplet.jobs.prune import job
from caplet.jobs.prune.job import prune
from caplet.jobs.prune.settings import PruneSettings
from caplet.jobs.report import write_report
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.models.cost import cost_of
from caplet.prune.choices import Allocation


@pytest.fixture(scope="module")
def network(trained: Path) -> CapsNet:
    return load_model(trained / "model.safetensors")


@pytest.fixture(scope="module")
def few() -> Splits:
    return load_data("digits", calibration_size=120, limit=240)


def test_one_shot_to_a_share_of_the_macs(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    notes: list[str] = []
    result = prune(network, few, tmp_path / "run", PruneSettings(macs=0.4, epochs=1), note=notes.append)
    assert result.met
    assert cost_of(result.model).macs <= 0.4 * cost_of(network).macs < 1.25 * cost_of(result.model).macs
    loaded = load_model(result.path)
    assert loaded.config == result.model.config
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test" if "test" in metrics else "pruned"]["test"]["n"] == len(few.test)
    (record,) = metrics["rounds"]
    assert record["images_trained"] <= len(few.train)
    assert record["refitted"] == ["primary"]
    assert record["calibration_before"]["correct"] > record["calibration_cut"]["correct"]
    kept = json.loads((tmp_path / "run" / "kept.json").read_text())
    types = kept["spaces"]["primary.types"]["kept"]
    assert len(types) == loaded.config.model_dump()["primary_types"]
    voting = np.array(kept["votes"]["primary"])
    assert (voting.sum(1) > 0).nonzero()[0].tolist() == types
    assert any("of the MACs" in note for note in notes)
    assert b"<svg" in (tmp_path / "run" / "survivors.svg").read_bytes()
    assert set(metrics["activity"]["pruned"]["entropy"]) == {"digit"}


def test_refitting_that_does_harm_is_undone(
    network: CapsNet, few: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(model: CapsNet, smaller: CapsNet, *rest: Any, **options: Any) -> tuple[CapsNet, tuple[str, ...]]:
        broken = copy.deepcopy(smaller)
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.mul_(-1)
        return broken, ("primary",)

    monkeypatch.setattr("caplet.jobs.prune.job.refitted", harm)
    result = prune(network, few, tmp_path / "run", PruneSettings(macs=0.4, epochs=0))
    (record,) = result.metrics["rounds"]
    assert record["refitted"] == []
    assert record["calibration"] == record["calibration_before"] == record["calibration_cut"]


def test_without_refitting_the_weights_are_the_originals(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    result = prune(network, few, tmp_path / "run", PruneSettings(macs=0.4, epochs=0, refit=0))
    (record,) = result.metrics["rounds"]
    assert record["refitted"] == []
    assert record["calibration"] == record["calibration_before"] == record["calibration_cut"]
    spaces = json.loads((tmp_path / "run" / "kept.json").read_text())["spaces"]
    channels, types = (spaces[name]["kept"] for name in ("conv1.channels", "primary.types"))
    dim = spaces["primary.dim"]["of"]
    left, original = (model.state_dict()["primary.weight"].unflatten(0, (-1, dim)) for model in (result.model, network))
    torch.testing.assert_close(left, original[types][:, :, channels], rtol=0, atol=0)


def test_idle_units_go_for_free_and_the_page_says_so(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    idle = copy.deepcopy(network)
    tensors = dict(idle.named_parameters())
    with torch.no_grad():
        tensors["stem.0.bias"][3] = -100.0
        tensors["primary.weight"].unflatten(0, (8, -1))[5] = 0.0
        tensors["primary.bias"].unflatten(0, (8, -1))[5] = 0.0
    notes: list[str] = []
    result = prune(idle, few, tmp_path / "run", PruneSettings(keep=1.0, epochs=0), note=notes.append)
    removed = result.metrics["dead_removed"]
    assert removed["primary.types"] >= 1
    assert removed["conv1.channels"] >= 1
    assert result.metrics["activity"]["pruned"]["dead"]["primary.types"] == 0
    assert any("never active" in note for note in notes)
    assert result.against.n10 == result.against.n01 == 0
    page = write_report([result.folder]).read_text()
    assert f"{removed['primary.types']} removed for free; 0 in the pruned network" in page
    for words in ("Coupling entropy", "Entropy of the couplings of digit", "primary: position"):
        assert words in page


def test_rounds_keep_track_of_the_original_units(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    settings = PruneSettings(keep=0.3, rounds=2, epochs=0, units=("types", "capsules"))
    result = prune(network, few, tmp_path / "run", settings)
    first, second = result.metrics["rounds"]
    assert first["cost"]["macs"] > second["cost"]["macs"]
    kept = json.loads((tmp_path / "run" / "kept.json").read_text())
    config = result.model.config.model_dump()
    types = kept["spaces"]["primary.types"]["kept"]
    original = network.state_dict()["primary.weight"].unflatten(0, (-1, config["primary_dim"]))
    left = result.model.state_dict()["primary.weight"].unflatten(0, (-1, config["primary_dim"]))
    torch.testing.assert_close(left, original[types], rtol=0, atol=0)
    capsules = kept["spaces"]["digit.capsules"]["kept"]
    torch.testing.assert_close(
        result.model.state_dict()["digit.weight"], network.state_dict()["digit.weight"][capsules], rtol=0, atol=0
    )


def test_measured_allocation(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    settings = PruneSettings(macs=0.4, epochs=0, allocation=Allocation.MEASURED)
    result = prune(network, few, tmp_path / "run", settings)
    assert cost_of(result.model).macs <= 0.4 * cost_of(network).macs
    shares = {name: left / of for name, (left, of) in result.metrics["sizes"].items()}
    assert shares["primary.types"] != shares["conv1.channels"]
    uniform = prune(network, few, tmp_path / "uniform", PruneSettings(macs=0.4, epochs=0))
    found, other = (run.metrics["rounds"][0]["calibration_cut"]["correct"] for run in (result, uniform))
    assert found >= other


@pytest.mark.parametrize("target", [{"params": 0.5}, {"bytes": 30_000}, {"spaces": {"primary.types": 3}}])
def test_other_targets(network: CapsNet, few: Splits, tmp_path: Path, target: dict[str, Any]) -> None:
    result = prune(network, few, tmp_path / "run", PruneSettings(**target, epochs=0, score="length"))
    cost = result.metrics["pruned"]["cost"]
    assert cost["parameters"] == result.model.parameter_count()
    if "params" in target:
        assert cost["parameters"] <= 0.5 * network.parameter_count()
    elif "bytes" in target:
        assert cost["bytes"] <= 30_000
    else:
        assert result.metrics["sizes"]["primary.types"] == [3, 8]
        assert result.metrics["sizes"]["conv1.channels"] == [32, 32]


def test_routing_iterations_change_alone(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    result = prune(network, few, tmp_path / "run", PruneSettings(iterations=1, epochs=0, score="weight", dead=False))
    assert result.model.config.model_dump() == {**network.config.model_dump(), "iterations": 1}
    assert result.metrics["pruned"]["cost"]["routing_macs"] < result.metrics["original"]["cost"]["routing_macs"]
    torch.testing.assert_close(result.model.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_max_drop_finds_the_most_that_may_go(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    settings = PruneSettings(max_drop=3.0, epochs=0, score="length")
    result = prune(network, few, tmp_path / "run", settings)
    assert result.met
    trials = result.metrics["rounds"]
    accepted = [trial for trial in trials if trial["accepted"]]
    assert accepted
    assert all(trial["pair"]["loss"] <= 3.0 for trial in accepted)
    assert result.metrics["macs_kept"] == pytest.approx(
        min(trial["cost"]["macs"] for trial in accepted) / cost_of(network).macs
    )
    assert result.metrics["macs_kept"] < 1


def test_an_impossible_drop_is_reported(few: Splits, network: CapsNet, tmp_path: Path) -> None:
    settings = PruneSettings(max_drop=0.0, epochs=0, spaces={"primary.dim": 2})
    result = prune(network, few, tmp_path / "run", settings)
    assert not result.met
    assert result.path.exists()


def test_interrupted_fine_tuning_goes_on(
    network: CapsNet, few: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PruneSettings(macs=0.5, epochs=2, batch_size=16)
    whole = prune(network, few, tmp_path / "whole", settings)
    original = job.train

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        def stop(row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        return original(*args, **kwargs, on_epoch=stop)

    monkeypatch.setattr(job, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(network, few, tmp_path / "run", settings)
    monkeypatch.setattr(job, "train", original)
    with pytest.raises(ArtefactError, match="not empty"):
        prune(network, few, tmp_path / "run", settings)
    resumed = prune(network, few, tmp_path / "run", settings, resume=True)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)
    steps = len((tmp_path / "run" / "round1" / "finetune" / "train.csv").read_text().splitlines())
    assert steps == len((tmp_path / "whole" / "round1" / "finetune" / "train.csv").read_text().splitlines())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0.0}, r"prune: keep: .*greater than 0 \(found 0.0\)"),
        ({"keep": 1.5}, r"prune: keep: .*less than or equal to 1"),
        ({"macs": -1}, r"prune: macs: .*greater than 0"),
        ({}, r"prune: .*exactly one of keep, macs, params, bytes, max_drop \(found none\), or spaces"),
        ({"keep": 0.5, "macs": 0.5}, r"\(found keep, macs\)"),
        ({"max_drop": 1.0, "rounds": 3}, "max_drop searches by itself; leave rounds at 1$"),
        ({"keep": 0.5, "units": ["filters"]}, r"units: .*'channels', 'types', 'dim' or 'capsules'"),
        ({"keep": 0.5, "scor": "taylor"}, r"did you mean 'score'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneSettings.of(values)


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown score 'taylr'"):
        PruneSettings.of({"keep": 0.5, "score": "taylr"})


def test_targets_that_would_empty_a_layer_name_the_smallest(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"macs 0\.0001 would empty a layer; .* can give is 0\.0\d+ \(with .*types 1"):
        prune(network, few, tmp_path / "a", PruneSettings(macs=0.0001, epochs=0, score="weight"))
    with pytest.raises(ConfigError, match=r"there is no group 'primary\.kinds'"):
        prune(network, few, tmp_path / "b", PruneSettings(spaces={"primary.kinds": 0.5}, epochs=0, score="weight"))
    with pytest.raises(ConfigError, match=r"group primary\.types: 0\.01 of 8 types would leave none"):
        prune(network, few, tmp_path / "c", PruneSettings(spaces={"primary.types": 0.01}, epochs=0, score="weight"))
    assert not list(tmp_path.iterdir())  # the run can be started again as it was meant


def test_a_calibration_split_that_is_too_small_is_refused(network: CapsNet, tmp_path: Path) -> None:
    tiny = load_data("digits", calibration_size=12, limit=60)
    with pytest.raises(ConfigError, match="12 calibration images are too few to score 10 classes"):
        prune(network, tiny, tmp_path / "run", PruneSettings(keep=0.5, epochs=0))
    with pytest.raises(ConfigError, match=r"3 calibration images are too few .*--images"):
        prune(network, tiny, tmp_path / "run", PruneSettings(keep=0.5, epochs=0, images=3))
    assert not list(tmp_path.iterdir())


def test_gradients_that_are_not_finite_stop_the_run(network: CapsNet, few: Splits, tmp_path: Path) -> None:
    broken = copy.deepcopy(network)
    with torch.no_grad():
        dict(broken.named_parameters())["digit.weight"][0] = 1e19
    with pytest.raises(CapletError, match="not finite"):
        prune(broken, few, tmp_path / "run", PruneSettings(keep=0.5, epochs=0, dead=False))
