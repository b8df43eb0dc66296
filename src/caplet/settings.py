"""Settings: frozen pydantic objects that refuse unknown names, in one line; and amounts such as 5MB and 12M.

A field's type, default and the string below it (its help) are written once: the command line makes its options of them
(:mod:`caplet.cli.options`).
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from caplet.errors import ConfigError, suggest

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
Amount = Annotated[int, Field(ge=1, le=1 << 50)]
Many = Annotated[int, Field(ge=1, le=10**9)]
"""How many images, steps, epochs, ...; nothing is computed or stored for each of them in advance."""
Natural = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(ge=1, le=1000)]
"""How often work is done (rounds, sweeps, turns, routing iterations), or at once (threads)."""
Batch = Annotated[int, Field(ge=1, le=1 << 16)]
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels of an image, a kernel or a stride."""
Pixels = Annotated[int, Field(ge=0, le=1024)]
Size = Annotated[int, Field(ge=1, le=1 << 20)]
"""Channels, capsules or classes of a layer."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Positive = Annotated[float, Field(ge=1e-12, le=1e30)]
Percent = Annotated[float, Field(ge=0, le=100), AfterValidator(lambda value: value if value >= 1e-9 else 0.0)]
"""Percentage points of accuracy. Below a billionth, which no number of images resolves, it is 0."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
_inside: ContextVar[bool] = ContextVar("_inside", default=False)
"""Whether settings are being made that these are a table of; then they name the mistake."""


class Settings(BaseModel):
    """Base of all settings: immutable, JSON-able, and whatever is wrong with them is one ConfigError of one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    where: ClassVar[str] = "settings"
    """What messages start with."""

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str | None = None) -> Self:
        """Settings from JSON-like values.

        Args:
            where: what the error starts with, such as the file's path.

        Raises:
            ConfigError: a setting is unknown (the nearest known one is named), missing or out of range.
        """
        return cls.model_validate(dict(values), context={"where": where or cls.where})

    def check(self) -> None:
        """Raise ValueError for settings that do not go together."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, build: ModelWrapValidatorHandler[Self], info: Any) -> Self:
        inside = _inside.get()
        token = _inside.set(True)
        try:
            made = build(values)
            made.check()
            return made
        except ValueError as error:
            if inside:
                raise
            where = (info.context or {}).get("where", cls.where)
            text = _first(cls, error) if isinstance(error, ValidationError) else str(error)
            raise ConfigError(f"{where}: {text}") from None
        finally:
            _inside.reset(token)


def option(default: Any, panel: str, *, flag: str = "", **rules: Any) -> Any:
    """A field that is an option of the command line.

    Args:
        default: its default.
        panel: under which heading its help stands.
        flag: how it is spelt where that is not the field's name, such as ``--space``.
        rules: of :func:`pydantic.Field`, such as ``ge``.
    """
    return Field(default, json_schema_extra={"panel": panel, "flag": flag}, **rules)


def _first(kind: type[BaseModel], error: ValidationError) -> str:
    """The first mistake, in words."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if isinstance(part, str)]
    found = "" if first["type"] == "missing" or not place else f" (found {first['input']!r:.100})"
    hint = ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message, hint = "no setting of this name", suggest(place[-1], _fields(kind, place[:-1]))
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


def parse_bytes(text: str) -> int:
    """Bytes of ``"5MB"``, ``"300 KiB"``, ``"1.5mb"`` or a plain number of bytes.

    Raises ConfigError for anything else.

    >>> parse_bytes("5MB"), parse_bytes("1 KiB"), parse_bytes("1.5kb")
    (5000000, 1024, 1500)
    """
    return _parse(text, _BYTES, "size", "5MB, 300KiB or 4096")


def parse_count(text: str) -> int:
    """A number such as ``"12M"`` or ``"250k"``. Raises ConfigError for anything else.

    >>> parse_count("12M"), parse_count("1.5k"), parse_count("300")
    (12000000, 1500, 300)
    """
    return _parse(text, _COUNTS, "number", "12M, 250k or 4096")


def _parse(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = re.fullmatch(r"\s*([0-9]{0,15}\.?[0-9]{1,15})\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"{what} {text!r}: the rule is a number and a unit, such as {examples}")
    return round(float(match[1]) * units[match[2]])


Bytes = Annotated[Amount, BeforeValidator(lambda value: parse_bytes(value) if isinstance(value, str) else value)]
"""A number of bytes, or a text such as ``5MB``."""
Count = Annotated[Amount, BeforeValidator(lambda value: parse_count(value) if isinstance(value, str) else value)]
"""A number, or a text such as ``12M``."""
