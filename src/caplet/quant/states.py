"""Stage outputs of many images, kept as integer codes under a byte limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Stored:
    """One stage's output for all images: its formats and the codes of every batch."""

    formats: tuple[FixedFormat, ...]
    batches: tuple[State, ...]

    @property
    def bytes(self) -> int:
        """Bytes that the codes take."""
        return sum(codes.numel() * codes.element_size() for state in self.batches for codes in state)


class StateCache:
    """Stored stage outputs by key, the least recently used dropped first where the limit would be passed.

    Args:
        limit: bytes that all stored codes together may take; 0 stores nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[str, Stored] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return sum(entry.bytes for entry in self._entries.values())

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Stored | None:
        """The entry, marked as just used; None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def make_room(self, size: int, keep: str | None) -> bool:
        """Drop old entries, but not ``keep``, until ``size`` more bytes fit. False (nothing dropped) if they cannot."""
        kept = self._entries[keep].bytes if keep is not None and keep in self._entries else 0
        if size + kept > self.limit:
            return False
        for key in [key for key in self._entries if key != keep]:
            if self.bytes + size <= self.limit:
                break
            del self._entries[key]
        return True

    def put(self, key: str, stored: Stored) -> None:
        """Add an entry for which room was made; one that would pass the limit is not stored."""
        if self.bytes + stored.bytes <= self.limit:
            self._entries[key] = stored
