"""A model run stage by stage: from any stage on, under any handler, and what that costs."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caplet.models.base import CapsNet, State
from caplet.models.cost import stage_macs
from caplet.nn.points import Handler


class StagedModel:
    """Runs a model from any of its stages on; every replay in caplet goes through :meth:`run_from`.

    Callers choose the gradient mode (``torch.no_grad``, ``torch.inference_mode``).

    Attributes:
        model: in evaluation mode.
        stages: its stages, in order.
        stage_of: by point key, the number of the stage that has the point.
    """

    def __init__(self, model: CapsNet) -> None:
        self.model = model.eval()
        self.stages = model.stages()
        points = ((number, layer.points()) for number, stage in enumerate(self.stages) for layer in stage.layers)
        self.stage_of = {key: number for number, specs in points for key in specs}

    def __reduce__(self) -> tuple[type["StagedModel"], tuple[CapsNet]]:
        return StagedModel, (self.model,)  # stages hold functions that do not travel

    def __len__(self) -> int:
        return len(self.stages)

    @cached_property
    def tail_cost(self) -> NDArray[np.float64]:
        """The cost of each stage and all later ones, as fractions of the whole model's multiply-accumulates; then 0."""
        macs = np.array(stage_macs(self.model), dtype=np.float64)
        tails: NDArray[np.float64] = np.append(np.cumsum(macs[::-1])[::-1], 0.0) / macs.sum()
        return tails

    def run_from(
        self,
        stage: int,
        state: State,
        handler: Handler | None = None,
        *,
        stop: int | None = None,
        keep: Callable[[int, State], None] | None = None,
    ) -> State:
        """The output of stage ``stop`` - 1 (of the last one by default), from the input ``state`` of ``stage``.

        Args:
            handler: attached meanwhile; None runs in float.
            keep: called with the number and the output of every stage before the next one runs: a handler may round
                tensors in place.
        """
        with nullcontext() if handler is None else self.model.handle(handler):
            for number in range(stage, len(self.stages) if stop is None else stop):
                state = self.stages[number].run(state)
                if keep is not None:
                    keep(number, state)
        return state

    def float_states(self, images: Tensor) -> tuple[tuple[State, ...], Tensor]:
        """The input of every stage in float, and the class capsules (B, classes, D), of float images (B, C, H, W)."""
        states: list[State] = [(images,)]
        self.run_from(0, states[0], keep=lambda number, state: states.append(state))
        return tuple(states[:-1]), states[-1][0]

    def first_stage(self, keys: Iterable[str]) -> int:
        """The first stage that has one of these points, the number of all stages where none has.

        Raises KeyError for an unknown point.
        """
        return min((self.stage_of[key] for key in keys), default=len(self.stages))
