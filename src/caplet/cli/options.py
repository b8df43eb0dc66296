"""Options of the command line from settings classes: name, type, default, help and heading stand at the field."""

import inspect
import re
import types
from collections.abc import Callable, Iterator
from enum import Enum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from caplet.errors import ConfigError
from caplet.settings import Settings

DATA, OUTPUT = "Data", "Output"
"""Headings of options that many commands have."""


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are settings become options, one for every field with a heading.

    A parameter is a :class:`~caplet.settings.Settings` class; or ``Annotated[dict[str, Any], CLASS]``, which gets a
    table of the options that were given, without defaults.
    """
    hints = get_type_hints(function, include_extras=True)
    kinds: dict[str, tuple[type[Settings], bool]] = {}
    parameters = [Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    places: dict[str, tuple[str, tuple[str, ...], FieldInfo]] = {}
    for name, parameter in signature(function).parameters.items():
        kind, only_given = _settings(hints[name])
        if kind is None:
            parameters.append(parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY))
            continue
        kinds[name] = (kind, only_given)
        for place, field in _options(kind):
            key = "_".join((name, *place))
            places[key] = (name, place, field)
            annotation, default = _option(place[-1], field, only_given)
            parameters.append(Parameter(key, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    @wraps(function)
    def command(context: typer.Context, **values: Any) -> None:
        tables: dict[str, dict[str, Any]] = {name: {} for name in kinds}
        for key, (name, place, field) in places.items():
            value = values.pop(key)
            source = context.get_parameter_source(key)
            if source is not None and source.name != "DEFAULT":
                _put(tables[name], place, _value(place[-1], field, value))
        for name, (kind, only_given) in kinds.items():
            values[name] = tables[name] if only_given else kind.of(tables[name])
        function(**values)

    command.__signature__ = signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # typer would read the signature of the function inside
    return command


def help_of(function: Callable[..., None]) -> str:
    """A command's docstring, its paragraphs on one line each, so that the terminal breaks lines where it must."""
    return one_line_paragraphs(inspect.cleandoc(function.__doc__ or ""))


def one_line_paragraphs(text: str) -> str:
    """Text without line breaks inside a paragraph; lines with examples stay.

    >>> one_line_paragraphs("a\\nb\\n\\nc\\nExample: d")
    'a b\\n\\nc\\nExample: d'
    """
    return re.sub(r"(?<=\S)\n(?!\n|Example:|$)", " ", text)


def _settings(hint: Any) -> tuple[type[Settings] | None, bool]:
    """The settings class that a parameter stands for, and whether it gets only the options that were given."""
    for only_given, kind in ((False, hint), *((True, mark) for mark in get_args(hint)[1:])):
        if isinstance(kind, type) and issubclass(kind, Settings):
            return kind, only_given
    return None, False


def _options(kind: type[Settings]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field with a heading, with its place in the tables of settings; those of base classes come last."""
    own = inspect.get_annotations(kind)
    for name, field in sorted(kind.model_fields.items(), key=lambda item: item[0] not in own):
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from (((name, *place), inner) for place, inner in _options(field.annotation))
        elif isinstance(field.json_schema_extra, dict):
            yield (name,), field


def _option(name: str, field: FieldInfo, may_be_absent: bool) -> tuple[Any, Any]:
    """The annotation and the default that typer makes an option of."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    flag = _flag(name, field)
    kind = _kind(field)
    default = (None if may_be_absent else ...) if field.is_required() else field.default
    if default is True:
        flag += f"/--no-{flag.removeprefix('--')}"
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    if default in (None, "", {}, []):
        default, kind = None, kind | None
    text = " ".join((field.description or "").replace("``", "").split())
    return Annotated[kind, typer.Option(flag, help=text, rich_help_panel=str(extra["panel"]))], default


def _flag(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return (isinstance(extra, dict) and str(extra["flag"])) or f"--{name.replace('_', '-')}"


def _kind(field: FieldInfo) -> Any:
    """The type of an option: texts become what the settings' own validators make of them."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (inner for inner in get_args(kind) if inner is not types.NoneType)
    marks = [*field.metadata]
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        marks += more
    if get_origin(kind) in (dict, list):  # may be repeated
        return list[str]
    if any(isinstance(mark, BeforeValidator) for mark in marks) or get_origin(kind) is tuple:
        return str
    if get_origin(kind) is Literal:
        return kind if isinstance(get_args(kind)[0], str) else type(get_args(kind)[0])
    plain = isinstance(kind, type) and issubclass(kind, bool | int | float | Path | Enum)
    return kind if plain else str


def _value(name: str, field: FieldInfo, value: Any) -> Any:
    """What an option's text means: lists and tables of settings are taken apart."""
    if any(isinstance(mark, BeforeValidator) for mark in field.metadata):
        return value
    if get_origin(field.annotation) is dict:
        return dict(_pair(_flag(name, field), text) for text in value)
    if isinstance(value, str) and get_origin(field.annotation) is tuple:
        return [word.strip() for word in value.split(",")]
    return value


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"{flag} {text!r}: the rule is NAME=VALUE")
    return name.strip(), value


def _put(table: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for name in place[:-1]:
        table = table.setdefault(name, {})
    table[place[-1]] = value
