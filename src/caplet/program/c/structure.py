"""C data before it is text or memory: structures of integers, the arrays that they refer to, and their names in C."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ref:
    """A pointer to the first element of the array of this name, or NULL where the name is empty."""

    name: str = ""


@dataclass(frozen=True)
class Struct:
    """One value of a structure type of ``caplet.h``; fields in the order of the type."""

    type: str
    fields: "Mapping[str, Value]"

    def to_c(self, indent: str = "") -> str:
        """The C99 initialiser, with designators."""
        inner = indent + "    "
        lines = [f"{inner}.{name} = {_value(value, inner)}," for name, value in self.fields.items()]
        return "{\n" + "\n".join(lines) + f"\n{indent}}}"


Value = int | Ref | Struct
"""The value of a field."""


def rows_of_numbers(values: NDArray[Any], indent: str) -> str:
    """The elements of a one-axis array, 24 to a line."""
    table = {value: str(value) for value in np.unique(values).tolist()}
    words = [table[value] for value in values.tolist()]
    return f",\n{indent}".join(", ".join(words[start : start + 24]) for start in range(0, len(words), 24))


def _value(value: Value, indent: str) -> str:
    if isinstance(value, Struct):
        return value.to_c(indent)
    if isinstance(value, Ref):
        return value.name or "NULL"
    # INT32_MIN has no literal of its own in C, and -2^31 never occurs here: codes have at most 16 bits.
    return f"{value}u" if value > 0x7FFFFFFF else str(value)


_RESERVED = """auto break case char const continue default do double else enum extern float for goto if inline int
    long register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    bool true false nullptr alignas alignof typeof asm class namespace template this new delete private public
    protected virtual operator friend try catch throw using main"""
_KEYWORDS = frozenset(_RESERVED.split())


def identifier(text: str) -> str:
    """A valid C (and C++) identifier for ``text``, without leading or doubled underscores: those are reserved.

    >>> identifier("digit.votes"), identifier("8-bit model!"), identifier("int")
    ('digit_votes', 'm_8_bit_model', 'm_int')
    """
    word = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
    word = re.sub(r"_+", "_", word)
    return f"m_{word}".rstrip("_") if not word or word[0].isdigit() or word in _KEYWORDS else word


class Identifiers:
    """Hands out identifiers that are unique within one file.

    >>> names = Identifiers()
    >>> names.of("a.b"), names.of("a_b"), names.of("a.b")
    ('a_b', 'a_b_2', 'a_b')
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, text: str) -> str:
        """The identifier of ``text``: always the same for the same text, never that of another text."""
        if text not in self._given:
            word = base = identifier(text)
            number = 2
            while word in self._taken:
                word, number = f"{base}_{number}", number + 1
            self._given[text] = word
            self._taken.add(word)
        return self._given[text]
