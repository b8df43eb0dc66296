"""One training run in progress: what it holds, one step, one epoch's end."""

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from caplet.data.splits import Splits
from caplet.errors import CapletError, ConfigError, DataError, ModelError
from caplet.models.base import CapsNet
from caplet.train.backend import MEASURED, Backend
from caplet.train.memory import Fit, fit, keep_votes_of, usable_memory
from caplet.train.optimise import learning_rate, update_average
from caplet.train.settings import LoopSettings
from caplet.train.state import AUGMENT, SHUFFLE, Position, generator
from caplet.train.task import Task


class Trainer:
    """A run in progress: networks, optimiser, averaged weights and position.

    Args:
        memory: bytes that a step should keep to; None for most of the machine's or the GPU's.

    Every random draw comes from a generator keyed by (seed, purpose, epoch, step), so the position is all that has to
    be remembered about randomness.

    Raises:
        ModelError: the model does not fit the data.
        DataError: there is no training or calibration image.
        ConfigError: there are more processes than images in a batch.
    """

    def __init__(self, task: Task[Any], splits: Splits, backend: Backend, memory: int | None = None) -> None:
        self.task, self.splits, self.backend = task, splits, backend
        self.settings: LoopSettings = task.settings
        _check_fit(task.model, splits)
        self.batch_size: int = min(self.settings.batch_size, len(splits.train))
        if self.batch_size < (count := backend.group.count):
            raise ConfigError(f"batch_size {self.batch_size} is too small for {count} processes: give each an image")
        self.steps_per_epoch: int = len(splits.train) // self.batch_size
        self.steps = self.steps_per_epoch * self.settings.epochs
        if task.limit is not None:
            self.steps = min(self.steps, task.limit)
        limit = usable_memory(backend.device, backend.group.neighbours) if memory is None else memory
        self.fit: Fit = fit(task, splits.train.image_shape, -(-self.batch_size // count), limit)
        task.to(backend.device)
        if count == 1:
            taken = limit // 2 if self.fit.needed is None else self.fit.needed
            task.batches_on(backend.device, splits.train, limit - taken)
        self.average = task.average
        self.best: dict[str, Tensor] = {}
        self.best_task: dict[str, Any] = {}
        self.optimizer = task.optimizer()
        self.position = Position()
        task.prepare(splits.train)

    @property
    def global_step(self) -> int:
        """Finished steps of the whole run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done or patience has run out."""
        return self.global_step >= self.steps or self.position.stopped

    def start(self) -> None:
        """Start a new run: what its task begins with, and the average from these weights."""
        self.position.votes_at_once = self.fit.at_once
        keep_votes_of(self.task, self.fit.at_once)
        self.task.start(self.splits.train)
        self.average.load_state_dict(self.task.model.state_dict())

    def restore(self, position: Position, tensors: dict[str, Any]) -> None:
        """Go on from a checkpoint's position and state."""
        self.position = position
        keep_votes_of(self.task, position.votes_at_once)
        self.task.network.load_state_dict(tensors["network"])
        self.average.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best, self.best_task = tensors["best"], tensors.get("best_task", {})
        self.task.restore(tensors.get("task", {}))  # checkpoints of before there were tasks have none

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes, beside the position."""
        return {
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "task": self.task.state(),
            "features": self.task.network.first > 0,
            "best_task": self.best_task,
        }

    def epoch_steps(self) -> Iterator[dict[str, Any]]:
        """Run what is left of the running epoch; yields each step's log row, with the position after it."""
        draws = generator(self.settings.seed, SHUFFLE, self.position.epoch)
        order = torch.randperm(len(self.splits.train), generator=draws)
        while self.position.step < self.steps_per_epoch and self.global_step < self.steps:
            start = self.position.step * self.batch_size
            yield self.step(order[start : start + self.batch_size])

    def step(self, chosen: Tensor) -> dict[str, Any]:
        """One optimiser step on the training images at the positions ``chosen``, int64 (B,); returns its log row.

        Raises:
            CapletError: the loss is not finite; the weights are as before the step.
        """
        started = time.monotonic()
        settings, position = self.settings, self.position
        global_step = self.global_step
        draws = generator(settings.seed, AUGMENT, position.epoch, position.step)
        lr = learning_rate(settings, global_step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["multiplier"]
        self.task.done = global_step / self.steps
        images, labels = self.task.batch(self.splits.train, chosen, draws)
        self.optimizer.zero_grad(set_to_none=True)
        values = self.backend.gradients(self.task, images, labels)
        if not math.isfinite(values[0]):
            raise CapletError(
                f"training diverged: the loss of step {position.step} in epoch {position.epoch + 1} is {values[0]} at"
                f" learning rate {lr:.3g}; lower lr, lengthen warmup, or set clip_norm"
            )
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.task.network.parameters(), settings.clip_norm)
        self.optimizer.step()
        update_average(self.average, self.task.model, settings.ema, global_step)
        self.task.stepped(global_step + 1, self.steps)
        count = len(chosen)
        seconds = time.monotonic() - started
        sums = {name: value * count for name, value in zip(MEASURED, values, strict=True)}
        for name, value in {**sums, "images": count, "seconds": seconds}.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.step += 1
        position.images += count
        position.seconds += seconds
        return self._row("step", lr, dict(zip(MEASURED, values, strict=True)))

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate the averaged weights on the calibration split, keep them if best; returns the epoch's log row."""
        started = time.monotonic()
        settings, position, sums = self.settings, self.position, self.position.sums
        score = self.task.evaluate(self.splits.calibration)
        position.seconds += time.monotonic() - started
        means = {name: sums[name] / sums["images"] for name in MEASURED}
        means |= {"calibration_accuracy": score.accuracy, "calibration_loss": score.loss}
        row = self._row("epoch", learning_rate(settings, self.global_step - 1, self.steps), means)
        position.history.append(row)
        position.waited = 0 if score.accuracy > position.best_accuracy else position.waited + 1
        if settings.keep == "last" or score.accuracy >= position.best_accuracy:  # of equals, the longer trained
            self.best, position.best_epoch = deepcopy(self.average.state_dict()), position.epoch
            self.best_task = self.task.state()
        position.best_accuracy = max(position.best_accuracy, score.accuracy)
        position.stopped = settings.patience is not None and position.waited >= settings.patience
        position.epoch, position.step, position.sums = position.epoch + 1, 0, {}
        return row

    def not_started(self) -> str:
        """What to say after an epoch that did no better than always the most frequent class; empty for nothing."""
        labels, found = self.splits.train.labels, self.position.history[-1]["accuracy"]
        chance = int(labels.bincount().max()) / len(labels)
        if found > chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):
            return ""
        return (
            f"training has not started: {found:.1%} of the training images were classified correctly, and {chance:.1%}"
            " are of the most frequent class; begin with longer class capsules (--set initial_norms.digit=1.5), change"
            " lr, or look at the labels"
        )

    def _row(self, kind: str, lr: float, values: dict[str, float]) -> dict[str, Any]:
        """A row of the log, at the position of now."""
        position = self.position
        place = {"kind": kind, "epoch": position.epoch + 1, "global_step": self.global_step, "lr": lr}
        speed = position.sums["images"] / position.sums["seconds"]
        return {**place, **values, "images_per_second": speed, "seconds": position.seconds}

    def result(self) -> tuple[CapsNet, float]:
        """The kept weights in a model of their own (CPU, evaluation mode), and its calibration accuracy in float32.

        The task is put back to where it was at the kept epoch.
        """
        self.average.load_state_dict(self.best)
        self.task.restore(self.best_task)
        accuracy = self.task.final(self.splits.calibration)
        return self.average.cpu().eval(), accuracy


def _check_fit(model: CapsNet, splits: Splits) -> None:
    for split in (splits.train, splits.calibration):
        if not len(split):
            raise DataError(f"{split.name}: there are no images to train on or to evaluate with")
    model.check_images(splits.train.images)
    classes = len(splits.train.classes)
    if classes != model.config.classes:
        raise ModelError(
            f"model {model.family}: it has {model.config.classes} classes, the data {splits.train.name} {classes};"
            " override classes"
        )
