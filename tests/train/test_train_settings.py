"""Settings and recipes: what is accepted, and what the messages say."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from caplet.data import DATASETS
from caplet.errors import ConfigError, ModelError
from caplet.nn.decoder import ConvDecoder, DenseDecoder
from caplet.train.optimise import make_optimizer
from caplet.train.settings import TrainSettings, load_recipe, recipe_names
from caplet.train.task import build_decoder, build_model

Make = Callable[..., TrainSettings]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"ema": 1.0}, "ema"),
        ({"decoder": "big"}, "decoder"),
        ({"precision": "float16"}, "'float16'"),
        ({"patience": 0}, "patience"),
        ({"lr_multipliers": {"digit": 0.0}}, "lr_multipliers.digit"),
        ({"seed": -1}, "seed"),
    ],
)
def test_out_of_range_settings_are_named(tiny: Make, changes: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        tiny(**changes)


def test_an_unknown_setting_suggests_the_nearest(tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"batchsize.*did you mean 'batch_size'"):
        tiny(batchsize=3)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="here: dataset: Field required"):
        TrainSettings.of({"model": "shallow", "epochs": 1}, "here")


def test_settings_are_frozen_and_survive_json(tiny: Make) -> None:
    settings = tiny(lr_multipliers={"digit": 0.5}, patience=3)
    with pytest.raises(ValidationError):
        settings.lr = 1.0
    assert TrainSettings.model_validate_json(settings.model_dump_json()).model_dump(mode="json") == settings.model_dump(
        mode="json"
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_a_model_a_dataset_and_a_decoder(name: str) -> None:
    settings = load_recipe(name)
    assert settings.dataset in DATASETS
    model = build_model(settings)
    decoder = build_decoder(settings, model)
    assert (decoder is None) == (settings.decoder == "none")
    make_optimizer(settings, model, decoder)


def test_the_promised_recipes_exist() -> None:
    assert set(recipe_names()) >= {
        "shallow-mnist",
        "shallow-fashion-mnist",
        "deepcaps-cifar10",
        "deepcaps-fashion-mnist",
        "digits",
    }


def test_recipe_overrides_replace_settings() -> None:
    assert load_recipe("digits", {"epochs": 3}).epochs == 3


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'shalow-mnist'; did you mean 'shallow-mnist'"):
        load_recipe("shalow-mnist")


def test_a_wrong_override_names_the_recipe() -> None:
    with pytest.raises(ConfigError, match="recipe digits: epochs"):
        load_recipe("digits", {"epochs": "many"})


def test_unknown_model_and_override(tiny: Make) -> None:
    with pytest.raises(ModelError, match="shallow-digits"):
        build_model(tiny(model="shallow-digit"))
    with pytest.raises(ModelError, match="stems"):
        build_model(tiny(overrides={"stems": 1}))


def test_decoders_by_name(tiny: Make) -> None:
    for name, kind in (("dense", DenseDecoder), ("conv", ConvDecoder)):
        settings = tiny(decoder=name)
        decoder = build_decoder(settings, build_model(settings))
        assert isinstance(decoder, kind)
        assert decoder.image == (1, 8, 8)
