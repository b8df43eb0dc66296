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


def test_onnx_in_qdq_form_says_how_many_codes_differ(caplet: Caplet, quantized: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    program = tmp_path / "model.caplet"
    program.write_bytes((quantized / "model_satisfied.caplet").read_bytes())
    words = ["export", str(program), "--to", "onnx", "--form", "qdq", "--images", "30"]
    done = caplet(*words, "--data", "digits", "--json")
    told = done.json()
    assert told["file"] == str(tmp_path / "model.qdq.onnx")
    assert told["form"] == "qdq"
    assert (told["check"]["images"], told["check"]["values"]) == (30, 30 * 10 * 8)
    assert f"calibration images: {told['check']['equal_predictions']} of 30 predictions equal" in done.err
    assert f"{told['check']['differing']:,} of 2,400 class-capsule values differ" in done.err
    assert ("wider than 8 bits" in done.err) == bool(told["wide"])
    assert "random images" in caplet(*words).err
    assert "--form qdq: only with --to onnx" in caplet("export", str(program), "--form", "qdq").error()


def test_a_dead_board_leaves_the_other_engines_results(caplet: Caplet, quantized: Path, tmp_path: Path) -> None:
    program = tmp_path / "model.caplet"
    program.write_bytes((quantized / "model_satisfied.caplet").read_bytes())
    words = ["verify", str(program), "--on", "tcp:127.0.0.1:1,interpreter", "--images", "2"]
    done = caplet(*words)
    assert done.code == 3
    assert "interpreter:" in done.out
    assert "identical" in done.out
    assert "error: tcp:127.0.0.1:1: cannot be opened" in done.err
    told = caplet(*words, "--json")
    assert told.code == 3
    assert '"target": "interpreter"' in told.out
    assert '"error": "tcp:127.0.0.1:1: cannot be opened' in told.out
