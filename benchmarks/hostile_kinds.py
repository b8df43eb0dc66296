"""Every kind of file that caplet reads: small sound ones, and what reads them, for ``hostile_files.py``.

Samples are made by caplet itself and by the writers of the tests, each in a folder of its own. A :class:`Kind` names
the files in it that are damaged, one at a time, and the function that then reads them.
"""

import importlib
import json
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from caplet import api
from caplet.data import Splits, load_data, load_saved_splits
from caplet.data.images import endings
from caplet.data.validation import load_validation
from caplet.errors import CapletError
from caplet.jobs.compress.settings import settings_template
from caplet.jobs.inspect import inspect_model
from caplet.jobs.quantize.job import CALIBRATION
from caplet.jobs.report import write_report
from caplet.jobs.train import fit_to_data, resolve_recipe
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers.pretrained import load_pretrained
from caplet.models.registry import build
from caplet.program import plan_memory
from caplet.program import run as run_program
from caplet.quant.measure.evaluator import Evaluator
from caplet.quant.measure.log import MeasurementCache
from caplet.quant.plan.calibrate import Calibration
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.plan.target import find_hardware
from caplet.quant.reconstruct.blocks import _KEY, BlockStore
from caplet.runs.folder import SETTINGS, open_run
from caplet.runs.shipped import record_verified
from caplet.runs.stages import STAGES, Stages
from caplet.train.logs import csv_log, read_steps
from caplet.train.settings import TrainSettings
from caplet.train.state import load_state

TESTS = Path(__file__).parent.parent / "tests"
TINY: dict[str, Any] = {"epochs": 2, "calibration_size": 120}
SMALL = {"image": (1, 8, 8), "stem": [{"kernel": 3, "channels": 4}], "primary_types": 2, "primary_kernel": 3}
FORM = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".toml": "toml",
    ".ckpt": "checkpoint",
    ".npz": "zip",
    ".npy": "npy",
    ".safetensors": "safetensors",
    ".caplet": "safetensors",
    ".h5": "h5",
    ".keras": "zip",
    ".zip": "zip",
    ".png": "png",
    ".tar": "tar",
    ".mat": "mat",
}
"""A file's form by its ending, where the kind names none."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        sample: the folder under the samples' that has it.
        files: patterns of the files in it that are damaged.
        read: gives them to caplet: called with the folder and the damaged file.
        weight: how many of the files of a run are of this kind, relative to the others.
        seconds: how long reading may take; resumed jobs compute, too.
        form: of the files, where their ending does not say it.
        writes: whether reading changes the folder, so that the next one needs a fresh copy.
    """

    sample: str
    files: tuple[str, ...]
    read: Callable[[Path, Path], object]
    weight: float = 10
    form: str = ""
    writes: bool = False
    seconds: float = 10.0

    def form_of(self, path: Path) -> str:
        """The form of one of the files, for :func:`mutations.mutate`."""
        return self.form or FORM.get(path.suffix, "bytes")


def _model(folder: Path, file: Path) -> None:
    inspect_model(api.load(file), file)


def _trunk(folder: Path, file: Path) -> None:
    load_pretrained(_backbone(), file)


@cache
def _backbone() -> CapsNet:
    support = importlib.import_module("tiny_networks")
    return build("backbone", support.CONFIGS["backbone"])


def _program(folder: Path, file: Path) -> None:
    program = api.load_program(file)
    plan_memory(program, "small")
    run_program(program, np.full((1, *program.image_shape), 200, dtype=np.uint8))


def _folder(folder: Path, file: Path) -> None:
    load_data(folder)


def _picture(folder: Path, file: Path) -> None:
    load_data(file.parent.parent)


def _archive(folder: Path, file: Path) -> None:
    load_data(file)


def _named(name: str, folder: Path, file: Path) -> None:
    load_data(name, folder, download=False)


def _cached(folder: Path, file: Path) -> None:
    """The decoded images of an archive, in the cache folder that ``hostile_files.py`` points into this folder."""
    load_data(folder / "images.zip")


def _held_out(folder: Path, file: Path) -> None:
    load_validation(folder, _digits())


def _split_ids(folder: Path, file: Path) -> None:
    load_saved_splits(file)


@cache
def _digits() -> Splits:
    return load_data("digits", calibration_size=120)


def _recipe(folder: Path, file: Path) -> None:
    fit_to_data(resolve_recipe(str(file), {}), _digits())


def _compress_settings(folder: Path, file: Path) -> None:
    api.compress_settings(file)


def _plan(folder: Path, file: Path) -> None:
    api.lower_model(_small(), api.read_plan(file))


@cache
def _small() -> CapsNet:
    return load_model(samples() / "train" / "model.safetensors")


def _hardware(folder: Path, file: Path) -> None:
    hardware = find_hardware(str(file))
    for spec in _small().points().values():
        with suppress(CapletError):
            hardware.container(spec, 5)


def _checkpoint(folder: Path, file: Path) -> None:
    settings = TrainSettings.of(json.loads((samples() / "train" / "made.json").read_text()))
    load_state(file, {}, settings)


def _training_log(folder: Path, file: Path) -> None:
    csv_log(file, 1, 10)
    read_steps(file)


def _stages(folder: Path, file: Path) -> None:
    def work(place: Path, resume: bool) -> None:
        place.mkdir(exist_ok=True)
        (place / "out.json").write_text("{}")

    stages = Stages(folder)
    for name in ("first", "second"):
        stages.do(name, {"a": 1}, work, ("out.json",))


def _settings(folder: Path, file: Path) -> None:
    with open_run(folder, json.loads((samples() / "settings" / SETTINGS).read_text()), resume=True):
        pass


def _calibration(folder: Path, file: Path) -> None:
    Calibration.made_of(file)
    found = Calibration.load(file, _small())
    for key in found.specs:
        found.format(key, 5)


def _probes(folder: Path, file: Path) -> None:
    images = _digits().calibration
    evaluator = Evaluator(_small(), images.images, images.labels, log_path=file)
    evaluator.float_result()


def _answers(folder: Path, file: Path) -> None:
    cache_of = MeasurementCache(file, "log of answers", {"model": "a"})
    cache_of.answer({"point": "a", "bits": 3}, lambda: 1.0)


def _blocks(folder: Path, file: Path) -> None:
    facts = json.loads((samples() / "blocks" / "facts.json").read_text())

    class Plan(QuantPlan):
        def digest(self) -> str:
            return str(facts["plan"])

    BlockStore(folder, facts["identity"]).load("digit", Plan({}))


def _report(folder: Path, file: Path) -> None:
    write_report([folder], folder / "page.html")


def _diff(sample: str, folder: Path, file: Path) -> None:
    api.diff_runs(folder, samples() / sample)


def _verified(folder: Path, file: Path) -> None:
    record_verified(folder, api.load_program(folder / "model_satisfied.caplet"), "digits", [])


def _resume_training(folder: Path, file: Path) -> None:
    api.train_model("digits", folder, changes=TINY, limit=240, resume=True, progress=False)


def _resume_quantizing(folder: Path, file: Path) -> None:
    _quantize(folder, resume=True)


def _resume_pruning(folder: Path, file: Path) -> None:
    _prune(folder, resume=True)


def _resume_compressing(folder: Path, file: Path) -> None:
    _compress(folder, resume=True)


KINDS: dict[str, Kind] = {
    "native model": Kind("native", ("model.safetensors",), _model, 30),
    "native deep model": Kind("native", ("deep.safetensors",), _model, 5),
    "foreign safetensors": Kind("foreign", ("foreign.safetensors",), _model, 15),
    "PyTorch archive": Kind("foreign", ("archive.pt",), _model, 20, "zip"),
    **{f"PyTorch archive, pickle protocol {n}": Kind("foreign", (f"zip{n}.pt",), _model, 8, "zip") for n in (3, 4, 5)},
    **{f"PyTorch pickle, protocol {n}": Kind("foreign", (f"bare{n}.pt",), _model, 8, "pickle") for n in (2, 3, 4, 5)},
    "PyTorch checkpoint": Kind("foreign", ("whole.pt",), _model, 20, "checkpoint"),
    "trunk weights": Kind("foreign", ("trunk.pt",), _trunk, 10, "checkpoint"),
    "Keras model (.h5)": Kind("keras", ("model.h5",), _model, 25),
    "Keras weights (.h5)": Kind("keras", ("weights.h5",), _model, 15),
    "Keras 3 model (.keras)": Kind("keras", ("model.keras",), _model, 20),
    ".caplet": Kind("program", ("model.caplet",), _program, 30),
    ".caplet, sealed again": Kind("program", ("forged.caplet",), _program, 30, "forged"),
    "IDX": Kind("idx", ("*ubyte",), _folder, 25),
    "IDX, gzipped": Kind("idx-gz", ("*.gz",), _folder, 10, "gz"),
    "IDX by name": Kind("mnist", ("*ubyte",), partial(_named, "mnist"), 10),
    "MATLAB (.mat)": Kind("svhn", ("*.mat",), partial(_named, "svhn"), 0.5),
    "CIFAR-10 batch": Kind("cifar10", ("*batch*",), partial(_named, "cifar10"), 15, "pickle"),
    "CIFAR-100 pickles": Kind("cifar100", ("*",), partial(_named, "cifar100"), 15, "pickle"),
    "CIFAR-10, binary": Kind("cifar10-bin", ("*.bin",), _folder, 5),
    "smallNORB": Kind("norb", ("*.mat",), _folder, 10, "bytes"),
    "smallNORB, gzipped": Kind("norb-gz", ("*.gz",), _folder, 5, "gz"),
    "EMNIST": Kind("emnist", ("*ubyte",), partial(_named, "emnist-letters"), 8),
    ".npz of images": Kind("npz", ("*.npz",), _archive, 30),
    ".npy of images": Kind("npy", ("*.npy",), _folder, 25),
    "CSV": Kind("csv", ("*.csv",), _archive, 40),
    "CSV, train and test": Kind("csv-splits", ("*.csv",), _folder, 20),
    "archive of arrays and tables": Kind("packed", ("*.zip", "*.tar"), _archive, 25),
    "PNG": Kind("images", ("*/*.png",), _folder, 40),
    "JPEG": Kind("jpeg", ("*/*.jpg",), _folder, 20),
    "other images": Kind("pictures", ("*/*/*",), _picture, 40),
    "zip archive": Kind("archives", ("images.zip",), _archive, 20),
    "tar archive": Kind("archives", ("images.tar",), _archive, 20),
    **{
        f"tar.{end} archive": Kind("archives", (f"images.tar.{end}",), _archive, 8, f"tar.{end}")
        for end in ("gz", "xz", "bz2")
    },
    "decoded images in the cache": Kind("cached", ("cache/decoded/*.npz",), _cached, 20, writes=True),
    "validation images": Kind("held", ("*.png",), _held_out, 5),
    "split ids": Kind("train", ("splits.json",), _split_ids, 5),
    "recipe": Kind("settings", ("recipe.toml",), _recipe, 25),
    "settings of compress": Kind("settings", ("compress.toml",), _compress_settings, 30),
    "plan": Kind("settings", ("plan.json",), _plan, 30),
    "hardware": Kind("settings", ("hardware.json",), _hardware, 25),
    "settings of a run": Kind("settings", (SETTINGS,), _settings, 15, writes=True),
    "training checkpoint": Kind("train", ("train.ckpt",), _checkpoint, 30),
    "training log": Kind("train", ("train.csv",), _training_log, 25, writes=True),
    "stages": Kind("stages", (STAGES,), _stages, 20, writes=True),
    "calibration": Kind("quantize", (CALIBRATION,), _calibration, 25),
    "evaluation log": Kind("quantize", ("probes.jsonl",), _probes, 15, writes=True),
    "log of answers": Kind("answers", ("answers.jsonl",), _answers, 20, writes=True),
    "reconstructed block": Kind("blocks", ("reconstructed-digit.safetensors",), _blocks, 15),
    "verified engines": Kind("quantize", ("verify.json",), _verified, 5, writes=True),
    **{
        f"report of {job}": Kind(job, ("*.json",), _report, weight)
        for job, weight in (
            ("train", 6),
            ("quantize", 12),
            ("prune", 8),
            ("finetune", 5),
            ("qat", 6),
            ("sensitivity", 6),
            ("compress", 8),
        )
    },
    **{f"diff of {job}": Kind(job, ("*.json",), partial(_diff, job), 6) for job in ("train", "quantize", "prune")},
    **{
        f"resumed {job}": Kind(job, files, read, weight, writes=True, seconds=60)
        for job, files, read, weight in (
            ("train", ("train.*", "*.json"), _resume_training, 0.1),
            ("quantize", ("*.jsonl", "*.npz", "reconstructed*", "*.json"), _resume_quantizing, 0.1),
            ("prune", ("*.json", "*/*.json", "*/*.safetensors", "*/*/*"), _resume_pruning, 0.1),
            ("compress", ("*.json", "*/*.json", "*/*.jsonl", "*/*.npz", "*/*.safetensors"), _resume_compressing, 0.05),
        )
    },
}
"""By name, in the order in which they are reported."""

_PLACE = [Path()]


def samples() -> Path:
    """The folder of the sound files; :func:`make_samples` sets it."""
    return _PLACE[0]


def make_samples(place: Path) -> None:
    """Write the sound files into ``place``, unless an earlier call has written all of them."""
    _PLACE[0] = place
    sys.path += [str(TESTS / name) for name in ("models", "data", "program", "support")]
    if (place / "whole").exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for make in (_runs, _models, _programs, _datasets, _texts):
        make(place)
    (place / "whole").touch()


def _quantize(folder: Path, resume: bool = False) -> None:
    model, splits = api.load_float(samples() / "train" / "model.safetensors"), load_data("digits", calibration_size=120)
    settings = api.QuantizeSettings.of(
        {"accept": "measured", "tolerance": 5.0, "method": "ilp", "budget": "12KB", "reconstruct": "bias,rounding"}
    )
    api.quantize(model, splits, folder, settings, resume=resume, engine="interpreter")  # a new cache has no C


def _prune(folder: Path, resume: bool = False) -> None:
    model, splits = api.load_float(samples() / "train" / "model.safetensors"), load_data("digits", calibration_size=120)
    api.prune_model(model, splits, folder, api.PruneSettings(macs=0.6, epochs=1), resume=resume)


def _compress(folder: Path, resume: bool = False) -> None:
    settings = api.compress_settings(
        None,
        {
            "model": str(samples() / "train" / "model.safetensors"),
            "data": "digits",
            "calibration_size": 120,
            "limits": {"max_drop": 20.0},
            "prune": {"probes": [0.5], "probe_steps": 5, "least_steps": 20},
            "quantize": {"probes": [8, 4], "reconstruct": [], "narrow": False},
            "verify": {"images": 3, "timed": 1},
        },
    )
    api.compress(None, None, folder, settings, resume=resume, threads=1)


def _runs(place: Path) -> None:
    """A run folder of every job."""
    train = place / "train"
    api.train_model("digits", train, changes=TINY, limit=240, progress=False)
    made = TrainSettings.of(resolve_recipe("digits", TINY).model_dump())
    (train / "made.json").write_text(made.model_dump_json())
    model, splits = api.load_float(train / "model.safetensors"), load_data("digits", calibration_size=120)
    _quantize(place / "quantize")
    program = api.load_program(place / "quantize" / "model_satisfied.caplet")
    pixels = splits.test.images[:3].numpy()
    api.record_verified(place / "quantize", program, "digits", api.verify_engines(program, pixels, ("interpreter",)))
    plan = api.load_plan(place / "quantize" / "model_satisfied.caplet")
    assert plan is not None
    found = api.trace_levels(program, pixels, api.parse_levels("float,fake,program"), model=model, plan=plan)
    api.record_trace(place / "quantize", program, found)
    _prune(place / "prune")
    api.finetune_model(
        model, splits, place / "finetune", settings=api.finetune_settings({"epochs": 1}, under_plan=False)
    )
    settings = api.finetune_settings({"epochs": 1}, under_plan=True)
    api.finetune_model(model, splits, place / "qat", plan, settings)
    analysed = api.SensitivitySettings(widths=(3, 6), draws=2, images=20)
    api.sensitivity(model, splits, place / "sensitivity", analysed)
    _compress(place / "compress")
    _blocks_of(place)
    stages = place / "stages"
    stages.mkdir()
    _stages(stages, stages / STAGES)
    answers = place / "answers"
    answers.mkdir()
    _answers(answers, answers / "answers.jsonl")


def _blocks_of(place: Path) -> None:
    """A layer that was fitted, and what its result belongs to."""
    folder = place / "blocks"
    folder.mkdir()
    source = next((place / "quantize").glob("reconstructed-*.safetensors"))
    shutil.copy(source, folder / "reconstructed-digit.safetensors")
    data = source.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = json.loads(head["__metadata__"][_KEY])
    (folder / "facts.json").write_text(json.dumps(facts))


def _models(place: Path) -> None:
    foreign: Any = importlib.import_module("foreign")
    keras: Any = importlib.import_module("test_keras")
    support: Any = importlib.import_module("tiny_networks")
    for name in ("native", "foreign", "keras"):
        (place / name).mkdir()
    save_model(build("shallow", SMALL), place / "native" / "model.safetensors", {"classes": [*"0123456789"]})
    save_model(build("deep", support.CONFIGS["deep"]), place / "native" / "deep.safetensors")
    state = foreign.shallow_capsnet(size=12, kernels=(3, 3), maps=2).state
    from safetensors.torch import save_file

    save_file(state, place / "foreign" / "foreign.safetensors")
    torch.save(state, place / "foreign" / "archive.pt")
    whole = {"epoch": 3, "model": {f"module.{name}": tensor for name, tensor in state.items()}, "lr": 0.1}
    torch.save(whole, place / "foreign" / "whole.pt")
    for protocol in (2, 3, 4, 5):
        bare, packed = (place / "foreign" / f"{name}{protocol}.pt" for name in ("bare", "zip"))
        torch.save(state, bare, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        torch.save({"state_dict": state, "n": np.float64(3)}, packed, pickle_protocol=protocol)
    torch.save(named_tensors(_backbone()), place / "foreign" / "trunk.pt")
    net = foreign.q7_capsnet((1, 12, 12), ((3, 1, 2),), (3, 2, 2, 2))
    foreign.write_keras(place / "keras" / "model.h5", net)
    foreign.write_keras(place / "keras" / "weights.h5", net, config=False)
    keras.write_keras(place / "keras" / "model.keras", keras.mnist_bn())


def _programs(place: Path) -> None:
    (place / "program").mkdir()
    shutil.copy(place / "quantize" / "model_satisfied.caplet", place / "program" / "model.caplet")
    (place / "program" / "forged.caplet").write_bytes(importlib.import_module("fuzz_program_file").SMALL)


def _datasets(place: Path) -> None:
    from scipy.io import savemat

    writers: Any = importlib.import_module("data_files")
    writers.write_idx(place / "idx")
    writers.write_idx(place / "mnist")
    import gzip

    (place / "idx-gz").mkdir()
    for path in (place / "idx").iterdir():
        (place / "idx-gz" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (place / "svhn").mkdir()
    for split, count, packed in (("train", 40, True), ("test", 20, False)):
        pixels, labels = writers.pixels(count, (32, 32, 3)), (np.arange(count) % 10 + 1).astype(np.uint8)
        content = {"X": pixels.transpose(1, 2, 3, 0), "y": labels[:, None]}
        savemat(place / "svhn" / f"{split}_32x32.mat", content, do_compression=packed)
    (place / "cifar10").mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        batch = {b"data": writers.pixels(20, (3072,)), b"labels": [n % 10 for n in range(20)]}
        (place / "cifar10" / name).write_bytes(pickle.dumps(batch, protocol=2))
    _other_forms(place, writers)
    writers.write_folder(place / "images", ("a", "b"), 4)
    held = place / "held"
    held.mkdir()
    for n in range(3):
        Image.fromarray(writers.pixels(1, (8, 8), n)[0]).save(held / f"{n}.png")
    _pictures(place, writers)
    _archives(place)


def _other_forms(place: Path, writers: Any) -> None:
    """CIFAR-100, smallNORB, EMNIST, NumPy's files and CSV, and archives of the last two."""
    own: Any = importlib.import_module("test_own")
    tables: Any = importlib.import_module("test_table")
    own.write_cifar100(place / "cifar100")
    rows = writers.pixels(20, (3073,))
    rows[:, 0] %= 10
    (place / "cifar10-bin").mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (place / "cifar10-bin" / f"{name}.bin").write_bytes(rows.tobytes())
    own.write_norb(place / "norb")
    own.write_norb(place / "norb-gz", packed=True)
    own.write_emnist(place / "emnist", "letters", 26, 1)
    for name in ("npz", "npy", "packed"):
        (place / name).mkdir()
    labels = np.arange(60) % 3
    pixels, colours = writers.pixels(60, (8, 8)), writers.pixels(60, (8, 8, 3))
    splits = {"x_train": colours, "y_train": labels, "x_test": colours[:20], "y_test": labels[:20, None]}
    np.savez(place / "npz" / "splits.npz", **splits)
    np.savez_compressed(place / "npz" / "one.npz", X=pixels.reshape(60, 64) / 255, y=np.eye(3)[labels])
    np.savez(place / "npz" / "names.npz", images=pixels, labels=labels, class_names=np.array(["a", "b", "c"]))
    for name, array in splits.items():
        np.save(place / "npy" / f"{name}.npy", array)
    columns, heading = [labels, *pixels.reshape(60, 64).T], ["label", *(f"pixel{n}" for n in range(64))]
    tables.write(place / "csv" / "headed.csv", columns, heading)
    tables.write(place / "csv" / "plain.csv", columns)
    tables.write(place / "csv" / "names.csv", [[("ant", "b c", "d")[k] for k in labels], *columns[1:]], heading, ";")
    for name in ("train", "test"):
        tables.write(place / "csv-splits" / f"{name}.csv", columns, heading)
    for form in ("npy", "csv-splits"):
        with zipfile.ZipFile(place / "packed" / f"{form}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in (place / form).iterdir():
                archive.write(path, f"in/{path.name}")
        with tarfile.open(place / "packed" / f"{form}.tar", "w") as tar:
            tar.add(place / form, "in")
    with zipfile.ZipFile(place / "packed" / "idx.zip", "w") as archive:
        for path in (place / "idx-gz").iterdir():
            archive.write(path, path.name)


def _pictures(place: Path, writers: Any) -> None:
    """Pictures of every format that is read and written, a folder of two classes for each."""
    pixels = writers.pixels(8, (16, 16, 3))
    for n in range(8):
        folder = place / "jpeg" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[n]).save(
            folder / f"{n}.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
        )
    for ending, name in endings().items():
        folder = place / "pictures" / ending[1:]
        try:
            for n in range(2):
                (folder / "ab"[n]).mkdir(parents=True)
                Image.fromarray(pixels[n]).save(folder / "ab"[n] / f"0{ending}", format=name)
        except Exception:  # a format that Pillow reads and does not write
            shutil.rmtree(folder)


def _archives(place: Path) -> None:
    folder = place / "archives"
    folder.mkdir()
    files = sorted((place / "images").rglob("*.png"))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(place / "images"))
    for ending in ("", ".gz", ".xz", ".bz2"):
        with tarfile.open(folder / f"images.tar{ending}", f"w:{ending[1:]}") as tar:  # type: ignore[call-overload]
            for path in files:
                tar.add(path, path.relative_to(place / "images"))
    cached = place / "cached"
    cached.mkdir()
    shutil.copy(folder / "images.zip", cached)
    with in_cache(cached / "cache"):
        load_data(cached / "images.zip")


def in_cache(folder: Path) -> Any:
    """A context in which ``folder`` is caplet's cache folder."""
    from unittest.mock import patch

    return patch.dict("os.environ", {"CAPLET_CACHE": str(folder)})


def _texts(place: Path) -> None:
    folder = place / "settings"
    folder.mkdir()
    template = settings_template(recipe="digits")
    (folder / "compress.toml").write_text(template)
    recipe = resolve_recipe("digits", {})
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in recipe.model_dump(mode="json").items()
        if value not in (None, {})
    ]
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
    shutil.copy(place / "quantize" / "plan_satisfied.json", folder / "plan.json")
    hardware = {"name": "own", "weight_containers": [4, 8], "activation_containers": [8, 16], "shift": [-8, 31]}
    (folder / "hardware.json").write_text(json.dumps({**hardware, "accumulator_bits": 32, "only_containers": True}))
    shutil.copy(place / "quantize" / SETTINGS, folder / SETTINGS)


def targets(kind: Kind) -> list[Path]:
    """The files of a kind's sample that may be damaged, relative to its folder, in order."""
    folder = samples() / kind.sample
    found = {path.relative_to(folder) for pattern in kind.files for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)
