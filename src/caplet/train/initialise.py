"""Data-dependent initialisation: give the capsules of every layer a useful length before training starts.

Squash maps a short capsule of length n to n^2, so signals vanish through a stack of capsule layers unless every layer's
preactivations have a length near 1. Here each capsule layer's weights are rescaled in order of execution until the mean
length of its preactivations over some training images is a target. In the spirit of Mishkin and Matas 2016 ("All you
need is a good init"), with capsule lengths in place of variances.
"""

import math

import torch
from torch import Tensor

from caplet.errors import ConfigError, ModelError
from caplet.models.base import CapsNet, Stage, State
from caplet.nn.layer import Layer, handling
from caplet.nn.points import PointSpec, Watch

#: Evaluations per layer; one without routing needs two, a routed one (whose coupling moves with the votes) several.
ROUNDS = 20
#: Relative deviation from the target that is good enough.
TOLERANCE = 0.01


def capsule_layers(stage: Stage) -> list[Layer]:
    """The stage's layers whose ``preactivation`` holds capsules, in order of execution."""
    return [
        layer for layer in stage.layers if "preactivation" in layer.specs and "dim" in layer.specs["preactivation"].dims
    ]


def check_targets(model: CapsNet, targets: dict[str, float]) -> None:
    """Raise ConfigError where ``targets`` names a layer that has no capsules."""
    names = [layer.name for stage in model.stages() for layer in capsule_layers(stage)]
    unknown = sorted(set(targets) - set(names))
    if unknown:
        raise ConfigError(f"initial_norms: the model has no capsule layer {unknown[0]!r} (it has {', '.join(names)})")


@torch.no_grad()
def initialise(
    model: CapsNet, images: Tensor, target: float = 1.0, targets: dict[str, float] | None = None
) -> dict[str, float]:
    """Rescale the weights of every capsule layer so that its mean preactivation length is the target.

    Deterministic. Batch norm uses the images' own statistics meanwhile (a frozen one its own); its running statistics
    are afterwards what they were before. The model's training mode stays as it was.

    Args:
        model: changed in place; its biases should be zero, as they are in a new model.
        images: float (B, C, H, W), some hundred training images.
        target: mean length before squash.
        targets: other targets by layer name.

    Returns:
        The mean preactivation length reached, by layer name.

    Raises:
        ConfigError: ``targets`` names a layer that has no capsules.
        ModelError: a layer's preactivations are all zero or not finite, so that no scale reaches the target.
    """
    targets = targets or {}
    check_targets(model, targets)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    reached: dict[str, float] = {}
    state: State = (images,)
    try:
        for stage in model.stages():
            for layer in capsule_layers(stage):
                reached[layer.name] = _rescale(layer, stage, state, targets.get(layer.name, target))
            state = stage.run(state)
    finally:
        model.train(was_training)
        for name, value in before.items():
            model.get_buffer(name).copy_(value)
    return reached


def _rescale(layer: Layer, stage: Stage, state: State, target: float) -> float:
    """Scale one layer's weights to ``target``: by the ratio, and by bisection once the target lies between two scales.

    Longer votes agree more, which makes routing give them more coupling: the length can rise steeply with the scale,
    and the ratio alone would swing from side to side.
    """
    weight = layer.get_parameter("weight")
    start = weight.clone()
    norm = 0.0  # mean capsule length at ``preactivation``, of the last routing iteration

    def see(key: str, spec: PointSpec, value: Tensor, iteration: int) -> None:
        nonlocal norm
        if spec.name == "preactivation":
            norm = float(torch.linalg.vector_norm(value.float(), dim=1 + spec.dims.index("dim")).mean())

    scale, low, high = 1.0, 0.0, math.inf  # low and high: the nearest scales known to give too little and too much
    for _ in range(ROUNDS):
        weight.copy_(start * scale)
        with handling([layer], Watch(see)):
            stage.run(state)
        if not 0.0 < norm < float("inf"):
            raise ModelError(
                f"layer {layer.name}: the mean length of its capsules before squash is {norm}, so no scale of"
                f" its weights gives {target}; check the images and the layers before it, or turn initial_norm off"
            )
        if abs(norm / target - 1) <= TOLERANCE:
            break
        if norm < target:
            low = max(low, scale)
        else:
            high = min(high, scale)
        scale = math.sqrt(low * high) if low and math.isfinite(high) else scale * target / norm
    return norm
