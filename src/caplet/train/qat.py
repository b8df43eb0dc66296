"""Quantization-aware training: fine-tuning in which every forward pass computes the numbers of a plan.

The float weights go on existing and are what is trained; each pass rounds them and every computed tensor as the device
will, with integer softmax and squash, and gradients pass straight through
(:mod:`caplet.quant.simulate.straight_through`).
"""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, field_validator
from torch import Tensor, nn

from caplet.data.imageset import ImageSet, to_float
from caplet.errors import ConfigError
from caplet.models.base import CapsNet
from caplet.nn.points import Role, Storage
from caplet.progress import Note, silent
from caplet.quant.choices import Part
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.equalization import folded
from caplet.quant.reconstruct.linear_maps import parameter_of
from caplet.quant.reconstruct.reconstruct import reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.simulate.fake_quant import FakeQuant
from caplet.quant.simulate.learned_scales import LearnedScales, Observed, observe, recalibrate
from caplet.quant.simulate.straight_through import StraightThrough, towards
from caplet.settings import Many, Positive
from caplet.train.finetune import FinetuneTask
from caplet.train.loss import ClassificationScore, evaluate
from caplet.train.settings import FinetuneSettings

FIT_IMAGES = 512
"""Training images on which a reconstruction fits the model that training starts from."""


def _renamed(value: Any) -> Any:
    return "recalibrate" if value == "refit" else value  # its earlier name


class QatSettings(FinetuneSettings):
    """Settings of quantization-aware training.

    Attributes:
        exponents: ``fixed`` keeps the plan's; ``recalibrate`` chooses them again by squared error, at the start and
            every ``watch_steps`` steps of the first half of the run; ``learned`` does so at the start and then trains a
            scale per tensor whose nearest power of two is used (Esser et al. 2020). Points with a declared bound,
            biases and batch-norm constants keep theirs while exponents are learned.
        exponents_lr: learning rate of learned scales, in octaves.
        watch_steps: how often the numbers are looked at, for alarms and ``recalibrate``.
        watch_images: training images that are looked at.
        clipped_limit: alarm where a larger fraction of a computed tensor is clipped.
        fit: parts of reconstruction (e.g. ``per-channel,bias,rounding``) that fit the model to the plan on
            :data:`FIT_IMAGES` training images before the first step, so that training starts from codes that work; the
            exponents are then the fit's. Empty for none.
    """

    exponents: Annotated[Literal["fixed", "recalibrate", "learned"], BeforeValidator(_renamed)] = "recalibrate"
    exponents_lr: Positive = 0.01
    watch_steps: Many = 100
    watch_images: Many = 128
    clipped_limit: Positive = 0.3
    fit: str = ""

    @field_validator("fit")
    @classmethod
    def _names_parts(cls, value: str) -> str:
        return value and ",".join(parse_parts(value))


class QatTask(FinetuneTask[QatSettings]):
    """Fine-tuning of a copy of a model that computes well with the numbers of a plan; widths stay, exponents may move.

    Batch norms keep their running statistics, as they are constants of the plan. The trained model is float, and its
    calibration accuracy that of fake-quant under the plan.

    Args:
        model, teacher: as of :class:`~caplet.train.finetune.FinetuneTask`; the teacher computes in float.
        plan: for ``model``.
        note: called with every alarm.

    Attributes:
        plan: in use; after training that of the kept epoch, which the weights were trained for.
        alarms: what was wrong with the numbers on the way, in words.

    Raises:
        PlanError: the plan does not fit the model.
        ConfigError: exponents that a fit chooses per channel are to be learned.
        ModelError: from a step, NaN in the float weights (the point is named).
    """

    in_parts = False
    exact = True

    def __init__(
        self, settings: QatSettings, model: CapsNet, teacher: CapsNet | None, plan: QuantPlan, note: Note = silent
    ) -> None:
        plan.check(model)
        if settings.exponents == "learned" and Part.PER_CHANNEL in (parse_parts(settings.fit) if settings.fit else ()):
            raise ConfigError(
                "fine-tuning: exponents per channel (fit) are not learned; set exponents=fixed or recalibrate"
            )
        super().__init__(settings, model, teacher)
        self.note = note
        self.alarms: list[str] = []
        self.specs = self.model.points()
        self.given = plan
        self.learned = LearnedScales(plan, self.specs if settings.exponents == "learned" else {})
        self.handler = StraightThrough(plan, self.specs, self.learned.parameters)

    @property
    def sees_outputs_only(self) -> bool:
        return False  # frozen weights are rounded, too

    @property
    def plan(self) -> QuantPlan:
        return self.handler.plan

    @plan.setter
    def plan(self, plan: QuantPlan) -> None:
        self.handler.plan = plan

    def to(self, device: torch.device) -> None:
        super().to(device)
        for key, parameter in self.learned.parameters.items():
            self.learned.parameters[key] = nn.Parameter(parameter.detach().to(device))

    def to_send(self) -> Self:
        bare = super().to_send()
        bare.note = silent
        vars(bare).pop("_images", None)
        return bare

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "data of the plan": self.given.digest()}

    def optimizer(self) -> torch.optim.Optimizer:
        optimizer = super().optimizer()
        if self.learned.parameters:
            multiplier = self.settings.exponents_lr / self.settings.lr
            scales = {"params": list(self.learned.parameters.values()), "weight_decay": 0.0}
            optimizer.add_param_group({**scales, "block": "exponents", "multiplier": multiplier})
        return optimizer

    def prepare(self, images: ImageSet) -> None:
        """Choose the training images that are looked at."""
        self._images = to_float(self.some(images, self.settings.watch_images), self.model.device)

    def start(self, images: ImageSet) -> None:
        if self.settings.fit:
            self._fit(images)
        elif self.settings.exponents != "fixed":
            for _ in range(2):  # the first time with the ranges of float, the second with those of the narrow network
                self.plan = recalibrate(self.plan, self.specs, observe(self.model, self.plan, self._images))
        self.learned.start(self.plan)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with self.model.handle(self.handler):
            return super().losses(images, labels)

    def stepped(self, global_step: int, steps: int) -> None:
        moved = self.learned.follow(self.plan)  # as the trained scales say, where the integer functions accept them
        if moved is not self.plan:
            moved.check(self.model)
            self.plan = moved
        if global_step % self.settings.watch_steps == 0:
            observed = observe(self.model, self.plan, self._images)
            self._watch(observed, global_step)
            if self.settings.exponents == "recalibrate" and 2 * global_step <= steps:
                self.plan = recalibrate(self.plan, self.specs, observed)

    def evaluate(self, images: ImageSet) -> ClassificationScore:
        """Fake-quant with the averaged weights, in float32: what the integers will do but for single codes."""
        with self.average.handle(FakeQuant(self.plan, self.specs)):
            return evaluate(self.average, images)

    def final(self, images: ImageSet) -> float:
        return self.evaluate(images).accuracy

    def state(self) -> dict[str, Any]:
        return {"plan": self.plan.to_json(), "exponents": self.learned.state(), "alarms": list(self.alarms)}

    def restore(self, state: dict[str, Any]) -> None:
        self.plan = QuantPlan.from_json(state["plan"])
        self.alarms = list(state["alarms"])
        if self.learned.parameters:
            self.learned.restore(state["exponents"])

    def _fit(self, images: ImageSet) -> None:
        """Begin with the codes, biases and exponents of a reconstruction."""
        settings = ReconstructSettings(parse_parts(self.settings.fit), seed=self.settings.seed)
        found = reconstruct(self.model, self.plan, self.some(images, FIT_IMAGES), settings)
        with torch.no_grad():
            for layer, exact in zip(found.model.layers(), folded(self.model).layers(), strict=True):
                for name in (name for name, spec in layer.specs.items() if spec.role is Role.WEIGHT):
                    fitted = parameter_of(layer, name)
                    fmt = found.plan.points[f"{layer.name}.{name}"]
                    fitted.copy_(towards(fitted, parameter_of(exact, name), fmt))
        self.model.load_state_dict(found.model.state_dict())
        self.plan = found.plan

    def _watch(self, observed: dict[str, Observed], global_step: int) -> None:
        """Say so, once for each point, where a computed tensor is clipped too much or vanishes."""
        for key, point in observed.items():
            if self.specs[key].storage is not Storage.RAM or any(f"point {key} " in alarm for alarm in self.alarms):
                continue
            if point.silent:
                trouble = "is rounded to 0 everywhere: give it more bits, or let exponents move"
            elif point.clipped_part > self.settings.clipped_limit:
                trouble = (
                    f"is clipped in {point.clipped_part:.0%} of its elements (limit {self.settings.clipped_limit:.0%}):"
                    " give it more bits, let exponents move, or lower lr"
                )
            else:
                continue
            self.alarms.append(f"step {global_step}: point {key} ({self.plan.points[key]}) {trouble}")
            self.note(f"warning: {self.alarms[-1]}")
