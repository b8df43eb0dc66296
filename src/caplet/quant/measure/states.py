"""Stage outputs of many images, kept as integer codes under a byte limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caplet.fixed import FixedFormat
from caplet.models.base import State


def code_dtype(fmt: FixedFormat) -> torch.dtype:
    """The smallest dtype for a format's codes; unsigned codes of more than 8 bits wrap around in int16."""
    if fmt.bits <= 8:
        return torch.int8 if fmt.signed else torch.uint8
    return torch.int16


def encode_state(state: State, formats: Sequence[FixedFormat]) -> State:
    """The codes of tensors that hold only values of their formats; strides are kept."""
    return tuple(
        (value * 2.0**fmt.frac_bits).to(torch.int32).to(code_dtype(fmt))
        for value, fmt in zip(state, formats, strict=True)
    )


def decode_state(codes: State, formats: Sequence[FixedFormat]) -> State:
    """The float32 tensors that :func:`encode_state` took, bit for bit, in the same memory layout."""
    return tuple(map(_decode, codes, formats))


def _decode(codes: Tensor, fmt: FixedFormat) -> Tensor:
    if not fmt.signed and codes.dtype is torch.int16:
        codes = codes.to(torch.int32) & 0xFFFF
    return codes.to(torch.float32).mul_(fmt.step)


@dataclass
class _Entry:
    """One stage's output: the codes of the first batches; None where they are lost."""

    batches: list[State | None] = field(default_factory=list)
    bytes: int = 0


class StateCache:
    """Codes of stage outputs, batch by batch, by key; the least recently used key is dropped where the limit would be
    passed.

    Codes may be lost, those of an interrupted run: they keep their place, and are as good as there for all that is
    decided here.

    Args:
        limit: bytes that all stored codes together may take; 0 stores nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def use(self, key: str, batch: int) -> bool:
        """Whether one batch is stored, or lost; its key is marked as just used."""
        entry = self._entries.get(key)
        if entry is None or batch >= len(entry.batches):
            return False
        self._entries.move_to_end(key)
        return True

    def codes(self, key: str, batch: int) -> State | None:
        """The codes of one batch; None where they are not there or lost."""
        entry = self._entries.get(key)
        return None if entry is None or batch >= len(entry.batches) else entry.batches[batch]

    def restore(self, key: str, batch: int, codes: State) -> None:
        """Put lost codes back into their place, where they have one."""
        entry = self._entries.get(key)
        if entry is not None and batch < len(entry.batches):
            entry.batches[batch] = codes

    def add(self, key: str, batch: int, size: int, codes: State | None, keep: Collection[str] = ()) -> bool:
        """Store the batch that follows those stored under ``key``; other keys are dropped for it, but not ``keep``.

        Args:
            size: bytes of the codes.
            codes: None for lost ones.

        Returns:
            False, with nothing stored, where the batch does not follow or does not fit.
        """
        entry = self._entries.get(key)
        if batch != (0 if entry is None else len(entry.batches)):
            return False
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
        entry.batches.append(codes)
        entry.bytes += size
        self.bytes += size
        return True
