"""The optimiser, its parameter groups, the learning-rate schedule, and the averaged weights."""

import math

import torch
from torch import nn

from caplet.errors import ConfigError
from caplet.models.base import CapsNet
from caplet.train.settings import LoopSettings

#: A one-cycle schedule starts at the peak divided by this.
START_DIVISOR = 25.0


def learning_rate(settings: LoopSettings, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (from 0) of ``steps``, before the blocks' multipliers.

    One-cycle: cosine from lr / 25 up to lr during the warm-up, then cosine down to lr * final_lr at the last step.
    """
    if settings.schedule == "constant":
        return settings.lr
    peak = settings.warmup * (steps - 1)
    if step < peak:
        low, high, part = settings.lr / START_DIVISOR, settings.lr, step / peak
    else:
        low, high = settings.lr, settings.lr * settings.final_lr
        part = (step - peak) / max(steps - 1 - peak, 1.0)
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * part))


def make_optimizer(settings: LoopSettings, model: CapsNet, decoder: nn.Module | None) -> torch.optim.Optimizer:
    """Adam or AdamW with one pair of groups per block (weights, and biases and batch norm without decay).

    Each group carries ``block``, its name, and ``multiplier``, its factor on the learning rate.

    Raises:
        ConfigError: ``lr_multipliers`` names a block that the model does not have.
    """
    blocks: dict[str, list[nn.Parameter]] = {
        stage.name: [p for layer in stage.layers for p in layer.parameters()] for stage in model.stages()[1:]
    }
    if decoder is not None:
        blocks["decoder"] = list(decoder.parameters())
    unknown = sorted(set(settings.lr_multipliers) - set(blocks) - {"decoder"})
    if unknown:
        raise ConfigError(f"lr_multipliers: the model has no block {unknown[0]!r} (it has {', '.join(blocks)})")
    groups = []
    for block, parameters in blocks.items():
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 2 or (p.ndim == 2 and block == "decoder")) == decays]
            decay, multiplier = settings.weight_decay if decays else 0.0, settings.lr_multipliers.get(block, 1.0)
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "block": block, "multiplier": multiplier})
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    fused = torch.__version__ >= "2.4"  # compared as versions; the fused CPU kernel came with 2.4
    return kind(groups, lr=settings.lr, fused=fused)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Take the weights of ``model`` after step ``step`` (from 0) into an exponential moving average of them.

    At step t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the average soon forgets the initial weights.
    Integer buffers are copied.

    Args:
        average: a model of the same structure; its tensors are overwritten.
        decay: 0 keeps a copy of the latest weights.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    mine, theirs = ([*each.parameters(), *each.buffers()] for each in (average, model))
    pairs = [(a.detach(), b.detach()) for a, b in zip(mine, theirs, strict=True)]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], weight)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
