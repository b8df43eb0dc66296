"""``caplet export --to``: every place is offered, has its own folder, and says what to do next."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from caplet.cli.export import command
from caplet.program.c.emit import PLACES
from conftest import Caplet


def test_the_option_offers_every_place() -> None:
    literal, _ = get_args(command.__annotations__["to"])
    assert get_args(literal) == (*PLACES, "web", "onnx")


@pytest.mark.parametrize(("place", "file"), [("arduino", "library.properties"), ("web", "caplet-model.d.ts")])
def test_a_place_has_a_folder_of_its_own(
    place: str, file: str, caplet: Caplet, quantized: Path, tmp_path: Path
) -> None:
    if place == "web" and importlib.util.find_spec("ziglang") is None:
        pytest.skip("the Python package ziglang is not installed")
    program = tmp_path / "model.caplet"
    program.write_bytes((quantized / "model_satisfied.caplet").read_bytes())
    words = ["export", str(program), "--to", place]
    done = caplet(*words)
    assert done.code == 0, done.err
    folder = tmp_path / f"export-{place}"
    assert (folder / file).exists()
    assert ("index.html" if place == "web" else "README.md") in done.err
    assert "not an empty folder" in caplet(*words).error()
    told = caplet(*words, "--json", "--out", str(tmp_path / "other"))
    assert told.json()["folder"] == str(tmp_path / "other")
