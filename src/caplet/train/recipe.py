"""Recipes: the training settings that come with the package, one TOML file each in ``recipes/``."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from caplet.errors import ConfigError, suggest
from caplet.train.settings import TrainSettings, make_settings


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes, sorted."""
    found = (entry.name for entry in (files("caplet.train") / "recipes").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> TrainSettings:
    """The settings of a recipe, with ``overrides`` on top.

    Args:
        name: one of :func:`recipe_names`.
        overrides: settings to replace, by name; a replaced dict (``lr_multipliers``, ...) is replaced whole.

    Raises:
        ConfigError: unknown recipe (the message suggests the nearest), unknown or invalid setting.
    """
    known = recipe_names()
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}{suggest(name, known)} (known: {', '.join(known)})")
    text = (files("caplet.train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    return make_settings({**tomllib.loads(text), **(overrides or {})}, f"recipe {name}")
