"""The training loop: plain, seeded, and resumable to exactly the result of an uninterrupted run."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from caplet.data.splits import Splits
from caplet.errors import ArtefactError
from caplet.models.base import CapsNet
from caplet.nn.device import AUTO
from caplet.train.backend import Backend
from caplet.train.features import FeatureStore
from caplet.train.logs import ProgressLine, csv_log, tensorboard_log
from caplet.train.settings import TrainSettings
from caplet.train.state import fingerprint, load_state, save_state
from caplet.train.task import RecipeTask, Task
from caplet.train.trainer import Trainer
from caplet.workers.group import current

CHECKPOINT, LOG, FEATURES = "train.ckpt", "train.csv", "features"


@dataclass(frozen=True)
class TrainResult:
    """What a training run gives.

    Attributes:
        model: the averaged weights of the epoch that was kept, in evaluation mode, float32, on the CPU.
        history: one record per epoch, the ``epoch`` rows of ``train.csv``.
        calibration_accuracy: the model's, as a fraction, in float32.
        epoch: the kept epoch, from 1 (chosen by the accuracy in the settings' precision).
        seconds: training time of all parts of the run, evaluation included.
        images_per_second: images trained on per second of it.
    """

    model: CapsNet
    history: list[dict[str, Any]]
    calibration_accuracy: float
    epoch: int
    seconds: float
    images_per_second: float


def train(
    what: TrainSettings | Task[Any],
    splits: Splits,
    out_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    tensorboard: bool = False,
    device: str = AUTO,
    memory: int | None = None,
    checkpoint_minutes: float = 5.0,
    log_steps: int = 50,
    features: str | Path | None = None,
) -> TrainResult:
    """Train what the settings or a task say; only ``splits.train`` and ``splits.calibration`` are looked at.

    ``out_dir`` gets ``train.ckpt`` (the training checkpoint, every epoch and every ``checkpoint_minutes``) and
    ``train.csv``. A run that was interrupted or killed and is resumed gives, on the same machine with the same number
    of threads, exactly the weights of an uninterrupted one.

    Args:
        what: the settings of training from the beginning, or the task of another run (fine-tuning, under a plan).
        resume: go on from ``train.ckpt``; without one, start anew.
        progress: progress bar and one line per epoch on stderr.
        on_epoch: called with each epoch's record.
        tensorboard: also write ``out_dir/tensorboard``.
        device: ``cpu``, ``cuda``, ``mps`` of each process; ``auto`` for the first of cuda, mps and cpu that is there.
            What is written does not depend on it, but for the numbers themselves.
        memory: bytes to keep to; None for 80 % of the machine's, or of the GPU's. Where a step takes more with all
            votes kept, those of some images are kept at once, and computed again for the gradient.
        checkpoint_minutes: time between checkpoints within an epoch.
        log_steps: a row in the log every so many steps.
        features: the folder that keeps what frozen stages give for every image, for runs to come; None for one in
            ``out_dir``, which is removed at the end.

    Raises:
        ModelError, ConfigError: settings that name an unknown model or block, or do not fit the data.
        ConfigError: resuming with other settings or data than the checkpoint's; more processes than images in a batch.
        ArtefactError: the folder holds a run and ``resume`` is off; a file cannot be read or written.
        CapletError: the loss is not finite; memory ran out (the message has a batch size that fits).
        KeyboardInterrupt: on SIGINT or SIGTERM, after the running step and a checkpoint.
    """
    task = RecipeTask(what) if isinstance(what, TrainSettings) else what
    settings, out = task.settings, Path(out_dir)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise ArtefactError(f"{checkpoint} exists: resume that run, or choose another folder")
    made = {**fingerprint(settings, splits), **task.identity()}
    saved = load_state(checkpoint, made, settings) if checkpoint.exists() else None
    with ExitStack() as stack:
        stop = stack.enter_context(_catch_signals())
        stack.enter_context(_cpu_threads(settings.threads))
        trainer = Trainer(task, splits, Backend(device, task.exact), memory)
        if saved is None:
            trainer.start()
        else:
            try:
                trainer.restore(*saved)
            except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
                raise ArtefactError(f"{checkpoint} does not fit this run; delete it to start anew") from error
        position = trainer.position
        begun = saved is None or saved[1].get("features", False)  # a run goes on as it began
        if begun and task.on_features:
            kept = Path(features) if features is not None else out / FEATURES
            if features is None and not resume:
                shutil.rmtree(kept, ignore_errors=True)
            task.read_features(FeatureStore(kept, task.frozen, settings, progress, stop.is_set), splits)
        stack.enter_context(trainer.fit.explained(task))
        stack.enter_context(trainer.backend.training(task))

        def save() -> None:
            save_state(checkpoint, position, made, trainer.state())

        logs = [csv_log(out / LOG, position.epoch, trainer.global_step)]
        if tensorboard:
            logs.append(stack.enter_context(tensorboard_log(out / "tensorboard", trainer.global_step)))
        bar = stack.enter_context(ProgressLine(trainer.steps, trainer.global_step, progress))
        bar.console.print(str(trainer.fit), highlight=False, soft_wrap=True)
        last_saved = time.monotonic()
        while not trainer.finished:
            for row in trainer.epoch_steps():
                bar.step(row, position.best_accuracy)
                if row["global_step"] % log_steps == 0:
                    for log in logs:
                        log(row)
                if (stopping := stop.is_set()) or time.monotonic() - last_saved > 60 * checkpoint_minutes:
                    save()
                    last_saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt
            row = trainer.end_epoch()
            for log in logs:
                log(row)
            bar.epoch(row, trainer.not_started())
            save()
            last_saved = time.monotonic()
            if on_epoch is not None:
                on_epoch(row)
            if stop.is_set():
                raise KeyboardInterrupt
        model, accuracy = trainer.result()
    if features is None:
        shutil.rmtree(out / FEATURES, ignore_errors=True)
    return TrainResult(
        model=model,
        history=position.history,
        calibration_accuracy=accuracy,
        epoch=position.best_epoch + 1,
        seconds=position.seconds,
        images_per_second=position.images / position.seconds,
    )


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` CPU threads inside; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _catch_signals() -> Iterator[threading.Event]:
    """Gives an event that SIGINT and SIGTERM set; a second signal acts at once, where there is one process."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    alone = current().count == 1
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        if alone:  # torchrun passes on what the terminal sends to all processes: it comes twice
            restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
