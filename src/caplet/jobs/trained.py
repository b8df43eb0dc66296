"""Small trained networks that come with the package: what they are, and the files that their names mean.

Each is there as integers (``NAME.caplet``) and in float (``NAME.safetensors``, stored in 16 bits to be small). What was
measured of them stands in ``index.json``; a test compares it with the files.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from caplet.errors import choose
from caplet.metrics import Accuracy

PREFIX = "trained:"
"""Before the name of a network that comes with the package, wherever a model's path is asked for."""
Ending = Literal[".caplet", ".safetensors"]
FOLDER = Path(str(files("caplet.models").joinpath("trained")))


@dataclass(frozen=True)
class ShippedNetwork:
    """A trained network of the package.

    Attributes:
        name: its own; ``trained:NAME`` is its path.
        data, recipe: what it was trained on, and by.
        parameters, macs: of the float network; multiply-accumulates for one image.
        test, float_test: accuracy on the test split, of the integers and in float.
        cnn_test: in float, of a plain CNN of the same size that was trained by the same recipe; None if none was.
        record: the record of that measurement in the project's repository.
    """

    name: str
    data: str
    recipe: str
    parameters: int
    macs: int
    test: Accuracy
    float_test: Accuracy
    cnn_test: Accuracy | None
    record: str

    @property
    def path(self) -> str:
        """What stands for it where a model's path is asked for."""
        return PREFIX + self.name

    @property
    def integers(self) -> Path:
        """The ``.caplet`` file."""
        return FOLDER / f"{self.name}.caplet"

    @property
    def float(self) -> Path:
        """The float checkpoint."""
        return FOLDER / f"{self.name}.safetensors"

    def to_json(self) -> dict[str, Any]:
        """Its facts, with the paths and the sizes in bytes of its two files."""
        files = {"integers": self.integers, "float": self.float}
        sizes = {f"{kind}_bytes": path.stat().st_size for kind, path in files.items()}
        return {"path": self.path, **asdict(self), **{kind: str(path) for kind, path in files.items()}, **sizes}


@cache
def trained_networks() -> dict[str, ShippedNetwork]:
    """The trained networks of the package by name."""
    rows = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return {row.name: row for row in TypeAdapter(list[ShippedNetwork]).validate_python(rows)}


def model_file(path: str | Path, ending: Ending = ".caplet") -> Path:
    """The file that a model's path means: itself, or for ``trained:NAME`` that network's.

    Args:
        ending: which of its files; an ending of the name itself decides (``trained:mnist.safetensors``).

    Raises:
        ConfigError: no trained network of that name; the message suggests the nearest.
    """
    name = str(path)
    if not name.startswith(PREFIX):
        return Path(path)
    known = {f"{PREFIX}{name}": network for name, network in trained_networks().items()}
    stem = name.removesuffix(".caplet").removesuffix(".safetensors")
    found = known[choose(stem, known, "trained network")]
    in_float = name.endswith(".safetensors") or (name == stem and ending == ".safetensors")
    return found.float if in_float else found.integers
