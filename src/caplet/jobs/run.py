"""What every job does first and last: checks, the run folder; predictions, the one look at the test split, records."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caplet.data import Splits
from caplet.data.imageset import ImageSet, spelt
from caplet.errors import ConfigError, ModelError
from caplet.metrics import Accuracy, Paired, accuracy, paired
from caplet.models.assemble import named_tensors
from caplet.models.base import CapsNet, check_finite
from caplet.nn.device import CPU, find_device
from caplet.program import Program
from caplet.progress import Note, silent
from caplet.quant.measure.evaluator import predict
from caplet.runs.folder import METRICS, SPLITS, open_run, plain, write_record
from caplet.runs.shipped import Classes, record_details, record_flips, record_predictions
from caplet.runtime.engine import Engine, predictions
from caplet.workers.group import current
from caplet.workers.settings import WorkerSettings
from caplet.workers.team import Team

HELD_OUT = "held_out"
"""In the notes of a model: the SHA-256 of the calibration split that it was never trained on."""


@dataclass(frozen=True)
class Evaluation:
    """A measured accuracy.

    Attributes:
        accuracy: with n and interval.
        predictions: int64 (N,).
        engine: ``torch`` for a float model, else what ran the Program.
        seconds: wall time.
        note: what became of the labels where the model orders or names its classes otherwise.
    """

    accuracy: Accuracy
    predictions: NDArray[np.int64]
    engine: str
    seconds: float
    note: str = ""


def job_device(
    name: str, workers: WorkerSettings | Team | None = None, auto: Sequence[str] = ("cpu",), *, exact: bool = True
) -> torch.device:
    """As :func:`caplet.nn.device.find_device`, for a job that measures: workers, and processes that torchrun started,
    do so on the CPU. Raises ConfigError also where another device is named beside workers."""
    away = workers is not None and (
        workers.away if isinstance(workers, Team) else workers.cluster is not None or (workers.workers or 1) > 1
    )
    shared = away or current().count > 1
    device = find_device(name, ("cpu",) if shared else auto, exact=exact)
    if away and device != CPU:
        raise ConfigError(f"device {name!r}: workers compute on the CPU; leave out --device, or the workers")
    return CPU if shared else device


def check_data(model: CapsNet | Program, images: ImageSet) -> None:
    """Raise ModelError where ``images`` have another size, or another number of classes, than ``model``."""
    if isinstance(model, CapsNet):
        model.check_images(images.images)
    elif images.image_shape != model.image_shape:
        expected, found = ("x".join(map(str, shape)) for shape in (model.image_shape, images.image_shape))
        raise ModelError(
            f"program {model.name}: it takes {expected} images (channels x rows x columns), got {found};"
            " choose a matching dataset, or resize with --size / --channels"
        )
    classes = model.classes if isinstance(model, Program) else model.config.classes
    if classes != len(images.classes):
        raise ModelError(
            f"the model has {classes} classes, the data {images.name} {len(images.classes)};"
            " choose the dataset that the model was trained on"
        )


def check_size(model: CapsNet | Program | None, size: int | None, channels: int | None) -> None:
    """Raise ModelError where images of ``size`` rows and columns, or ``channels``, are asked for that are no model's.

    Before any image is read or resized.
    """
    if model is None or channels not in (None, 1, 3):  # which the data's reader refuses
        return
    own = model.config.image if isinstance(model, CapsNet) else model.image_shape
    if (size or own[1], size or own[2], channels or own[0]) != (*own[1:], own[0]):
        asked = f"--size {size}" if size is not None and (size, size) != own[1:] else f"--channels {channels}"
        expected = "x".join(map(str, own))
        free = isinstance(model, CapsNet) and "image_size" in model.notes.get("assumed", {})
        todo = f"; its file leaves the size open: give --image-size {size}, too" if free and size is not None else ""
        raise ModelError(f"{asked}: the model takes {expected} images (channels x rows x columns){todo}")


def evaluate(model: CapsNet | Program, images: ImageSet, *, engine: Engine | str = Engine.AUTO) -> Evaluation:
    """Accuracy of ``model`` on ``images``; a Program is run in integers.

    Raises:
        ConfigError: unknown engine.
        ModelError: images of another size, or another number of classes. DataError: classes of other names.
        ToolMissing: ``engine="native"`` without a C compiler.
    """
    engine = Engine(engine)
    check_data(model, images)
    images, changed = images.for_classes(model.labels)
    began = time.perf_counter()
    if isinstance(model, Program):
        predicted, used = predictions(model, images.images.numpy(), engine)
        name = str(used)
    else:
        predicted, name = float_predictions(model, images), "torch"
    correct = int((predicted == images.labels.numpy()).sum())
    return Evaluation(accuracy(correct, len(images)), predicted, name, time.perf_counter() - began, changed)


def float_predictions(model: CapsNet, images: ImageSet, batch_size: int = 32) -> NDArray[np.int64]:
    """Classes that the float model predicts, int64 (N,)."""
    model.check_images(images.images)
    model.eval()
    with torch.inference_mode():
        parts = [predict(model(batch).cpu()).numpy() for batch, _ in images.batches(batch_size, device=model.device)]
    return np.concatenate(parts)


def correct_images(model: CapsNet, images: ImageSet, batch_size: int = 32) -> NDArray[np.bool_]:
    """Which of the images the float model classifies correctly, bool (N,)."""
    return np.asarray(float_predictions(model, images, batch_size) == images.labels.numpy())


def check(splits: Splits, *models: CapsNet | Program | None, note: Note = silent) -> Splits:
    """The splits with the names and the order of classes that ``models`` have; ``note`` is told of a change.

    Raises:
        ModelError: a NaN weight; images of another size, another number of classes; models with different names.
        DataError: other names; see :meth:`caplet.data.ImageSet.for_classes`.
    """
    named: dict[tuple[str, ...], tuple[str, ...]] = {}
    for model in models:
        if isinstance(model, CapsNet):
            check_finite(named_tensors(model), f"model {model.family}")
        if model is not None:
            check_data(model, splits.calibration)
            named |= {spelt(model.labels): model.labels} if model.labels else {}
    if len(named) > 1 and not splits.test.labels_by_order:
        one, other, *_ = (", ".join(names[:4]) for names in named)
        raise ModelError(f"the models' classes differ, or their order: {one}, ... and {other}, ...; choose another one")
    splits, told = splits.for_classes(*[*named.values()][:1]) if models else (splits, "")
    if told:
        note(told)
    return splits


@contextmanager
def begin(
    job: str,
    out: str | Path,
    splits: Splits,
    settings: Mapping[str, Any],
    model: CapsNet | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    shared: bool = False,
) -> Iterator[Path]:
    """Open a run folder for the ``with`` block, with the resolved settings and the ids of the splits in it.

    What can be checked is checked before: a mistake must not cost the results of an earlier run.

    Args:
        job: what the run does; stands in ``settings.json``, so that readers need not guess.
        settings: everything that the outcome depends on beside the model's layout and the data, JSON values.
        model: what the job works on, if it is there already.
        resume, force, shared: see :func:`caplet.runs.folder.open_run`.

    Raises:
        ArtefactError, ConfigError: see there.
    """
    layout = {} if model is None else {"family": model.family, "config": model.config.model_dump(mode="json")}
    data = {"data": splits.info["name"], "data_hashes": splits.info["hashes"]}
    with open_run(out, {"job": job, **layout, **data, **settings}, resume=resume, force=force, shared=shared) as run:
        splits.save_ids(run / SPLITS)
        yield run


@dataclass(frozen=True, eq=False)
class SplitAnswers:
    """What models answer on the same images.

    Attributes:
        images: the images.
        reference: classes that the float model predicts, int64 (N,).
        models: the same of other models, by name.
    """

    images: ImageSet
    reference: Classes
    models: Mapping[str, Classes]

    def correct(self, name: str | None = None) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images the model ``name``, or the float model, classifies correctly, bool (N,)."""
        predicted = self.reference if name is None else self.models[name]
        return np.asarray(predicted == self.images.labels.numpy())

    def accuracy(self, name: str | None = None) -> Accuracy:
        """Accuracy of the model ``name``, or of the float model."""
        return accuracy(int(self.correct(name).sum()), len(self.images))

    def against(self, name: str) -> Paired:
        """The float model first, the model ``name`` second."""
        return paired(self.correct(), self.correct(name))


def held_out(model: CapsNet, splits: Splits) -> bool:
    """Whether the model's file says that it was never trained on the calibration split."""
    return model.notes.get(HELD_OUT) == splits.calibration.sha256()


def training_notes(splits: Splits, *models: CapsNet) -> dict[str, Any]:
    """What the file of a model that was made on these data from ``models`` says of that."""
    stated = {key: model.notes[key] for model in models for key in ("stated",) if model.notes.get(key)}
    if all(held_out(model, splits) for model in models):  # what began with a model that has seen it has seen it, too
        stated[HELD_OUT] = splits.calibration.sha256()
    return {**stated, "classes": [*splits.train.classes]}


def classify(model: CapsNet | Program, images: ImageSet, engine: Engine | str = Engine.AUTO) -> Classes:
    """Classes that a float model or a Program predicts, int64 (N,)."""
    if isinstance(model, Program):
        return predictions(model, images.images.numpy(), Engine(engine))[0]
    return float_predictions(model, images)


def open_test_split(
    splits: Splits,
    reference: CapsNet,
    models: Mapping[str, CapsNet | Program],
    note: Note,
    engine: Engine | str = Engine.AUTO,
) -> SplitAnswers:
    """What the float model and the results of a run answer on the test split: a job's one look at it."""
    note(f"measuring the test split once, {len(splits.test):,} images")
    found = {name: classify(model, splits.test, engine) for name, model in models.items()}
    return SplitAnswers(splits.test, float_predictions(reference, splits.test), found)


def ship(
    run: Path,
    splits: Splits,
    metrics: Mapping[str, Any],
    answers: SplitAnswers,
    programs: Mapping[str, Program] | None = None,
    result: str | None = None,
    ram: str | int = "small",
) -> dict[str, Any]:
    """Write what every run leaves: predictions, metrics, and of Programs the changed answers and the details.

    Args:
        programs: what ships, by role, the one to use first; their answers are among ``answers``.
        result: of a job that makes a float model, its name among ``answers``.
        ram: a memory plan that is recorded beside "fast" and "small".

    Returns:
        What ``metrics.json`` holds: ``metrics`` with the data's name and note.
    """
    if programs:
        first = next(iter(programs))
        record_predictions(run, splits.test, answers.reference, {role: answers.models[role] for role in programs})
        record_flips(run, splits.test, first, answers.reference, answers.models[first])
        record_details(run, programs, ram)
    else:
        record_predictions(run, splits.test, answers.reference if result is None else answers.models[result], {})
    whole: dict[str, Any] = plain({**metrics, "data": splits.info["name"], "data_note": splits.info["note"]})
    write_record(run / METRICS, whole)
    return whole
