"""What a forward pass costs: multiply-accumulates per stage."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from caplet.models.base import CapsNet, State


def stage_macs(model: CapsNet) -> tuple[int, ...]:
    """Multiply-accumulates of every stage for one image, in order; convolutions and matrix products are counted.

    Measured on one blank image in float, so a new layer needs no formula.
    """
    state: State = (torch.zeros(1, *model.config.image),)
    macs = []
    with torch.no_grad():
        for stage in model.stages():
            counter = FlopCounterMode(display=False)
            with counter:
                state = stage.run(state)
            macs.append(counter.get_total_flops() // 2)
    return tuple(macs)
