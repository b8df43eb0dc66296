"""Simpler routing: fewer iterations, or constant couplings folded into the weights, where a paired test accepts it.

A routing's couplings often change little from image to image. With the mean couplings in place of the routed ones, a
capsule layer is linear up to its squash: they are folded into the weights, and what remains is a routing of one
iteration, with neither logits nor softmax, in an ordinary model whose settings say so.

Related: Marchisio et al. 2020 give the routing's tensors widths of their own; here they are removed instead.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.acceptance import Acceptance
from caplet.data.imageset import ImageSet, to_float
from caplet.metrics import Paired
from caplet.models.assemble import assemble, named_tensors, skeleton
from caplet.models.base import CapsNet
from caplet.nn.caps import DenseCaps, RoutedConvCaps
from caplet.nn.points import PointSpec, Role, Watch
from caplet.progress import Note, silent
from caplet.quant.measure.evaluator import predict

COUPLING_IMAGES = 1024
"""Calibration images whose couplings are averaged."""

Routed = DenseCaps | RoutedConvCaps


@dataclass(frozen=True)
class Simplification:
    """So many ``iterations`` for ``layer``; a single one with its mean couplings folded into the weights."""

    layer: str
    iterations: int

    def __str__(self) -> str:
        return f"{self.layer}: " + ("constant couplings" if self.iterations == 1 else f"{self.iterations} iterations")


@dataclass(frozen=True)
class Simplified:
    """A model with what was accepted, and all steps in order.

    Attributes:
        model: the model given where nothing was accepted.
        steps: what was evaluated on top of what was accepted before it; the model given and the simplified one on the
            calibration images, paired; whether it was accepted.
        tolerance: percentage points that could be given away on the calibration images.
    """

    model: CapsNet
    steps: tuple[tuple[Simplification, Paired, bool], ...]
    tolerance: float

    @property
    def loss(self) -> float:
        """Percentage points that were given away on the calibration images, at least 0."""
        return max([0.0, *(result.loss for _, result, accepted in self.steps if accepted)][-1], 0.0)

    def to_json(self) -> dict[str, Any]:
        """Steps, and the settings of the model that came out."""
        return {
            "config": self.model.config.model_dump(mode="json"),
            "tolerance": self.tolerance,
            "loss": self.loss,
            "trials": [
                {"choice": str(choice), "accepted": accepted, "paired": asdict(result)}
                for choice, result, accepted in self.steps
            ],
        }


def routed_layers(model: CapsNet) -> dict[str, Routed]:
    """Layers with more than one routing iteration by name, in order of execution."""
    found = (layer for layer in model.layers() if isinstance(layer, DenseCaps | RoutedConvCaps))
    return {layer.name: layer for layer in found if layer.iterations > 1}


def choices(layer: Routed) -> Iterator[Simplification]:
    """What can be done to a layer, the simplest first."""
    return (Simplification(layer.name, iterations) for iterations in range(1, layer.iterations))


def simplify_routing(
    model: CapsNet,
    images: ImageSet,
    tolerance: float,
    *,
    relative: bool = False,
    note: Note = silent,
) -> Simplified:
    """Evaluate the simplifications of every routed layer, in order, and keep the first one that the test accepts.

    Accepted is a model whose loss against the model given, on the same images, is at most ``tolerance`` at the upper
    end of its 95 % interval: few images, or a tight tolerance, accept nothing.

    Args:
        model: left as it is.
        images: the calibration split.
        tolerance: percentage points; with ``relative`` percent of the model's accuracy.
        note: called with one line for each evaluation.
    """
    few = images.evenly_spaced(COUPLING_IMAGES).images
    acceptance = Acceptance(_correct(model, images), tolerance, relative, interval=True)
    current = model
    steps: list[tuple[Simplification, Paired, bool]] = []
    for name in routed_layers(model):
        for choice in choices(routed_layers(current)[name]):
            candidate = simplified(current, choice, few)
            correct = _correct(candidate, images)
            accepted = acceptance.accepts(correct)
            steps.append((choice, acceptance.paired(correct), accepted))
            note(f"routing of {choice}: {acceptance.describe(correct)}: {'kept' if accepted else 'rejected'}")
            if accepted:
                current = candidate
                break
    return Simplified(current, tuple(steps), acceptance.points)


def simplified(model: CapsNet, choice: Simplification, images: Tensor) -> CapsNet:
    """A new model of the same family with ``choice`` made.

    Args:
        images: uint8 (N, C, H, W), whose couplings are averaged for constant ones.
    """
    field = _setting(model, choice.layer)
    config = {**model.config.model_dump(), field: choice.iterations}
    tensors = dict(named_tensors(model))
    if choice.iterations == 1:
        tensors |= _folded(routed_layers(model)[choice.layer], mean_couplings(model, images)[choice.layer])
    return assemble(model.family, config, tensors, f"simplified {model.family}")


def mean_couplings(model: CapsNet, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    """The couplings of every routing's last iteration, averaged over images: layer -> float64 (G, I).

    Args:
        images: uint8 (N, C, H, W).
    """
    last = {name: layer.iterations - 1 for name, layer in routed_layers(model).items()}
    sums: dict[str, Tensor] = {}

    def add(key: str, spec: PointSpec, value: Tensor, iteration: int) -> None:
        layer = key.rpartition(".")[0]
        if spec.role is Role.COUPLING and iteration == last.get(layer):
            sums[layer] = sums.get(layer, 0.0) + value.double().sum(0)

    with torch.inference_mode(), model.handle(Watch(add)):
        for batch in torch.split(images, batch_size):
            model(to_float(batch, model.device))
    return {name: total / len(images) for name, total in sums.items()}


def _folded(layer: Routed, couplings: Tensor) -> dict[str, Tensor]:
    """The layer's tensors with constant couplings (G, I) folded in, for the uniform 1 / G of a single iteration.

    A convolution shares its weights among positions and input types, so that there only the mean of each output type
    can be folded.
    """
    factors = (couplings * couplings.shape[0]).float()
    if isinstance(layer, DenseCaps):
        weight = torch.unflatten(layer.weight.detach(), 2, (layer.out_capsules, layer.dim))  # I, K, G, D
        return {f"{layer.name}.weight": (weight * factors.T[:, None, :, None]).flatten(2)}
    by_type = factors.mean(1).view(-1, layer.types).mean(0).repeat_interleave(layer.dim)  # types count fastest
    return {
        f"{layer.name}.weight": layer.weight.detach() * by_type[:, None, None, None],
        f"{layer.name}.vote_bias": layer.vote_bias.detach() * by_type,
    }


def _setting(model: CapsNet, layer: str) -> str:
    """The model's setting that holds the iterations of ``layer``: the one whose change changes them, and no others."""
    config = model.config.model_dump()
    for name, value in config.items():
        if name.endswith("iterations") and value > 1:
            other = skeleton(model.family, {**config, name: value - 1})
            now = {name: found.iterations for name, found in routed_layers(other).items()}
            if [key for key, found in routed_layers(model).items() if now.get(key, 1) != found.iterations] == [layer]:
                return name
    raise ValueError(f"model {model.family}: no setting holds the iterations of {layer} alone")


def _correct(model: CapsNet, images: ImageSet) -> NDArray[np.bool_]:
    with torch.inference_mode():
        batches = images.batches(100, device=model.device)
        predicted = np.concatenate([predict(model(batch).cpu()).numpy() for batch, _ in batches])
    return np.asarray(predicted == images.labels.numpy())
