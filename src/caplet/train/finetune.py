"""Fine-tuning: go on training a model, with or without a teacher whose class capsules it follows (distillation).

Source of distillation: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network". Capsules have no
logits to soften; the distances are those of the class capsules' lengths and of the capsules themselves.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

import torch
from torch import Tensor

from caplet.errors import ConfigError, ModelError
from caplet.files import digest
from caplet.models.assemble import named_tensors, tensor_parts
from caplet.models.base import CapsNet
from caplet.nn.device import mixed
from caplet.nn.functional import lengths
from caplet.train.settings import FinetuneSettings
from caplet.train.task import Task, TrainedNetwork

DEFAULT_BYTES = 1_000_000_000


@dataclass
class TeacherAnswers:
    """Answers to whole batches, so that what is remembered is bit for bit what the teacher would compute again.

    Networks that are fine-tuned with the same seed, data and batch size see the same batches in the same order. Beyond
    ``most`` bytes nothing more is remembered.
    """

    most: int = DEFAULT_BYTES
    _bytes: int = 0
    _known: dict[str, Tensor] = field(default_factory=dict)

    def get(self, identity: str, images: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The answers to ``images`` float (B, C, H, W): remembered, or else computed.

        Args:
            identity: of the teacher and of the precision it computes in.
        """
        pixels = images.detach().cpu().contiguous().numpy()
        key = digest(identity, repr(images.shape), pixels.tobytes())
        if key in self._known:
            return self._known[key].to(images.device)
        found = compute()
        size = found.nelement() * found.element_size()
        if self._bytes + size <= self.most:
            self._known[key] = found.detach().cpu()
            self._bytes += size
        return found


Tuning = TypeVar("Tuning", bound=FinetuneSettings)


def distillation_loss(capsules: Tensor, teacher: Tensor, settings: FinetuneSettings) -> Tensor:
    """Weighted squared distance of class capsules float (B, classes, D) to the teacher's, averaged over the batch.

    Capsules of different dimension can be compared by length only.
    """
    loss = capsules.new_zeros(())
    if settings.distill_lengths:
        distance = (lengths(capsules) - lengths(teacher)).square().sum(1).mean()
        loss = loss + settings.distill_lengths * distance
    if settings.distill_poses:
        loss = loss + settings.distill_poses * (capsules - teacher).square().sum((1, 2)).mean()
    return loss


class FinetuneTask(Task[Tuning]):
    """Going on from a trained model: margin loss on the labels, and distances to a teacher.

    Batch norms go on learning their statistics.

    Args:
        model: where to start; a copy of it is trained, in float.
        teacher: a float model of as many classes, e.g. the one that ``model`` was pruned from; None for no teacher.
        answers: what teachers are known to answer, shared by several runs; None remembers nothing.

    Example: after pruning, ``train(FinetuneTask(settings, pruned, original), splits, "runs/tuned").model``

    Raises:
        ModelError: the teacher takes other images or has other classes.
        ConfigError: no part of the loss has a weight; poses of another dimension are to be followed.
    """

    def __init__(
        self, settings: Tuning, model: CapsNet, teacher: CapsNet | None = None, answers: TeacherAnswers | None = None
    ) -> None:
        super().__init__(settings, TrainedNetwork(copy.deepcopy(model)), copy.deepcopy(model))
        self.limit = settings.steps
        followed = settings.distill_lengths + settings.distill_poses if teacher is not None else 0.0
        if settings.margin_weight + followed == 0:
            raise ConfigError("fine-tuning: margin_weight and all weights of distances to a teacher are 0; set one")
        if teacher is not None:
            _check_teacher(settings, model, teacher)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False) if teacher is not None and followed else None
        self.teacher_digest = "none" if self.teacher is None else weights_digest(self.teacher)
        self.answers = answers

    @property
    def sees_outputs_only(self) -> bool:
        return self.teacher is None  # a teacher answers to images

    def to(self, device: torch.device) -> None:
        super().to(device)
        if self.teacher is not None:
            self.teacher.to(device)

    def to_send(self) -> Self:
        bare = super().to_send()
        bare.answers = None
        return bare

    def identity(self) -> dict[str, str]:
        return {"data of the model": weights_digest(self.model), "data of the teacher": self.teacher_digest}

    @torch.no_grad()
    def _taught(self, teacher: CapsNet, images: Tensor) -> Tensor:
        """The teacher's class capsules, float32 (B, classes, D)."""
        with mixed(teacher, images.device, self.settings.precision):
            answer: Tensor = teacher(images).float()
        return answer

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        with mixed(self.network, images.device, settings.precision):
            capsules = self.network(images, labels)[0].float()
        parts = self.measured(capsules, labels)
        margin = settings.margin_weight * parts["margin"]
        if self.teacher is None:
            return {"loss": margin, **parts}
        compute = partial(self._taught, self.teacher, images)
        identity = f"{self.teacher_digest} {settings.precision}"
        taught = compute() if self.answers is None else self.answers.get(identity, images, compute)
        distance = distillation_loss(capsules, taught, settings)
        return {"loss": margin + distance, "distillation": distance, **parts}


def weights_digest(model: CapsNet) -> str:
    """SHA-256 (hex) of a model's parameters and buffers with their names."""
    return digest(*tensor_parts(named_tensors(model)))


def _check_teacher(settings: FinetuneSettings, model: CapsNet, teacher: CapsNet) -> None:
    mine, its = (m.config.image for m in (model, teacher)), (m.config.classes for m in (model, teacher))
    for what, (student, other) in (("images", tuple(mine)), ("classes", tuple(its))):
        if student != other:
            raise ModelError(f"the teacher's {what} are {other}, the model's {student}; choose a teacher with the same")
    dims = [list(m.layers())[-1].specs["activation"].shape[-1] for m in (model, teacher)]
    if settings.distill_poses and dims[0] != dims[1]:
        raise ConfigError(
            f"distill_poses: the teacher's class capsules have {dims[1]} dimensions, the model's {dims[0]};"
            " follow the lengths only (distill_poses = 0)"
        )
