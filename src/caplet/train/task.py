"""What a run trains: the networks, how a batch becomes a loss, and how the averaged weights are judged."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.data.splits import Splits
from caplet.errors import ConfigError
from caplet.models.assemble import skeleton
from caplet.models.base import CapsNet
from caplet.models.importers.pretrained import load_pretrained
from caplet.models.plain import CNN_LIKE, PlainCnn, cnn_like
from caplet.models.registry import build, named_model
from caplet.nn.decoder import ConvDecoder, Decoder, DenseDecoder, longest
from caplet.nn.device import mixed
from caplet.nn.functional import lengths
from caplet.train.features import Features, FeatureStore, view_count
from caplet.train.initialise import initialise
from caplet.train.loss import ClassificationScore, cross_entropy, evaluate, margin_loss, mixup, reconstruction_loss
from caplet.train.optimise import make_optimizer
from caplet.train.settings import LoopSettings, TrainSettings
from caplet.train.state import INITIALISE, generator

#: Training images that data-dependent initialisation looks at.
INITIALISATION_IMAGES = 256
#: m+, m- and lambda of the margin loss where the settings ask for hard margins.
HARD_MARGINS = (0.95, 0.05, 0.8)

Settings = TypeVar("Settings", bound=LoopSettings)


class TrainedNetwork(nn.Module):
    """Model and decoder as one module: (images, labels) -> (class capsules, reconstruction or None).

    Attributes:
        first: the model's first stage to run; features stand for images where it is not 0.
    """

    first = 0

    def __init__(self, model: CapsNet, decoder: Decoder | None = None) -> None:
        super().__init__()
        self.model = model
        self.decoder = decoder

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        capsules = self.model(images, self.first)
        return capsules, None if self.decoder is None else self.decoder(capsules, labels)


class Task(ABC, Generic[Settings]):
    """What the training loop asks of a run.

    Attributes:
        settings: of the loop.
        network: what is trained; its state is in the checkpoint.
        average: a second model of the same structure, for the averaged weights.
        limit: steps after which the run ends although epochs are left; None for no limit.
        done: the fraction of all steps that lies behind, set before each step.
        frozen: how many of the model's stages do not change.
        in_parts: whether votes can be computed in parts of a batch; not where each tensor's numbers are looked at.
        exact: whether the numbers of a plan are computed.
    """

    limit: int | None = None
    in_parts: bool = True
    exact: bool = False
    done: float = 0.0
    frozen: int = 0

    def __init__(self, settings: Settings, network: TrainedNetwork, average: CapsNet) -> None:
        self.settings = settings
        self.network = network
        self.average = average
        self._features: dict[str, Features] = {}
        self._device: torch.device | None = None  # of batches; None for the CPU
        self._held: Tensor | None = None  # the training images there
        if settings.freeze or settings.freeze_to:
            self.frozen = network.model.freeze_backbone(settings.freeze_to)

    @property
    def model(self) -> CapsNet:
        """The model that is trained."""
        return self.network.model

    def to(self, device: torch.device) -> None:
        """Move everything to ``device``."""
        self.network.to(device).train()
        self.average.to(device)

    def batches_on(self, device: torch.device, images: ImageSet, room: int) -> None:
        """From now on batches are made on ``device``, of the training split held there where it fits in ``room`` bytes;
        on the CPU the split is used where it lies."""
        self._device = device
        if device.type != "cpu" and images.images.nbytes <= room and not self.on_features:
            self._held = images.images.to(device)

    def identity(self) -> dict[str, str]:
        """What beside settings and data must be equal for a run to be resumed, by name."""
        return {}

    @property
    def on_features(self) -> bool:
        """Whether training reads what the frozen stages give from files, and does not compute it in every step."""
        return self.frozen > 0 and self.settings.views != 0 and self.sees_outputs_only

    @property
    def sees_outputs_only(self) -> bool:
        """Whether a step needs nothing of an image but what the model's stages make of it."""
        return False

    def read_features(self, store: FeatureStore, splits: Splits) -> None:
        """Compute what the frozen stages give, or find it in ``store``; from now on it stands for the images."""
        for images, views in ((splits.train, view_count(self.settings)), (splits.calibration, 1)):
            name = "train" if images is splits.train else "calibration"
            self._features[images.sha256()] = store.of(self.model, images, name, views)
        self.network.first = self.frozen

    @property
    def hardened(self) -> bool:
        """Whether the part of the run with hard margins has begun."""
        return self.settings.hard_margins is not None and self.done >= self.settings.hard_margins

    def batch(self, images: ImageSet, chosen: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a step trains on: the images at the positions ``chosen``, augmented, float (B, C, H, W), or features;
        and their labels, int64 (B,), or fractions of the classes, float32 (B, classes). All draws are made on the CPU.
        """
        settings, labels = self.settings, images.labels[chosen]
        if self._features:
            found = self._features[images.sha256()].drawn(chosen, draws)
        else:
            held = images.images if self._held is None else self._held
            pixels = to_float(held[chosen.to(held.device)], self._device)
            found = augment(pixels, draws, shift=settings.shift, flip=settings.flip, cutout=settings.cutout)
        if settings.mixup and not self.hardened:
            return mixup(found, labels, self.model.config.classes, settings.mixup, draws)
        return found, labels

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser of everything that is trained; each group has its ``multiplier`` on the learning rate."""
        return make_optimizer(self.settings, self.model, self.network.decoder)

    def to_send(self) -> Self:
        """A copy without what only the process that runs the training needs, and what is of images."""
        bare = copy.copy(self)
        bare._features, bare._held = {}, None
        return bare

    def prepare(self, images: ImageSet) -> None:
        """Before the first step of a new or resumed run; ``images`` is the training split."""

    def start(self, images: ImageSet) -> None:
        """Before the first step of a new run."""

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Means over one batch: ``loss``, which carries the gradient, and the measured parts.

        Args:
            images, labels: as :meth:`batch` gives them.

        Returns:
            ``loss`` and any of ``margin``, ``reconstruction``, ``distillation``, ``accuracy``.
        """

    def some(self, images: ImageSet, count: int) -> Tensor:
        """Up to ``count`` images that the seed chooses, uint8 (N, C, H, W)."""
        order = torch.randperm(len(images), generator=generator(self.settings.seed, INITIALISE))
        return images.images[order[:count]]

    def measured(self, capsules: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``margin``, the margin loss with the settings' margins, and ``accuracy``, the fraction that is correct.

        A plain CNN's ``margin`` is the cross-entropy.

        Args:
            capsules: the class capsules, float32 (B, classes, D). labels: as :meth:`batch` gives them.
        """
        settings = self.settings
        margins = (settings.margin_positive, settings.margin_negative, settings.margin_down_weight)
        if self.hardened:
            margins = HARD_MARGINS
        most = labels.argmax(1) if labels.is_floating_point() else labels
        accuracy = (longest(capsules.detach()) == most).float().mean()
        if isinstance(self.model, PlainCnn):
            return {"margin": cross_entropy(capsules[:, :, 0], labels), "accuracy": accuracy}
        return {"margin": margin_loss(lengths(capsules), labels, *margins), "accuracy": accuracy}

    def stepped(self, global_step: int, steps: int) -> None:
        """After the optimiser's step number ``global_step`` (from 1) of ``steps``."""

    def evaluate(self, images: ImageSet) -> ClassificationScore:
        """The averaged weights on ``images``, in the settings' precision."""
        known = self._features.get(images.sha256(), images)
        return evaluate(self.average, known, precision=self.settings.precision, first=self.network.first)

    def final(self, images: ImageSet) -> float:
        """Accuracy of the averaged weights on ``images``, in float32."""
        return evaluate(self.average, images).accuracy

    def state(self) -> dict[str, Any]:
        """What beside weights and optimiser has to be remembered: plain values, for a checkpoint."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""


class RecipeTask(Task[TrainSettings]):
    """Training from the beginning: margin loss, and reconstruction where the settings name a decoder."""

    def __init__(self, settings: TrainSettings) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(settings)
            decoder = build_decoder(settings, model)
            average = build_model(settings)
        if decoder is not None and settings.mixup:
            raise ConfigError("mixup: a decoder draws one class, and blended images have two; set one of them to none")
        if settings.pretrained is not None:
            load_pretrained(model, settings.pretrained)
        super().__init__(settings, TrainedNetwork(model, decoder), average)

    @property
    def sees_outputs_only(self) -> bool:
        return self.network.decoder is None  # a decoder is compared with the pixels

    def start(self, images: ImageSet) -> None:
        """Data-dependent initialisation, if asked for; a plain CNN has no capsules to initialise."""
        settings = self.settings
        if settings.initial_norm is not None and not isinstance(self.model, PlainCnn):
            pixels = to_float(self.some(images, INITIALISATION_IMAGES), self.model.device)
            initialise(self.model, pixels, settings.initial_norm, settings.initial_norms)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with mixed(self.network, images.device, self.settings.precision):
            capsules, reconstruction = self.network(images, labels)
        parts = self.measured(capsules.float(), labels)
        if reconstruction is None:
            return {"loss": parts["margin"], **parts}
        error = reconstruction_loss(reconstruction, images)
        return {"loss": parts["margin"] + self.settings.reconstruction_weight * error, "reconstruction": error, **parts}


def build_model(settings: TrainSettings) -> CapsNet:
    """The untrained model that the settings name, initialised from torch's global generator.

    ``cnn-like:MODEL`` names a plain CNN of the size that MODEL has with the settings' overrides.

    Raises:
        ModelError: unknown model, or an override that is unknown or invalid.
    """
    planned = plan_model(settings)  # refuses what no machine has room for
    whole = settings.model.startswith(CNN_LIKE)
    return PlainCnn(cnn_like(planned)) if whole else build(planned.family, planned.config)


def plan_model(settings: TrainSettings) -> CapsNet:
    """The capsule network that the settings name, without data (:func:`caplet.models.assemble.skeleton`). Raises
    ModelError."""
    named = named_model(settings.model.removeprefix(CNN_LIKE))
    return skeleton(named.family, {**named.config.model_dump(), **settings.overrides}, named.family)


def build_decoder(settings: TrainSettings, model: CapsNet) -> Decoder | None:
    """The decoder that the settings name, for the model's class capsules; None if they name none."""
    if settings.decoder == "none":
        return None
    classes, dim = list(model.layers())[-1].specs["activation"].shape
    image = model.config.image
    return DenseDecoder(classes, dim, image) if settings.decoder == "dense" else ConvDecoder(dim, image)
