"""Running plans from behind the last stage whose output is kept: what a probe computes, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from caplet.fixed import FixedFormat
from caplet.models.base import CapsNet, State
from caplet.models.cost import stage_macs
from caplet.quant.measure.states import StateCache, code_dtype, decode_state, encode_state
from caplet.quant.plan.plan import QuantPlan


class PrefixRunner:
    """Runs batches of images through a model, whose handler the caller sets, and keeps the outputs of stages.

    The output of stage k depends on the plan at the points of stages 1..k alone. The outputs that an interrupted run
    had in memory are lost, but not which ones they were (:meth:`replay`): a run that goes on computes them again where
    it needs them, and counts what an uninterrupted run would have computed.

    Args:
        cache_bytes: limit of the kept outputs; 0 keeps none.

    Attributes:
        cache: the kept outputs.
        tail_cost: cost of stage k and all later ones, as a share of the whole model's multiply-accumulates.
    """

    def __init__(self, model: CapsNet, cache_bytes: int) -> None:
        self.cache = StateCache(cache_bytes)
        self._stages = model.stages()
        self._elements = {key: spec.elements for key, spec in model.points().items()}
        self._keys = [[key for layer in stage.layers for key in layer.points()] for stage in self._stages]
        macs = np.array(stage_macs(model), dtype=np.float64)
        self.tail_cost = np.append(np.cumsum(macs[::-1])[::-1], 0.0) / macs.sum()

    def prefixes(self, plan: QuantPlan) -> list[str]:
        """For every stage, the digest of the plan at the points of this and all earlier stages."""
        keys: set[str] = set()
        digests = []
        for stage_keys in self._keys:
            keys.update(stage_keys)
            digests.append(plan.restricted(keys).digest())
        return digests

    def run_float(self, images: Tensor) -> Tensor:
        """Class capsules of float images (B, C, H, W) without a plan: (B, classes, D). Nothing is kept."""
        state: State = (images,)
        for stage in self._stages:
            state = stage.run(state)
        return state[0]

    def run(self, plan: QuantPlan, prefixes: Sequence[str], batch: int, images: Tensor) -> tuple[Tensor, int, int]:
        """Class capsules of one batch under ``plan``.

        Args:
            prefixes: of the plan, see :meth:`prefixes`.
            batch: its number, which always stands for the same images.
            images: float (B, C, H, W).

        Returns:
            Capsules (B, classes, D); the first stage that an uninterrupted run computes; the first one computed now.
        """
        counted = self._first(prefixes, batch)
        first = 0
        state: State = (images,)
        for stage in range(counted - 1, -1, -1):
            codes = self.cache.codes(prefixes[stage], batch)
            if codes is not None:
                first, state = stage + 1, decode_state(codes, self._formats(stage, plan))
                break
        computed: dict[int, State] = {}
        for stage in range(first, len(self._stages)):
            state = self._stages[stage].run(state)
            if self._is_kept(stage):
                computed[stage] = encode_state(state, self._formats(stage, plan))
        for stage, codes in computed.items():
            if stage < counted:
                self.cache.restore(prefixes[stage], batch, codes)
        self._keep(plan, prefixes, batch, counted, len(images), computed)
        return state[0], counted, first

    def replay(self, plan: QuantPlan, batch_size: int, start: int, stop: int) -> None:
        """Take note of the outputs that an interrupted run kept when it measured places ``start`` to ``stop`` - 1."""
        prefixes = self.prefixes(plan)
        for low in range(start, stop, batch_size):
            batch = low // batch_size
            self._keep(plan, prefixes, batch, self._first(prefixes, batch), min(batch_size, stop - low), {})

    def _first(self, prefixes: Sequence[str], batch: int) -> int:
        """The stage after the last one whose output is kept, or was by the interrupted run."""
        kept = (stage for stage in range(len(prefixes) - 2, -1, -1) if self.cache.use(prefixes[stage], batch))
        return next(kept, -1) + 1

    def _is_kept(self, stage: int) -> bool:
        """Whether a stage's output is worth keeping: the input image saves nothing, the last one is the answer."""
        spared = self.tail_cost[stage + 1] < 1.0
        return bool(self.cache.limit and spared and stage < len(self._stages) - 1)

    def _keep(
        self,
        plan: QuantPlan,
        prefixes: Sequence[str],
        batch: int,
        first: int,
        images: int,
        computed: dict[int, State],
    ) -> None:
        """Keep the outputs of ``first`` and later stages; of those not in ``computed``, that they were kept."""
        keep = {prefixes[first - 1]} if first else set()
        for stage in range(len(self._stages) - 1, first - 1, -1):  # later ones are smaller and used more often
            if self._is_kept(stage):
                size = images * self._bytes(stage, plan)
                self.cache.add(prefixes[stage], batch, size, computed.get(stage), keep)
                keep.add(prefixes[stage])

    def _bytes(self, stage: int, plan: QuantPlan) -> int:
        """Bytes of a stage's codes for one image."""
        outputs = zip(self._stages[stage].outputs, self._formats(stage, plan), strict=True)
        return sum(self._elements[key] * code_dtype(fmt).itemsize for key, fmt in outputs)

    def _formats(self, stage: int, plan: QuantPlan) -> tuple[FixedFormat, ...]:
        formats = [plan.points[key] for key in self._stages[stage].outputs]
        return tuple(
            fmt for fmt in formats if isinstance(fmt, FixedFormat)
        )  # checked: computed tensors are fixed-point
