"""Train by a recipe: from its name to a run folder with the model and its test accuracy."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caplet.data import Splits, load_data
from caplet.errors import ConfigError
from caplet.files import read_toml, write_bytes
from caplet.jobs.run import begin, open_test_split, ship, training_notes
from caplet.metrics import Accuracy
from caplet.models.base import CapsNet
from caplet.models.checkpoint import save_model
from caplet.models.plain import CNN_LIKE, PlainCnn
from caplet.models.registry import named_model
from caplet.nn.device import AUTO, find_device, placed
from caplet.progress import silent
from caplet.report.training import learning_curves
from caplet.train.initialise import check_targets
from caplet.train.loop import train as run_training
from caplet.train.optimise import make_optimizer
from caplet.train.settings import TrainSettings, load_recipe
from caplet.train.task import build_decoder, build_model

MODEL, CURVES = "model.safetensors", "curves.svg"


@dataclass(frozen=True)
class TrainRun:
    """A finished training run.

    Attributes:
        model: the kept weights, evaluation mode; batch norms are in the layers that read them, where they can be.
        model_path: its checkpoint.
        test: accuracy on the test split, opened once.
        metrics: what ``metrics.json`` holds.
    """

    model: CapsNet
    model_path: Path
    test: Accuracy
    metrics: dict[str, Any]


def parse_changes(changes: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """``["epochs=3", "initial_norms.digit=0.5"]`` as settings; values are TOML, bare words are strings.

    Settings that are a table already are copied. Raises ConfigError.

    >>> parse_changes(["epochs=3", "precision=bfloat16", "overrides.classes=5"])
    {'epochs': 3, 'precision': 'bfloat16', 'overrides': {'classes': 5}}
    """
    if isinstance(changes, Mapping):
        return dict(changes)
    settings: dict[str, Any] = {}
    for change in changes:
        name, sign, text = change.partition("=")
        if not sign or not name:
            raise ConfigError(f"--set {change!r}: the rule is NAME=VALUE, e.g. epochs=3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        place = settings
        *parents, last = name.strip().split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {change!r}: {parent} was set to {place!r} before; give it once, in one form")
        place[last] = value
    return settings


def resolve_recipe(recipe: str, changes: dict[str, Any]) -> TrainSettings:
    """Settings from a recipe's name, or from a TOML file's path, with some of them changed.

    Raises:
        ConfigError: no such recipe or file, or a setting is unknown or out of range.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        return load_recipe(recipe, changes)
    values = read_toml(path, "the settings file", kind=ConfigError)
    return TrainSettings.of({**values, **changes}, str(path))


def train_by_recipe(
    recipe: str,
    out: str | Path,
    *,
    root: str | Path | None = None,
    data: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    background: str | None = None,
    changes: list[str] | dict[str, Any] | None = None,
    limit: int | None = None,
    resume: bool = False,
    force: bool = False,
    tensorboard: bool = False,
    memory: int | None = None,
    progress: bool = True,
    features: str | Path | None = None,
    device: str = AUTO,
) -> TrainRun:
    """Train a model by a recipe (or a TOML settings file) and write its run folder.

    The image shape and the number of classes follow the data. Training sees the train and calibration splits; the test
    split is opened once, at the end, for ``metrics.json``.

    Args:
        recipe: a name of ``recipes()``, or the path of a TOML file of :class:`TrainSettings`.
        data: another dataset than the recipe's; ``root`` ... ``limit`` as :func:`load_data`.
        changes: settings to change, as a dict or as ``NAME=VALUE`` texts.
        memory: see :func:`caplet.train.loop.train`.
        resume, force: see :func:`caplet.runs.folder.open_run`.
        features, device: see :func:`caplet.train.loop.train`.

    Raises:
        ConfigError, DataError, ModelError, ArtefactError: see their messages.
        KeyboardInterrupt: interrupted; ``resume`` goes on.
    """
    changed, there = parse_changes(changes or {}), find_device(device)
    if data is not None:
        changed["dataset"] = data
    settings = resolve_recipe(recipe, changed)
    asked: dict[str, Any] = {"calibration_size": settings.calibration_size, "background": background}
    splits = load_data(settings.dataset, root, **asked, size=size, channels=channels, limit=limit, progress=progress)
    settings = fit_to_data(settings, splits)
    check_settings(settings)
    taken = {key: splits.info[key] for key in ("size", "channels", "limit", "hashes")}
    resolved = {**settings.model_dump(mode="json"), "recipe": recipe, "data": taken}
    with begin("train", out, splits, resolved, resume=resume, force=force) as run:
        how: dict[str, Any] = {"tensorboard": tensorboard, "features": features, "memory": memory, "device": device}
        result = run_training(settings, splits, run, resume=resume, progress=progress, **how)
        model = result.model.folded()
        answers = open_test_split(splits, placed(model, there), {}, silent)
        test = answers.accuracy()
        metrics = {
            "recipe": recipe,
            "test": test,
            "calibration_accuracy": result.calibration_accuracy,
            "epoch": result.epoch,
            "epochs": len(result.history),
            "seconds": round(result.seconds, 1),
            "images_per_second": round(result.images_per_second, 1),
            "parameters": model.parameter_count(),
            "history": result.history,
        }
        write_bytes(run / CURVES, learning_curves(result.history, f"{recipe} on {splits.info['name']}", result.epoch))
        metrics = ship(run, splits, metrics, answers)
        notes = {key: metrics[key] for key in ("recipe", "test", "epoch", "data")}
        model.notes = {**notes, **training_notes(splits)}
        save_model(model, run / MODEL, model.notes)
        return TrainRun(model, run / MODEL, test, metrics)


def check_settings(settings: TrainSettings) -> None:
    """Raise ModelError or ConfigError now for what training would stumble over: model, decoder, names of blocks."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(settings)
        make_optimizer(settings, model, build_decoder(settings, model))
    if not isinstance(model, PlainCnn):
        check_targets(model, settings.initial_norms)


def fit_to_data(settings: TrainSettings, splits: Splits) -> TrainSettings:
    """The settings with the model's image shape and number of classes overridden where the data have others."""
    config = named_model(settings.model.removeprefix(CNN_LIKE)).config
    named = {"image": config.image, "classes": config.classes, **settings.overrides}
    differing: dict[str, Any] = {}
    if tuple(named["image"]) != (image := tuple(splits.train.image_shape)):
        differing["image"] = image
    if named["classes"] != (classes := len(splits.train.classes)):
        differing["classes"] = classes
    return settings.model_copy(update={"overrides": {**settings.overrides, **differing}})
