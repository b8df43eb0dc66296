"""Settings: every number has a range, which is checked before any work."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import pytest
from pydantic import BaseModel

import caplet
from caplet.errors import ConfigError, ModelError
from caplet.models.base import FrozenModel
from caplet.settings import Settings
from caplet.train.settings import load_recipe
from caplet.train.task import build_model

for _module in walk_packages(caplet.__path__, "caplet."):
    import_module(_module.name)


def _below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


def _numbers(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number in a JSON schema, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield place, schema
        for name, inner in schema.items():
            yield from _numbers(inner, f"{place}.{name}")
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _numbers(inner, f"{place}.{index}")


@pytest.mark.parametrize(
    "kind", [kind for base in (Settings, FrozenModel) for kind in _below(base) if kind.__module__.startswith("caplet.")]
)
def test_every_number_has_a_range(kind: type[BaseModel]) -> None:
    open_ended = [
        place
        for place, rule in _numbers(kind.model_json_schema())
        if not rule.keys() & {"enum", "const"}
        and not (rule.keys() & {"minimum", "exclusiveMinimum"} and rule.keys() & {"maximum", "exclusiveMaximum"})
    ]
    assert not open_ended, f"{kind.__name__}: no least or no largest value: {open_ended}"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1 << 64},
        {"threads": 100_000},
        {"shift": 100_000},
        {"overrides": {"iterations": 10**5}},
        {"overrides": {"iterations": 10**18}},
        {"overrides": {"image": [1, 10**6, 10**6]}},
        {"overrides": {"image": [3, 4000, 4000]}},
        {"overrides": {"primary_types": 10**6}},
        {"lr": 1e-320},
        {"lr": float("inf")},
    ],
    ids=str,
)
def test_values_out_of_range_are_one_line_before_any_work(change: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ModelError)) as caught:
        build_model(load_recipe("digits", change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_tolerance_that_no_image_resolves_is_none() -> None:
    from caplet.jobs.quantize.settings import QuantizeSettings

    assert QuantizeSettings(tolerance=1e-320).tolerance == 0
    with pytest.raises(ConfigError, match="tolerance"):
        QuantizeSettings(tolerance=101)


@pytest.mark.parametrize(
    ("given", "method", "granularity", "parts"),
    [
        ({}, "ilp", "tensor", ["scales", "per-channel", "bias", "rounding"]),
        ({"effort": "quick"}, "ilp", "tensor", []),
        ({"effort": "max"}, "ilp", "tensor", ["scales", "per-channel", "bias", "rounding", "end-to-end"]),
        ({"effort": "quick", "granularity": "block"}, "ilp", "block", []),
        ({"reconstruct": "bias"}, "ilp", "tensor", ["bias"]),
        ({"method": "progressive"}, "progressive", "layer", []),  # a search that is named runs alone
        (
            {"method": "qcapsnets", "effort": "default"},
            "qcapsnets",
            "tensor",
            ["scales", "per-channel", "bias", "rounding"],
        ),
        ({"rounding": "all"}, "ilp", "tensor", []),  # what is not rounded to nearest cannot be fitted
        ({"log2_weights": True}, "ilp", "tensor", []),
    ],
)
def test_effort_chooses_what_is_not_given(
    given: dict[str, Any], method: str, granularity: str, parts: list[str]
) -> None:
    from caplet.jobs.quantize.settings import QuantizeSettings

    settings = QuantizeSettings.of(given)
    assert (settings.method, settings.granularity, list(settings.reconstruct)) == (method, granularity, parts)
    assert settings.narrow == (given.get("effort") == "max")
    assert QuantizeSettings.of(settings.model_dump(mode="json")) == settings  # a run's record says all of it


def test_images_that_nothing_would_look_at_are_refused() -> None:
    from caplet.jobs.quantize.settings import QuantizeSettings

    with pytest.raises(ConfigError, match="leave out --accept measured"):
        QuantizeSettings(accept="measured", validation="calibration")
