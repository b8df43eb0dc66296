"""The trained networks of the package: their list says what their files are, and their names stand for them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from caplet.api import evaluate, find_program, load, load_data, load_float, load_or_build
from caplet.data import Splits
from caplet.errors import ConfigError
from caplet.files import digest
from caplet.jobs.trained import FOLDER, ShippedNetwork, model_file, trained_networks
from caplet.models.cost import cost_of
from caplet.program import Program
from caplet.train.settings import load_recipe

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"
NETWORKS = list(trained_networks().values())
each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


def test_all_of_them_are_small_and_listed() -> None:
    files = [path for path in FOLDER.iterdir() if path.name != "index.json"]
    assert sorted(files) == sorted(file for network in NETWORKS for file in (network.integers, network.float))
    assert sum(path.stat().st_size for path in files) <= 300_000


@each_network
def test_the_list_says_what_the_files_are(network: ShippedNetwork) -> None:
    model, program = load_float(network.path), load(network.path)
    assert isinstance(program, Program)
    cost = cost_of(model)
    assert (cost.parameters, cost.macs) == (network.parameters, network.macs)
    assert model.config.image == program.image_shape
    assert model.labels == program.labels != ()
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())
    assert load_recipe(network.recipe).dataset == network.data


@each_network
def test_the_record_is_of_these_files(network: ShippedNetwork) -> None:
    record = json.loads((RECORDS / network.record).read_text())
    assert record["network"] == asdict(network)
    assert record["sha256"] == {file.name: digest(file.read_bytes()) for file in (network.integers, network.float)}
    assert record["data"]["sizes"]["test"] == network.test.n


def _right(network: ShippedNetwork, splits: Splits) -> None:
    for path, listed in ((network.path, network.test), (f"{network.path}.safetensors", network.float_test)):
        found = evaluate(load(path), splits.test).accuracy
        if path == network.path:
            assert found == listed
        assert abs(found.correct - listed.correct) <= 2  # in float another processor may round otherwise


def test_the_digits_are_classified_as_recorded(digits: Splits) -> None:
    _right(trained_networks()["digits"], digits)


@pytest.mark.shared
@pytest.mark.slow
@each_network
def test_the_test_split_is_classified_as_recorded(network: ShippedNetwork, shared: Path) -> None:
    _right(network, load_data(network.data, None if network.data == "digits" else shared / "data"))


def test_names_stand_for_files() -> None:
    assert model_file("trained:digits") == find_program("trained:digits") == FOLDER / "digits.caplet"
    for path in ("trained:digits.safetensors", Path("trained:digits.safetensors")):
        assert model_file(path) == FOLDER / "digits.safetensors"
    assert model_file("trained:digits.caplet", ".safetensors") == FOLDER / "digits.caplet"
    assert model_file("runs/model.pt") == Path("runs/model.pt")
    assert load_or_build("trained:digits").parameter_count() == trained_networks()["digits"].parameters


@pytest.mark.parametrize("name", ["trained:digitz", "trained:digits.pt", "trained:", "trained:../index"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"trained network .*\(known: trained:digits"):
        model_file(name)
