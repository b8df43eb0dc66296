"""Codes and biases of all blocks moved together, by gradient, so that the class capsules come near the float model's.

Fitting block by block ends with what a block can do alone, for its own sums. Here the error is that of the class
capsules, through every squash and routing iteration as the device computes them. Each constant is a float number of
steps whose rounding is what runs (gradients pass straight through, :mod:`caplet.quant.simulate.straight_through`); it
starts between its fitted code and its float value, and few move by more than one code. No labels are used: the float
model's class capsules are the target. The images are shifted, mirrored and blended at random, which need not make
sense as images: what is fitted to a thousand images alone is faithful there, and much less so a little away from them.
The float model sees each of them moved by a further pixel at random, so that on average the target is its answer
smoothed over the neighbouring places, which is the better classifier: where few bits must change some answers, better
towards that one.

Source: rounding learnt by gradient is AdaRound's (Nagel et al. 2020) idea, and learning that of many blocks at once
BRECQ's (Li et al. 2021). Differs: straight-through rounding with a decaying rate in place of a relaxation that is
pushed to whole codes, and one objective for the whole network.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from caplet.data.images import augment
from caplet.data.imageset import to_float
from caplet.fixed import PlanFormat
from caplet.models.base import CapsNet
from caplet.nn.device import has_bfloat16, mixed
from caplet.nn.functional import lengths
from caplet.nn.points import Role
from caplet.progress import Progress
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.blocks import FittedBlock
from caplet.quant.reconstruct.linear_maps import parameter_of
from caplet.quant.reconstruct.settings import ReconstructSettings
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.quant.simulate.straight_through import StraightThrough, steps, towards

_HALF_WAY = 0.5
"""Where between its code and its float value a weight starts: on the border of a cell, chance would move it."""
_LENGTHS = 5.0
"""Weight of the lengths, which decide, next to the capsules themselves."""
_BETAS = (0.9, 0.99)
_TINY = 1e-12
_COMPARED = 256
_SHIFT = 1 / 14
"""Largest shift each way, as a fraction of the image's side: two pixels of 28."""
_BATCH = 64


class _TrainedCodes:
    """One weight or bias, in steps of its format."""

    def __init__(self, parameter: torch.nn.Parameter, exact: Tensor, fmt: PlanFormat) -> None:
        self.parameter, self.fmt = parameter, fmt
        self.first = fmt.quantize(parameter.detach())
        self._step = steps(fmt, parameter)
        start = torch.lerp(self.first, towards(self.first, exact, fmt), _HALF_WAY)
        self.codes = torch.nn.Parameter(start / self._step)

    def write(self) -> None:
        """Give the model the present value."""
        self.parameter.data = self.codes.detach() * self._step

    def take_gradient(self) -> None:
        """Turn the model's gradient into that of the codes."""
        gradient = self.parameter.grad
        self.codes.grad = None if gradient is None else gradient * self._step
        self.parameter.grad = None

    def result(self) -> Tensor:
        """The value on the grid."""
        result: Tensor = self.fmt.quantize(self.codes.detach() * self._step)
        return result


def fit_end_to_end(
    model: CapsNet,
    source: CapsNet,
    plan: QuantPlan,
    images: Tensor,
    settings: ReconstructSettings,
    progress: Progress | None = None,
) -> FittedBlock:
    """Move the codes of ``model``'s weights and biases together; the model itself is left as it was.

    Args:
        model: whose weights and biases lie on the plan's grid.
        source: the float model.
        plan: its formats stay.
        images: uint8 (N, C, H, W), calibration images.
        settings: the fields that begin with ``end_to_end_``, and the seed.
        progress: called with (steps done, steps in all) after every step.

    Returns:
        The constants on their grids, by point key; ``before`` and ``after``, the mean squared difference of the
        class-capsule lengths to the target's on the first images; and ``changed``, the fraction of codes that moved: 0
        where the error would have grown and everything was left as it was.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    constants = _constants(model, source, plan)
    optimizer = torch.optim.Adam([constant.codes for constant in constants.values()], betas=_BETAS, eps=_TINY)
    handler = StraightThrough(plan, model.points())
    precision = "bfloat16" if has_bfloat16(source.device) else "float32"
    smooth = round(settings.end_to_end_smooth * min(images.shape[-2:]))
    wanted = smoothed(source, images[:_COMPARED], smooth)
    before = _length_error(model, plan, images, wanted)
    total = settings.end_to_end_steps
    batches = _batches(len(images), settings.end_to_end_batch, generator)
    with torch.enable_grad(), _trainable(model, constants):
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = settings.end_to_end_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            pixels = _varied(to_float(images[next(batches)], source.device), generator)
            for constant in constants.values():
                constant.write()
            moved = augment(pixels, generator, shift=smooth)
            with mixed(source, pixels.device, precision), torch.no_grad():
                target = source(moved).float()
            with mixed(model, pixels.device, precision), model.handle(handler):
                capsules = model(pixels)
            loss = _distance(capsules.float(), target)
            torch.autograd.backward(loss)
            for constant in constants.values():
                constant.take_gradient()
            optimizer.step()
            if progress is not None:
                progress(step + 1, total)
        found = {key: constant.result() for key, constant in constants.items()}
        for key, constant in constants.items():
            constant.parameter.data = found[key]
        after = _length_error(model, plan, images, wanted)
    if after >= before:
        first = {key: constant.first for key, constant in constants.items()}
        return FittedBlock(first, {"before": before, "after": before, "changed": 0.0})
    differs = [(found[key] != constant.first).flatten() for key, constant in constants.items()]
    changed = float(torch.cat(differs).float().mean())
    return FittedBlock(found, {"before": before, "after": after, "changed": changed})


def _constants(model: CapsNet, source: CapsNet, plan: QuantPlan) -> dict[str, _TrainedCodes]:
    found: dict[str, _TrainedCodes] = {}
    for layer, exact in zip(model.layers(), source.layers(), strict=True):
        for name, spec in layer.specs.items():
            key = f"{layer.name}.{name}"
            if spec.role in (Role.WEIGHT, Role.BIAS):
                parameter = parameter_of(layer, name)
                # A bias goes on from its corrected value; a weight's float value says which way its code may turn.
                start = parameter_of(exact, name) if spec.role is Role.WEIGHT else parameter
                found[key] = _TrainedCodes(parameter, start.detach(), plan.points[key])
    return found


@contextmanager
def _trainable(model: CapsNet, constants: dict[str, _TrainedCodes]) -> Iterator[None]:
    """Gradients for the constants alone; their values, and who has gradients, are afterwards what they were."""
    wanted = {id(constant.parameter) for constant in constants.values()}
    before = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, value, trained in before:
            parameter.data = value
            parameter.grad = None
            parameter.requires_grad_(trained)


def _varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) shifted and mirrored at random, and every other one blended with another one."""
    pixels = augment(pixels, generator, shift=int(_SHIFT * min(pixels.shape[-2:])), flip=True)
    other = pixels[torch.randperm(len(pixels), generator=generator).to(pixels.device)]
    mix = torch.rand((2, len(pixels), 1, 1, 1), generator=generator).to(pixels.device)
    return torch.lerp(pixels, other, torch.where(mix[0] < 0.5, 0.0, 0.5 * mix[1]))


def _distance(capsules: Tensor, wanted: Tensor) -> Tensor:
    """The squared distance of class capsules (B, classes, D), averaged over the batch."""
    poses = (capsules - wanted).square().sum((1, 2)).mean()
    return poses + _LENGTHS * (lengths(capsules) - lengths(wanted)).square().sum(1).mean()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of images, all of them in a new order again and again."""
    while True:
        for batch in torch.split(torch.randperm(count, generator=generator), size):
            if len(batch) == min(size, count):
                yield batch


def _capsules(model: CapsNet, images: Tensor) -> Tensor:
    """Class capsules of all images, float (N, classes, D)."""
    with torch.no_grad():
        return torch.cat([model(to_float(batch, model.device)) for batch in torch.split(images, _BATCH)])


def smoothed(model: CapsNet, images: Tensor, reach: int) -> Tensor:
    """Class capsules averaged over all places up to ``reach`` pixels away: what the target is on average."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach,) * 4)
    places = range(2 * reach + 1)
    answers = [
        _capsules(model, padded[..., down : down + height, across : across + width])
        for down in places
        for across in places
    ]
    return torch.stack(answers).mean(0)


def _length_error(model: CapsNet, plan: QuantPlan, images: Tensor, wanted: Tensor) -> float:
    """Mean squared difference of the class-capsule lengths on the first images under the plan to those ``wanted``."""
    with fake_quantized(model, plan):
        found = _capsules(model, images[:_COMPARED])
    return float((lengths(found) - lengths(wanted)).square().mean())
