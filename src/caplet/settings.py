"""Settings: what a person wrote becomes a frozen pydantic object, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from caplet.errors import ConfigError, suggest

Kind = TypeVar("Kind", bound=BaseModel)


def make(kind: type[Kind], values: Mapping[str, Any], where: str) -> Kind:
    """Settings of ``kind`` from JSON-like values.

    Args:
        where: what the error starts with, such as the file's path.

    Raises:
        ConfigError: a setting is unknown (the nearest known one is named), missing or out of range.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first(kind, error)}") from None


def _first(kind: type[BaseModel], error: ValidationError) -> str:
    """The first mistake, in words."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if isinstance(part, str)]
    found = "" if first["type"] == "missing" or not place else f" (found {first['input']!r:.100})"
    hint = ""
    if first["type"] == "extra_forbidden":
        hint = suggest(place[-1], _fields(kind, place[:-1]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "no setting of this name"
    elif first["type"] in ("model_type", "model_attributes_type"):
        message = "a table of settings is needed"
    return f"{'.'.join(place)}{': ' if place else ''}{message}{found}{hint}"


def _fields(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the settings in the table ``path`` of ``kind``."""
    for name in path:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not isinstance(inner, type) or not issubclass(inner, BaseModel):
            return []
        kind = inner
    return list(kind.model_fields)
