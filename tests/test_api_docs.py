"""The API reference: it builds, has every public name, and every public docstring says what the style asks for."""

import inspect
import re
from pathlib import Path
from typing import Any

import pdoc
import pytest

import caplet
from caplet import api
from caplet.errors import CapletError

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(api, name) for name in api.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
TOTAL = ("list_models", "recipes")
"""Functions that have nothing to refuse."""


def modules() -> list[str]:
    """The modules of `make docs`."""
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    return re.findall(r"caplet\.\w+", recipe[1])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*modules(), output_directory=folder)
    return folder


def test_the_reference_builds_and_has_every_public_name(pages: Path) -> None:
    text = (pages / "caplet" / "api.html").read_text(encoding="utf-8")
    assert set(caplet.__all__) - {"__version__"} <= set(PUBLIC)
    missing = [name for name in api.__all__ if f'id="{name}"' not in text]
    assert missing == []
    for module in modules():
        assert pages.joinpath(*module.split(".")).with_suffix(".html").exists()


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_say_what_they_take_and_refuse(name: str) -> None:
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    assert text.split("\n")[0].endswith("."), f"{name}: the first line is one sentence"
    assert name in TOTAL or re.search(r"\b(Raises|raises)\b", text), f"{name}: which errors does it raise?"
    errors = {kind.__name__ for kind in CapletError.__subclasses__()} | {"CapletError"}
    assert name in TOTAL or any(error in text for error in errors), f"{name}: no error of caplet is named"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "images" and "NDArray" in str(parameter.annotation):
            assert re.search(r"uint8 \(\w+, \w+, \w+, \w+\)", text), f"{name}: dtype and shape of images"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes_say_what_their_fields_are(name: str) -> None:
    kind = CLASSES[name]
    text = inspect.getdoc(kind) or ""
    assert kind.__doc__, f"{name}: no docstring of its own"
    described = {name for name, field in getattr(kind, "model_fields", {}).items() if field.description}
    for field in set(_fields(kind)) - described:
        assert re.search(rf"\b{field}\b", text), f"{name}: what is {field}?"
    for attribute, value in vars(kind).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
            assert inspect.getdoc(getattr(kind, attribute)), f"{name}.{attribute}: no docstring"


def _fields(kind: type[Any]) -> list[str]:
    """Names of the fields of a dataclass or of a pydantic model that are its own."""
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    own = vars(kind).get("__annotations__", {})
    return [name for name in names if name in own and not name.startswith("_")]
