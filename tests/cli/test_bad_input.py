"""What a user can get wrong: one line on stderr, exit code 3, no traceback, nothing written or overwritten."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Caplet

Snapshot = dict[str, bytes | None]


def snapshot(folder: Path) -> Snapshot:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def files(trained: Path, quantized: Path, tmp_path: Path) -> Path:
    """A folder of good and bad files."""
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    (tmp_path / "model.caplet").write_bytes((quantized / "model_satisfied.caplet").read_bytes())
    for name in ("model.safetensors", "model.caplet"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"short-{name}").write_bytes(whole[:5])
    state = {"layer.weight": torch.zeros(3, 3), "layer.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "other.pt")
    whole = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "code.pt").write_bytes(pickle.dumps(_Code(tmp_path / "ran")))
    for name in ("empty.pt", "empty.caplet", "empty.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "text.pt").write_text("not a model")
    (tmp_path / "folder.caplet").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("old")
    return tmp_path


class _Code:
    """A pickle that wants to run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def picture(path: Path, side: int = 8, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side) if mode == "L" else (side, side, 3)
    Image.fromarray(np.random.default_rng(side).integers(0, 255, shape, dtype=np.uint8), mode).save(path)


def image_folder(root: Path, classes: int = 2, count: int = 8, side: int = 8) -> Path:
    for label in range(classes):
        for index in range(count):
            picture(root / f"class{label}" / f"{index}.png", side)
    return root


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "no such file"),
        ("absent.caplet", "no such file"),
        ("empty.pt", "empty"),
        ("empty.caplet", "0 bytes"),
        ("empty.safetensors", "empty"),
        ("text.pt", "not a checkpoint of a known format"),
        ("cut-model.safetensors", "truncated or damaged"),
        ("short-model.safetensors", "not a checkpoint"),
        ("cut-model.caplet", "the file is cut"),
        ("short-model.caplet", "5 bytes"),
        ("cut.pt", "cut.pt"),
        ("code.pt", "code.pt"),
        ("other.pt", "other.pt"),
        ("run", "a folder"),
        ("folder.caplet", "directory"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "inspect", "quantize"])
def test_files_that_are_no_model(caplet: Caplet, files: Path, command: str, name: str, message: str) -> None:
    before = snapshot(files)
    line = caplet(command, files / name, *(("--out", files / "new") if command == "quantize" else ())).error()
    assert message in line.lower()
    assert name in line
    assert snapshot(files) == before
    assert not (files / "ran").exists()


def test_nan_weights_are_named(caplet: Caplet, files: Path, trained: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(trained / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, files / "nan.safetensors", metadata)
    for command in ("eval", "quantize"):
        line = caplet(command, files / "nan.safetensors").error()
        assert "1 of" in line
        assert "not finite" in line
        assert name.rpartition(".")[2] in line


SETTINGS: list[tuple[list[object], str]] = [
    (["--tolerance", -1], "tolerance: Input should be greater than or equal to 0"),
    (["--tolerance", "nan"], "tolerance: Input should be"),
    (["--tolerance", "inf"], "tolerance: Input should be less than or equal to 100"),
    (["--budget", 0], "budget: Input should be greater than or equal to 1"),
    (
        ["--method", "qcapsnets", "--budget", 100],
        "below the smallest possible one for this model, 5,076 bytes (40,608 bits)",
    ),
    (["--budget", 100, "--log2-weights"], "below the smallest possible one"),
    (["--budget", "5XB"], "size '5XB'"),
    (["--budget", "-5MB"], "size '-5MB'"),
    (["--budget", "9" * 400], "the rule is a number and a unit"),
    (["--reconstruct", "bias,roundin"], "did you mean 'rounding'?"),
    (["--method", "ilp", "--narrow"], "narrow needs reconstruction"),
    (["--confidence", 0.2], "confidence: Input should be greater than or equal to 0.5"),
    (["--confidence", 1], "confidence: Input should be less than 1"),
    (
        ["--method", "qcapsnets", "--ram", "10KB"],
        "knows a tolerance and a weight budget, but no RAM budget; use progressive or ilp",
    ),
    (["--method", "progressive", "--budget", 100], "weight budget of 100 bytes is below the smallest possible one"),
    (["--method", "ilp", "--activation-budget", 100], "activation budget of 100 bytes is below the smallest possible"),
    (["--method", "ilp", "--ram", 10], "RAM budget of 10 bytes is below the smallest possible one for this model, "),
    (["--method", "progressive", "--ram", 1000], "raise the budget"),
    (["--seed", -1], "seed"),
    (["--seed", 2**40], "seed"),
    (["--calibration-size", 0], "calibration_size: Input should be greater than or equal to 1"),
    (["--calibration-size", 5000], "cannot cut 5000 of the 1438 images"),
    (["--data", "digit"], "did you mean 'digits'?"),
    (["--data", "/nowhere/at/all"], "no image folder /nowhere/at/all"),
    (["--size", 0], "size: Input should be greater than or equal to 1"),
    (["--size", 12], "--size 12: the model takes 1x8x8 images (channels x rows x columns)"),
    (["--channels", 2], "channels must be 1 (gray) or 3 (RGB)"),
    (["--image-size", 9], "the model is for 8x8 images"),
    (["--resume"], "holds no run to resume"),
    (["--resume", "--force"], "give one of them"),
    ([], "not empty (precious, ...)"),
]


MEASURED = ("--accept", "measured")


@pytest.mark.parametrize(("arguments", "message"), SETTINGS)
def test_settings_of_quantize(caplet: Caplet, files: Path, arguments: list[object], message: str) -> None:
    """Also with --force nothing of the folder is touched, since everything is checked before."""
    before = snapshot(files / "run")
    force = [] if message.startswith(("not empty", "holds no run")) or "--force" in arguments else ["--force"]
    line = caplet(
        "quantize", files / "model.safetensors", *MEASURED, "--out", files / "run", *arguments, *force
    ).error()
    assert message in line
    after = snapshot(files / "run")
    after.pop(str(files / "run" / ".lock"), None)
    assert after == before


TRAIN_SETTINGS: list[tuple[list[object], str]] = [
    (["--recipe", "digit"], "did you mean 'digits'?"),
    (["--recipe", "absent.toml"], "cannot read the settings file absent.toml"),
    (["--recipe", "digits", "--set", "epoch=3"], "did you mean 'epochs'?"),
    (["--recipe", "digits", "--set", "epochs"], "NAME=VALUE"),
    (["--recipe", "digits", "--set", "epochs=x"], "found 'x'"),
    (["--recipe", "digits", "--set", "epochs=1", "--set", "epochs.y=1"], "was set to 1 before"),
    (["--recipe", "digits", "--set", "overrides.x=1"], "setting 'x'"),
    (["--recipe", "digits", "--set", "model=nope"], "unknown model 'nope'"),
    (["--recipe", "digits", "--model", "cnn-like:shalow-digits"], "did you mean 'shallow-digits'?"),
    (["--recipe", "small-mnist", "--data", "digits"], "does not fit its"),
    (["--recipe", "small-digits", "--set", "cutout=-1"], "cutout"),
    (["--recipe", "small-digits", "--set", "hard_margins=1"], "hard_margins"),
    (["--recipe", "digits", "--set", "lr=nan"], "lr: "),
    (["--recipe", "digits", "--set", "lr_multipliers.foo=2"], "no block 'foo'"),
    (["--recipe", "digits", "--set", "initial_norms.foo=2"], "no capsule layer 'foo'"),
    (["--recipe", "digits", "--limit", 0], "limit must be at least 1"),
    (["--recipe", "digits", "--limit", -1], "limit must be at least 1"),
    (["--recipe", "digits", "--data", "mnst"], "did you mean 'mnist'?"),
    (["--recipe", "digits", "--size", 4], "layer primary: its 3x3 kernel does not fit its 2x2 input"),
    (["--recipe", "shallow-mnist", "--data", "digits"], "layer conv1: its 9x9 kernel does not fit its 8x8 input"),
    (["--recipe", "shallow-mnist", "--data", "digits"], "the smallest image this network works for is 17x17"),
]


@pytest.mark.parametrize(("arguments", "message"), TRAIN_SETTINGS)
def test_settings_of_train(caplet: Caplet, files: Path, arguments: list[object], message: str) -> None:
    before = snapshot(files)
    assert message in caplet("train", *arguments, "--out", files / "run", "--force").error()
    assert message in caplet("train", *arguments, "--out", files / "new").error()
    assert snapshot(files) == before


def _one_class(root: Path) -> None:
    image_folder(root, classes=1)


def _unreadable(root: Path) -> None:
    image_folder(root)
    (root / "class1" / "3.png").write_bytes(b"\x89PNG not really")


def _odd_size(root: Path) -> None:
    image_folder(root)
    picture(root / "class1" / "3.png", 9)


def _empty_class(root: Path) -> None:
    image_folder(root)
    (root / "class2").mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_one_class, ["only one class", "'class0'"]),
        (_unreadable, ["class1", "3.png"]),
        (_odd_size, ["3.png", "9", "8"]),
        (_empty_class, ["class 'class2' has no training images"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval", "quantize"])
def test_image_folders(
    caplet: Caplet, files: Path, command: str, make: Callable[[Path], None], words: list[str]
) -> None:
    make(files / "images")
    before = snapshot(files)
    model = ["--recipe", "digits"] if command == "train" else [files / "model.safetensors"]
    out = [] if command == "eval" else ["--out", files / "run", "--force"]
    line = caplet(command, *model, "--data", files / "images", *out).error()
    assert all(word in line for word in words), line
    assert snapshot(files) == before


def test_images_of_another_size_or_other_classes(caplet: Caplet, files: Path) -> None:
    image_folder(files / "small", classes=10, side=7)
    image_folder(files / "two", classes=2)
    before = snapshot(files)
    for name in ("model.safetensors", "model.caplet"):
        line = caplet("eval", files / name, "--data", files / "small").error()
        assert "takes 1x8x8 images (channels x rows x columns), got 1x7x7" in line
        line = caplet("eval", files / name, "--data", files / "two").error()
        assert "the model has 10 classes" in line
    for command in ("quantize", "sensitivity"):
        line = caplet(command, files / "model.safetensors", "--data", files / "two", "--out", files / "new").error()
        assert "the model has 10 classes" in line
    assert snapshot(files) == before


def test_wrong_kinds_of_model(caplet: Caplet, files: Path) -> None:
    assert "holds integers already" in caplet("quantize", files / "model.caplet").error()
    for command in ("export", "verify"):
        assert "not a .caplet file" in caplet(command, files / "model.safetensors").error()
        assert "no .caplet file in this folder" in caplet(command, files / "run").error()
    assert "did you mean 'shallow'?" in caplet("inspect", "shalow").error()


def test_places_that_are_no_folder(caplet: Caplet, files: Path) -> None:
    text = files / "text.pt"
    for place in (text, text / "deeper"):
        assert "cannot write to the folder" in caplet("train", "--recipe", "digits", "--out", place).error()
        line = caplet("quantize", files / "model.safetensors", *MEASURED, "--out", place).error()
        assert "cannot write to the folder" in line
    line = caplet("eval", files / "model.safetensors", "--data", "mnist", "--root", text).error()
    assert str(text) in line
    assert text.read_text() == "not a model"


def test_a_run_is_resumed_with_its_own_settings(caplet: Caplet, trained: Path, quantized: Path) -> None:
    before = snapshot(quantized)
    words = ("--tolerance", 9, *MEASURED, "--out", quantized, "--resume")
    line = caplet("quantize", trained / "model.safetensors", *words).error()
    assert "'data_hashes.calibration'" in line or "'tolerance' was 5.0 and is now 9.0" in line
    before_training = snapshot(trained)
    line = caplet("train", "--recipe", "digits", "--out", trained, "--resume").error()
    assert "cannot resume" in line
    assert snapshot(quantized) == before
    assert snapshot(trained) == before_training
