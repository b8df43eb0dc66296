"""Plans run from behind the last stage whose output is cached: what an evaluation computes, and what that costs."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caplet.fixed import FixedFormat
from caplet.models.base import CapsNet, State
from caplet.models.staged import StagedModel
from caplet.nn.points import Handler
from caplet.quant.plan.plan import QuantPlan

_BYTE = {True: torch.int8, False: torch.uint8}


def encode_state(state: State, formats: Sequence[FixedFormat]) -> State:
    """The codes of tensors that hold only values of their formats, in the smallest dtype; strides are kept.

    Unsigned codes of more than 8 bits wrap around in int16.
    """
    return tuple(
        (value * 2.0**fmt.frac_bits).to(torch.int32).to(torch.int16 if fmt.bits > 8 else _BYTE[fmt.signed])
        for value, fmt in zip(state, formats, strict=True)
    )


def decode_state(codes: State, formats: Sequence[FixedFormat]) -> State:
    """The float32 tensors that :func:`encode_state` took, bit for bit, in the same memory layout."""
    wide = [
        code.to(torch.int32) & 0xFFFF if code.dtype is torch.int16 and not fmt.signed else code
        for code, fmt in zip(codes, formats, strict=True)
    ]
    return tuple(code.to(torch.float32).mul_(fmt.step) for code, fmt in zip(wide, formats, strict=True))


@dataclass
class _Entry:
    """One stage's output: codes by batch."""

    batches: dict[int, State] = field(default_factory=dict)
    bytes: int = 0


class StateCache:
    """Codes of stage outputs, batch by batch, by key, under a limit of bytes; the least recently used key is dropped.

    Args:
        limit: bytes that all stored codes together may take; 0 stores nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str, batch: int) -> State | None:
        """The codes of one batch, None where they are not stored; the key is marked as just used."""
        entry = self._entries.get(key)
        if entry is None or batch not in entry.batches:
            return None
        self._entries.move_to_end(key)
        return entry.batches[batch]

    def add(self, key: str, batch: int, codes: State, keep: Collection[str] = ()) -> bool:
        """Store a batch under ``key``; other keys are dropped for it, but not ``keep``.

        Returns:
            False, with nothing stored, where the batch is there or does not fit.
        """
        entry = self._entries.get(key)
        if entry is not None and batch in entry.batches:
            return False
        size = sum(tensor.numel() * tensor.element_size() for tensor in codes)
        droppable = [other for other in self._entries if other != key and other not in keep]
        spare = self.limit - self.bytes
        if size > spare + sum(self._entries[other].bytes for other in droppable):
            return False
        for other in droppable:
            if size <= self.limit - self.bytes:
                break
            self.bytes -= self._entries.pop(other).bytes
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        entry.batches[batch] = codes
        entry.bytes += size
        self.bytes += size
        return True


class CachedStages(StagedModel):
    """A staged model that runs batches of images under plans and keeps the outputs of stages as integer codes.

    The output of stage k depends on the plan at the points of stages 1..k alone.

    Args:
        cache_bytes: limit of the cached outputs; 0 caches none.

    Attributes:
        cache: the cached outputs.
    """

    def __init__(self, model: CapsNet, cache_bytes: int) -> None:
        super().__init__(model)
        self.cache = StateCache(cache_bytes)

    def prefixes(self, plan: QuantPlan) -> list[str]:
        """For every stage, the digest of the plan at the points of this and all earlier stages."""
        return [
            plan.restricted({key for key, stage in self.stage_of.items() if stage <= number}).digest()
            for number in range(len(self))
        ]

    def run_plan(
        self, plan: QuantPlan, prefixes: Sequence[str], batch: int, images: Tensor, handler: Handler
    ) -> tuple[Tensor, float]:
        """Class capsules of one batch under ``plan``.

        Args:
            prefixes: of the plan, see :meth:`prefixes`.
            batch: its number, which always stands for the same images.
            images: float (B, C, H, W).
            handler: computes with the plan's numbers.

        Returns:
            Capsules (B, classes, D); what was computed, as a fraction of the whole model's cost.
        """
        first, codes = self._cached(prefixes, batch)
        state = (images,) if codes is None else decode_state(codes, self._formats(first - 1, plan))
        computed: dict[int, State] = {}

        def keep(stage: int, state: State) -> None:
            if self._worth_keeping(stage):
                computed[stage] = encode_state(state, self._formats(stage, plan))

        capsules = self.run_from(first, state, handler, keep=keep)[0]
        self._store(first, prefixes, batch, computed)
        return capsules, float(self.tail_cost[first])

    def account(self, plan: QuantPlan, prefixes: Sequence[str], batch: int, count: int) -> float:
        """What :meth:`run_plan` would compute of ``count`` images, as if it did: codes without numbers are kept."""
        first, _ = self._cached(prefixes, batch)
        specs, computed = self.model.points(), dict[int, State]()
        for stage in filter(self._worth_keeping, range(first, len(self))):
            sizes = [(count, specs[key].elements) for key in self.stages[stage].outputs]
            state = tuple(torch.empty(size, device="meta") for size in sizes)
            computed[stage] = encode_state(state, self._formats(stage, plan))
        self._store(first, prefixes, batch, computed)
        return float(self.tail_cost[first])

    def _cached(self, prefixes: Sequence[str], batch: int) -> tuple[int, State | None]:
        """The stage to begin with, and the codes that the one before it gave; None where it is the first."""
        for stage in range(len(self) - 2, -1, -1):
            if (codes := self.cache.get(prefixes[stage], batch)) is not None:
                return stage + 1, codes
        return 0, None

    def _store(self, first: int, prefixes: Sequence[str], batch: int, computed: dict[int, State]) -> None:
        needed = {prefixes[first - 1]} if first else set()
        for stage in reversed(computed):  # later ones are smaller and used more often
            self.cache.add(prefixes[stage], batch, computed[stage], needed)
            needed.add(prefixes[stage])

    def _worth_keeping(self, stage: int) -> bool:
        """Whether a stage's output is worth caching: the input image saves nothing, the last one is the answer."""
        spared = self.tail_cost[stage + 1] < 1.0
        return bool(self.cache.limit and spared and stage < len(self) - 1)

    def _formats(self, stage: int, plan: QuantPlan) -> tuple[FixedFormat, ...]:
        formats = [plan.points[key] for key in self.stages[stage].outputs]
        return tuple(
            fmt for fmt in formats if isinstance(fmt, FixedFormat)
        )  # checked: computed tensors are fixed-point
