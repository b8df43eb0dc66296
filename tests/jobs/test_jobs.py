"""The jobs as Python functions: settings, data checks, engines, inspection, shipped files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caplet import api
from caplet.data import Splits
from caplet.errors import ArtefactError, BoardError, ConfigError, ModelError, ToolMissing
from caplet.jobs.export import find_program, parse_targets, verify_engines
from caplet.jobs.inspect import inspect_model
from caplet.jobs.quantize.job import quantize
from caplet.jobs.quantize.settings import QuantizeSettings
from caplet.jobs.run import check_data, evaluate
from caplet.jobs.train import parse_changes, resolve_recipe, train_by_recipe
from caplet.program import load_program
from caplet.quant.plan.memory import count_memory
from caplet.runtime.engine import Engine, predictions
from quantize_requests import as_measured


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        (["epochs=3", "lr=1e-3"], {"epochs": 3, "lr": 1e-3}),
        (["precision=bfloat16", "flip=true"], {"precision": "bfloat16", "flip": True}),
        (["initial_norms.digit=0.5", "initial_norms.primary=1.0"], {"initial_norms": {"digit": 0.5, "primary": 1.0}}),
        (["dataset=/a=b"], {"dataset": "/a=b"}),
        (["epochs=3", "epochs=4"], {"epochs": 4}),
    ],
)
def test_changes_of_settings(changes: list[str], settings: dict[str, Any]) -> None:
    assert parse_changes(changes) == settings


@pytest.mark.parametrize("changes", [["epochs"], ["=3"], ["a=1", "a.b=2"]])
def test_malformed_changes(changes: list[str]) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_changes(changes)


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('model = "shallow-digits"\ndataset = "digits"\nepochs = 2\n')
    assert resolve_recipe(str(path), {"epochs": 5}).epochs == 5
    path.write_text("model = ")
    with pytest.raises(ConfigError, match="not a TOML file"):
        resolve_recipe(str(path), {})


def test_the_network_follows_the_data(tmp_path: Path) -> None:
    """Another image size and three channels, from the same recipe."""
    changes = {"epochs": 1, "batch_size": 50}
    run = train_by_recipe("digits", tmp_path, size=12, channels=3, changes=changes, limit=50, progress=False)
    assert run.model.config.image == (3, 12, 12)
    assert run.test.n == 50


@pytest.mark.parametrize("settings", [{"budget": 0}, {"seed": -1}, {"rounding": "up"}, {"tolernce": 1.0}])
def test_quantize_settings_speak_in_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"quantize: {next(iter(settings))}") as error:
        QuantizeSettings(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rounding", ["stochastic", "truncate"])
@pytest.mark.slow
def test_every_rounding_ships(trained: Path, digits: Splits, tmp_path: Path, rounding: Any) -> None:
    model = api.load_float(trained / "model.safetensors")
    settings = QuantizeSettings(
        accept="measured", tolerance=20.0, rounding=rounding, seed=3, log2_weights=rounding == "truncate"
    )
    result = quantize(model, digits, tmp_path, settings)
    assert result.models
    for shipped in result.models:
        assert load_program(shipped.path).seed == 3
        again = evaluate(load_program(shipped.path), digits.test, engine="interpreter")
        assert again.accuracy == shipped.test


@pytest.mark.parametrize("method", ["progressive", pytest.param("ilp", marks=pytest.mark.slow)])
def test_every_method_ships(trained: Path, digits: Splits, tmp_path: Path, method: Any) -> None:
    model = api.load_float(trained / "model.safetensors")
    settings = QuantizeSettings(
        method=method, accept="measured", tolerance=15.0, granularity="tensor", hardware="mcu32", tune=False
    )
    notes: list[str] = []
    result = quantize(model, digits, tmp_path, settings, note=notes.append)
    assert result.met
    (shipped,) = result.models
    assert shipped.role == "satisfied"
    assert shipped.calibration.correct >= result.search.needed
    assert set(shipped.record["widths"]) == set(model.groups())
    assert shipped.record["weight_reduction"] > 4
    record = json.loads((tmp_path / "search.json").read_text())
    assert record["method"] == method
    assert ("front" in record) == (method == "ilp")
    again = quantize(model, digits, tmp_path, settings, resume=True)
    assert again.models[0].record["plan_digest"] == shipped.record["plan_digest"]


def test_a_tolerance_that_the_images_cannot_resolve_is_warned_of(trained: Path, digits: Splits, tmp_path: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    notes: list[str] = []
    quantize(model, digits, tmp_path, as_measured(tolerance=0.1), note=notes.append)
    assert any("1,000 images would allow one" in note for note in notes)


def test_a_mistake_leaves_no_folder(trained: Path, digits: Splits, tmp_path: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    mistakes = (
        {"tolerance": -1.0},
        {"budget": 10},
        {"ram": 1000},
        {"method": "ilp", "activation_budget": 1},
        {"method": "progressive", "hardware": "mcu64"},
    )
    for settings in mistakes:
        with pytest.raises(ConfigError):
            quantize(model, digits, tmp_path / "run", QuantizeSettings(**settings))
    with pytest.raises(ConfigError, match=r"unknown engine 'warp' \(known: auto, native, interpreter\)"):
        quantize(model, digits, tmp_path / "run", engine="warp")
    assert not (tmp_path / "run").exists()


def test_engines_give_the_same_integers(quantized: Path, digits: Splits) -> None:
    program = load_program(find_program(quantized))
    images = digits.test.images.numpy()[:64]
    slow, used = predictions(program, images, "interpreter")
    assert used is Engine.INTERPRETER
    fast, _ = predictions(program, images)
    np.testing.assert_array_equal(fast, slow)


def test_without_a_compiler_auto_interprets(quantized: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    import caplet.runtime

    def missing(program: object) -> None:
        raise ToolMissing("no C compiler")

    monkeypatch.setattr(caplet.runtime, "NativeModel", missing)
    program = load_program(find_program(quantized))
    assert evaluate(program, digits.test.subset(range(20))).engine == "interpreter"
    with pytest.raises(ToolMissing):
        evaluate(program, digits.test.subset(range(20)), engine="native")


def test_data_that_do_not_fit_are_refused_alike(trained: Path, quantized: Path) -> None:
    large = api.load_data("digits", size=9, limit=20)
    for model in (api.load(trained / "model.safetensors"), api.load(quantized / "model_satisfied.caplet")):
        with pytest.raises(ModelError, match=r"takes 1x8x8 images .* got 1x9x9.*--size"):
            check_data(model, large.test)


def test_inspection_counts_what_the_papers_count(trained: Path) -> None:
    model = api.load_float(trained / "model.safetensors")
    found = inspect_model(model)
    counted = count_memory(model).total
    total = found["groups"][-1]
    assert (total["weights"], total["activations"]) == (counted.weights, counted.activations)
    assert (total["weight_bits"], total["activation_bits"]) == (counted.weight_bits, counted.activation_bits)
    assert [row["point"] for row in found["points"]] == list(model.points())


def test_a_run_folder_means_its_best_model(quantized: Path, tmp_path: Path) -> None:
    assert find_program(quantized) == quantized / "model_satisfied.caplet"
    with pytest.raises(ArtefactError, match=r"no \.caplet file in this folder"):
        find_program(tmp_path)


def test_verification_of_the_interpreter(quantized: Path, digits: Splits) -> None:
    program = load_program(find_program(quantized))
    (result,) = verify_engines(program, digits.test.images.numpy()[:4], parse_targets("interpreter"))
    assert (result.images, result.differing, result.first) == (4, 0, None)
    assert result.codes > 4 * 1000
    with pytest.raises(ConfigError, match="no image"):
        verify_engines(program, digits.test.images.numpy()[:0])


def test_a_board_that_cannot_be_used_keeps_what_the_others_found(quantized: Path, digits: Splits) -> None:
    program, found = load_program(find_program(quantized)), []
    targets = parse_targets("tcp:127.0.0.1:1,interpreter,tcp:127.0.0.1:2")
    with pytest.raises(BoardError, match=r"tcp:127.0.0.1:1: cannot be opened.*; and tcp:127.0.0.1:2: cannot be op"):
        verify_engines(program, digits.test.images.numpy()[:2], targets, done=found.append)
    assert [(each.target, each.differing) for each in found] == [("interpreter", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--on '': names no engine; the choice is interpreter, native, cortex-m4, riscv32, or a board at serial:"),
        (" , ", "names no engine"),
        ("nativ", r"--on: unknown engine 'nativ'; did you mean 'native'\? \(known: .*; or a board at serial:PORT"),
        ("/dev/ttyACM0", "--on /dev/ttyACM0: no engine; a board is named serial:PORT or tcp:HOST:PORT"),
        ("COM3", "--on COM3: no engine; a board is named serial:PORT"),
        ("SERIAL:/dev/x", "in small letters"),
        ("serial:", "--on serial:: the rule is serial:PORT, such as serial:/dev/ttyACM0"),
        ("tcp:host", "tcp:HOST:PORT with a PORT from 1 to 65535"),
    ],
)
def test_engines_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_targets(text)


def test_an_engine_named_twice_runs_once() -> None:
    assert parse_targets("native,, interpreter, native,") == ("native", "interpreter")


def test_the_public_names_load_on_first_use() -> None:
    import caplet

    for name in set(caplet.__all__) - {"__version__"}:
        assert getattr(caplet, name) is getattr(api, name)
        assert name in api.__all__
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        caplet.quantise  # noqa: B018
