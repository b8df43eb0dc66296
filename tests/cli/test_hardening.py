"""Hostile surroundings: full disks, pipes and devices, names that are no text, tools that hang, absurd numbers."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caplet import processes
from caplet.errors import ToolMissing
from caplet.program.c import emit
from caplet.runtime import compiler, engine
from conftest import Caplet, Process

pytestmark = pytest.mark.slow  # seconds each, in processes of their own

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and signals of POSIX")
MAIN = "from caplet.cli import main; main()"


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
FULL = f"caplet: error: {os.strerror(errno.ENOSPC)}\n"


@posix
@full
@pytest.mark.parametrize("command", ["--help", "quantize --help", "--version"])
def test_a_full_disk_below_stdout_is_one_line(command: str) -> None:
    with open("/dev/full", "w") as disk:
        words = [sys.executable, "-c", MAIN, *command.split()]
        done = subprocess.run(words, stdout=disk, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (3, FULL)


@posix
@full
@pytest.mark.parametrize("command", ["doctor --json", "models", "models --json"])
def test_a_full_disk_below_results_is_one_line(process: Process, command: str) -> None:
    done = process(*command.split(), out="/dev/full")
    assert (done.code, done.err) == (3, FULL)


@posix
@full
def test_a_full_disk_below_stderr_leaves_the_exit_code(process: Process, tmp_path: Path) -> None:
    done = process("inspect", tmp_path / "none", err="/dev/full")
    assert (done.code, done.out) == (3, "")


READERS = {
    "plan": ("finetune", "MODEL", "--plan", "FILE.json", "--out", "OUT"),
    "hardware": ("quantize", "MODEL", "--hardware", "FILE.json", "--out", "OUT"),
    "settings": ("compress", "--settings", "FILE.toml", "--out", "OUT"),
    "recipe": ("train", "--recipe", "FILE.toml", "--out", "OUT"),
    "program": ("export", "FILE.caplet", "--out", "OUT"),
    "model": ("inspect", "FILE.safetensors"),
}


@posix
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
@pytest.mark.parametrize("reader", READERS)
def test_pipes_devices_and_huge_files_are_not_read(
    reader: str, kind: str, caplet: Caplet, trained: Path, tmp_path: Path
) -> None:
    words = [word.replace("MODEL", str(trained / "model.safetensors")) for word in READERS[reader]]
    words = [word.replace("OUT", str(tmp_path / "new")).replace("FILE", str(tmp_path / "file")) for word in words]
    file = next(Path(word) for word in words if word.startswith(str(tmp_path / "file")))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 1 << 40)  # a hole: it takes no room
    line = caplet(*words).error()
    assert file.name in line
    expected = "bytes, at most" if kind == "large" else "it is a pipe or a device, no regular file"
    assert expected in line
    assert not (tmp_path / "new").exists()


@posix
def test_names_that_are_no_text(caplet: Caplet, quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xffn")
    try:
        shutil.copytree(quantized, folder)
    except OSError:
        pytest.skip("this file system has no such names")
    done = caplet("report", folder, "--json")
    assert done.code == 0, done.err
    assert done.json()["page"].startswith(str(tmp_path))
    assert "r\\udcffn" in (folder / "report.html").read_text(encoding="utf-8")
    assert "r\\udcfe: no such folder" in caplet("report", tmp_path / os.fsdecode(b"r\xfe")).error()
    for name in ("a", os.fsdecode(b"\xff")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(4):
            pixels = np.random.default_rng(n).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{n}.png")
    line = caplet("eval", quantized / "model_satisfied.caplet", "--data", tmp_path / "images").error()
    assert "the model has 10 classes" in line


@posix
def test_what_libraries_say_of_a_damaged_file_is_not_shown(process: Process, quantized: Path, tmp_path: Path) -> None:
    for label in range(10):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True)
        for n in range(3):
            pixels = np.random.default_rng(n + 10 * label).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\2")
    model, options = quantized / "model_satisfied.caplet", ("--engine", "interpreter", "--quiet", "--json")
    done = process("eval", model, "--data", tmp_path / "images", *options)
    assert done.code == 0, done.err
    assert "Warning" not in done.err


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C compiler that never returns, the only one there is."""
    script = tmp_path / "bin" / "cc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nsleep 1000 & wait\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    monkeypatch.setattr(compiler, "_examine", compiler._examine.__wrapped__)  # what was found before is remembered
    find = compiler.shutil.which
    only = ("cc", str(script))
    monkeypatch.setattr(compiler.shutil, "which", lambda name: find(name) if name in only else None)
    monkeypatch.setattr(processes, "LOOK", 0.5)
    monkeypatch.setattr(engine, "_note", engine._note.__wrapped__)
    return script


@posix
def test_a_compiler_that_never_returns_is_given_up(
    stuck: Path, caplet: Caplet, quantized: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ToolMissing, match=r"cc --version did not end within 0\.5 s and was ended"):
        processes.run([str(stuck), "--version"], seconds=processes.LOOK)
    done = caplet("eval", quantized / "model_satisfied.caplet", "--limit", 40, "--json")
    assert done.code == 0, done.err
    assert done.json()["engine"] == "interpreter"
    assert (
        "the reference interpreter computes the integers, tens of times slower than compiled C: no C comp"
        in caplog.text
    )
    assert caplet("eval", quantized / "model_satisfied.caplet", "--engine", "native").code == 7
    assert caplet("verify", quantized / "model_satisfied.caplet", "--on", "native").code == 7
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(stuck) not in children


@posix
def test_a_compilation_that_never_ends_is_given_up(
    stuck: Path,
    caplet: Caplet,
    quantized: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\nsleep 1000\n')
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processes.run, "__defaults__", (None, 0.5, None))
    done = caplet("eval", quantized / "model_satisfied.caplet", "--limit", 40, "--json")
    assert (done.code, done.json()["engine"]) == (0, "interpreter"), done.err
    assert "did not end within 0.5 s and was ended" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").glob("build-*"))


@posix
def test_an_export_on_a_full_disk_leaves_nothing(
    caplet: Caplet, process: Process, quantized: Path, tmp_path: Path
) -> None:
    words = ["export", str(quantized / "model_satisfied.caplet"), "--out", str(tmp_path / "deep" / "c")]
    done = process(*words, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))")
    assert done.code == 3
    [line] = done.err.splitlines()
    assert line.startswith("caplet: error: cannot write the export to ")
    assert "nothing of it was written: make room" in line
    assert not (tmp_path / "deep" / "c").exists()
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["deep"])
    assert caplet(*words).code == 0
    assert (tmp_path / "deep" / "c" / emit.PROOF).exists()


RANGES: list[tuple[str, str]] = [
    ("quantize MODEL --tolerance 1e-320", "training images cannot show a loss of at most 0 points"),
    ("quantize MODEL --tolerance 1e400", "less than or equal to 100 (found inf)"),
    ("quantize MODEL --seed 18446744073709551616", "seed: Input should be less than 4294967296"),
    ("quantize MODEL --budget 99999999999999999999GB", "less than or equal to 1125899906842624"),
    ("quantize MODEL --budget 9e99GB", "the rule is a number and a unit"),
    ("quantize MODEL --calibration-size 1000000000000000000", "less than or equal to 1000000000"),
    ("quantize MODEL --size 100000", "size: Input should be less than or equal to 4096"),
    ("quantize MODEL --data digits --size 4096 --image-size 4096", "the model is for 8x8 images"),
    ("quantize MODEL --data digits --size 4096", "--size 4096: the model takes 1x8x8 images"),
    ("finetune MODEL --data digits --channels 3", "--channels 3: the model takes 1x8x8 images"),
    ("compress MODEL --data digits --size 4096", "--size 4096: the model takes 1x8x8 images"),
    ("prune MODEL --macs 0.5 --threads 100000", "threads: Input should be less than or equal to 1000"),
    ("prune MODEL --macs 0.5 --shift 100000", "shift: Input should be less than or equal to 1024"),
    ("prune MODEL --macs 0.5 --rounds 100000", "rounds: Input should be less than or equal to 1000"),
    ("prune MODEL --macs 0.5 --seed 18446744073709551616", "seed: Input should be less than 9223372036854775808"),
    ("prune MODEL --macs 0.5 --batch-size 1000000000000", "batch_size: Input should be less than or equal to 65536"),
    ("sensitivity MODEL --draws 1000000000", "draws: Input should be less than or equal to 1000"),
    ("train --recipe digits --set threads=100000", "threads: Input should be less than or equal to 1000"),
    ("train --recipe digits --set shift=100000", "shift: Input should be less than or equal to 1024"),
    ("train --recipe digits --set seed=18446744073709551616", "seed: Input should be less than 9223372036854775808"),
    (
        "train --recipe digits --set epochs=1000000000000000000",
        "epochs: Input should be less than or equal to 1000000000",
    ),
    ("train --recipe digits --set overrides.iterations=1000000000000000000", "less than or equal to 1000"),
    ("train --recipe digits --set overrides.class_dim=1000000000", "class_dim"),
    ("train --recipe digits --size 100000", "size: Input should be less than or equal to 4096"),
    ("train --recipe digits --set lr=1e-320", "lr: Input should be greater than or equal to"),
]


@pytest.mark.parametrize(("command", "message"), RANGES, ids=[command for command, _ in RANGES])
def test_every_number_has_a_range(command: str, message: str, caplet: Caplet, trained: Path, tmp_path: Path) -> None:
    words = command.replace("MODEL", str(trained / "model.safetensors")).split()
    assert message in caplet(*words, "--out", tmp_path / "new").error()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("eval x --engine nativ", "--engine 'nativ': the choice is auto, native, interpreter; did you mean 'native'?"),
        ("quantize x --method maxi", "--method 'maxi': the choice is qcapsnets, progressive, ilp"),
        ("trace x --split Test", "--split 'Test': the choice is calibration, train, test; did you mean 'test'?"),
        (
            "export x --to onxx",
            "--to 'onxx': the choice is c, cmake, arduino, zephyr, esp-idf, platformio, micropython, web, onnx; "
            "did you mean 'onnx'?",
        ),
    ],
)
def test_a_choice_that_there_is_not_is_one_line(caplet: Caplet, words: str, told: str) -> None:
    done = caplet(*words.split())
    assert (done.code, done.out, done.err) == (2, "", f"caplet: error: {told}\n")


def test_a_bar_prints_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from caplet.cli.output import bar

    with bar(True) as (step, measured):
        assert measured is not None
        measured(1, 3)
        step("a line")
        measured(3, 3)
    assert capsys.readouterr().err == "a line\n"


def test_random_images_have_a_limit(caplet: Caplet, quantized: Path) -> None:
    line = caplet("verify", quantized / "model_satisfied.caplet", "--images", 1 << 40).error()
    assert "--images 1099511627776: more than 536,870,912 bytes of random images" in line


def test_streams_that_are_closed_are_no_error(caplet: Caplet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert caplet("models").code == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert caplet("inspect", "none").code == 3


def test_an_error_does_not_steer_the_terminal(caplet: Caplet, tmp_path: Path) -> None:
    assert caplet("inspect", tmp_path / "a\x1b[31mb\x07").error().count("a\\x1b[31mb\\x07") == 1


@posix
def test_classes_whose_names_are_no_text(caplet: Caplet, tmp_path: Path) -> None:
    for number, name in enumerate((b"a", b"b\xff")):
        try:
            (tmp_path / "images" / os.fsdecode(name)).mkdir(parents=True)
        except OSError:
            pytest.skip("this file system has no such names")
        for n in range(12):
            pixels = np.random.default_rng(n).integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(100 * number)
            Image.fromarray(pixels).save(tmp_path / "images" / os.fsdecode(name) / f"{n}.png")
    data, net, ints = ("--data", tmp_path / "images", "--quiet"), tmp_path / "net", tmp_path / "ints"
    assert caplet("train", "--recipe", "digits", "--set", "epochs=1", *data, "--out", net).code == 0
    search = ("--method", "qcapsnets", "--accept", "measured", "--tolerance", 90, "--out", ints)
    assert caplet("quantize", net / "model.safetensors", *data, *search).code in (0, 5)
    [program, *_] = ints.glob("*.caplet")
    assert caplet("eval", program, *data).code == 0
    assert [caplet("report", run).code for run in (net, ints)] == [0, 0]
    assert "b\\udcff" in (ints / "report.html").read_text(encoding="utf-8")


def test_commands_that_are_told_may_be_copied(caplet: Caplet, quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    done = caplet("export", quantized, "--to", "c", "--out", folder)
    assert f"make -C '{folder}' test" in done.err + done.out
    done = caplet("init", folder / "new.toml")
    assert f"caplet compress --settings '{folder / 'new.toml'}'" in done.err + done.out
