"""C identifiers from the names of Programs, ops and constants."""

from __future__ import annotations

import re

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
