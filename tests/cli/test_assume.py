"""What is assumed of an imported model is said once, on stderr and in ``--json``; what is stated is done."""

from pathlib import Path

import h5py
import numpy as np

from conftest import Caplet

STATED = {"activation": "leaky_relu:0.3", "iterations": "3", "channels": "bgr", "normalize": "0.5,0.25"}


def weights(path: Path) -> Path:
    """Weights alone of a network for 8x8 images of ten classes."""
    rng = np.random.default_rng(0)
    shapes = {"conv/kernel:0": (3, 3, 3, 4), "conv/bias:0": (4,), "primary/kernel:0": (3, 3, 4, 6)}
    with h5py.File(path, "w") as file:
        for name, shape in {**shapes, "primary/bias:0": (6,), "z/W:0": (10, 8, 4, 3)}.items():
            file[name] = rng.normal(0, 0.3, shape).astype(np.float32)
        file.attrs["layer_names"] = [b"conv", b"primary", b"z"]
    return path


def test_commands_say_what_they_assume(caplet: Caplet, tmp_path: Path) -> None:
    path = weights(tmp_path / "x.h5")
    assumed = {"padding": "valid", "strides": "1,2", "iterations": "3", "activation": "relu", "normalize": "0,1"}
    assumed |= {"channels": "rgb"}
    for command in (("inspect",), ("check",), ("eval", "--data", "digits", "--channels", "3")):
        words = [command[0], path, *command[1:], "--image-size", 8]
        done = caplet(*words, "--json")
        assert (done.json()["assumed"], done.json()["stated"]) == (assumed, {})
        told = caplet(*words)
        text = told.out + told.err
        assert text.count("assumed: ") == 1
        assert all(text.count(f"{name}={value}") == 1 for name, value in assumed.items())
        options = [word for name, value in STATED.items() for word in ("--assume", f"{name}={value}")]
        done = caplet(*words, *options, "--json")
        assert (done.json()["assumed"], done.json()["stated"]) == ({"padding": "valid", "strides": "1,2"}, STATED)
    assert "did you mean 'channels'" in caplet("inspect", path, "--assume", "channel=bgr").error()
    assert "the rule is NAME=VALUE" in caplet("check", path, "--assume", "bgr").error()


def test_a_size_that_the_file_leaves_open_may_be_stated(caplet: Caplet, tmp_path: Path) -> None:
    words = ("eval", weights(tmp_path / "x.h5"), "--data", "digits", "--channels", 3)
    line = caplet(*words, "--size", 8).error()
    assert "--size 8: the model takes 3x7x7 images" in line
    assert line.endswith("its file leaves the size open: give --image-size 8, too")
    assert caplet(*words, "--size", 8, "--image-size", 8).code == 0
