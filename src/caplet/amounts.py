"""Amounts as people write them: 5MB, 300KiB, 12M."""

from __future__ import annotations

import re

from caplet.errors import ConfigError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def parse_bytes(text: str) -> int:
    """Bytes of ``"5MB"``, ``"300 KiB"``, ``"1.5mb"`` or a plain number of bytes.

    Raises ConfigError for anything else.

    >>> parse_bytes("5MB"), parse_bytes("1 KiB"), parse_bytes("1.5kb")
    (5000000, 1024, 1500)
    """
    return _parse(text, _BYTES, "size", "5MB, 300KiB or 4096")


def parse_count(text: str) -> int:
    """A number such as ``"12M"`` or ``"250k"``. Raises ConfigError for anything else.

    >>> parse_count("12M"), parse_count("1.5k"), parse_count("300")
    (12000000, 1500, 300)
    """
    return _parse(text, _COUNTS, "number", "12M, 250k or 4096")


def _parse(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = re.fullmatch(r"\s*([0-9]{0,15}\.?[0-9]{1,15})\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"{what} {text!r}: the rule is a number and a unit, such as {examples}")
    return round(float(match[1]) * units[match[2]])
