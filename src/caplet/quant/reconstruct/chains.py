"""The float model and the model being quantized, run side by side on the calibration images, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from caplet.data.imageset import to_float
from caplet.models.base import CapsNet, Stage, State
from caplet.nn.layer import Layer
from caplet.nn.points import Handler

_BATCH = 64


class Chain:
    """A model at one stage: the stage's inputs for all images, from which the next stage's are computed.

    Args:
        model: in evaluation mode; its parameters may change between calls.
        images: uint8 (N, C, H, W).
        handler: attached while the model runs, None for float.
    """

    def __init__(self, model: CapsNet, images: Tensor, handler: Handler | None = None) -> None:
        self._model, self._handler = model, handler
        self._stages: Sequence[Stage] = model.stages()
        self._stage = 0
        self._states: list[State] = [(to_float(batch),) for batch in images.split(_BATCH)]

    @property
    def stage(self) -> Stage:
        """The stage whose inputs are held."""
        return self._stages[self._stage]

    def input_of(self, layer: Layer) -> Tensor:
        """What ``layer``, one of the present stage's, reads for all images: float (N, ...)."""
        caught: list[Tensor] = []

        def catch(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            caught.append(args[0])
            raise _Caught

        hook = layer.register_forward_pre_hook(catch)
        try:
            with torch.no_grad(), self._attached():
                for state in self._states:
                    try:
                        self.stage.run(state)
                    except _Caught:
                        continue
        finally:
            hook.remove()
        return torch.cat(caught)

    def advance(self) -> None:
        """Run the present stage; its outputs take the place of its inputs."""
        with torch.no_grad(), self._attached():
            for index, state in enumerate(self._states):
                self._states[index] = self.stage.run(state)
        self._stage += 1

    def outputs(self) -> Tensor:
        """The class capsules of all images, after the last stage, float (N, classes, D)."""
        return torch.cat([state[0] for state in self._states])

    def _attached(self) -> Any:
        return nullcontext() if self._handler is None else self._model.handle(self._handler)


class _Caught(Exception):
    """Ends a stage's run once the wanted layer's input is known."""
