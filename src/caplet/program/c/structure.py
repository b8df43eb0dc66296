"""The C files of the runtime, the structures that their headers declare, and values of these.

Values are structures of integers, and the arrays that they refer to, before they are text or memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KERNELS = ("conv.c", "routing.c", "squash.c", "tile.h", "votes.c")
HOST_ONLY = frozenset({"host.c", "host.h", *(f"host_{name}" for name in _KERNELS)})
"""Files that only the host runtime compiles; an exported model does not contain them."""


def runtime_files(host: bool = False) -> dict[str, str]:
    """File name -> text, sorted by name. host: with the files of the host runtime.

    >>> "conv2d.c" in runtime_files(), "host.c" in runtime_files(), "host.c" in runtime_files(host=True)
    (True, False, True)
    """
    folder = files("caplet.program.c").joinpath("runtime")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith((".c", ".h")))
    return {name: folder.joinpath(name).read_text() for name in names if host or name not in HOST_ONLY}


@cache
def _headers() -> str:
    """The texts of ``caplet.h`` and ``host.h`` without comments."""
    texts = runtime_files(host=True)
    return re.sub(r"/\*.*?\*/", "", texts["caplet.h"] + texts["host.h"], flags=re.DOTALL)


@cache
def constants() -> dict[str, int]:
    """The members of every ``enum`` of the headers.

    >>> constants()["CAPLET_UINT16"]
    3
    """
    members = re.findall(r"(CAPLET_\w+) = (\d+)", " ".join(re.findall(r"enum \{(.*?)\}", _headers(), re.DOTALL)))
    return {name: int(value) for name, value in members}


@cache
def structures() -> dict[str, tuple[tuple[str, str, int], ...]]:
    """The structures of the headers, in their order: name -> (field, C type, elements; 0 for no array).

    The C type is one of ``stdint.h`` or of a structure; that of every pointer is ``*``.

    >>> structures()["caplet_constant"]
    (('data', '*', 0), ('bits', 'uint8_t', 0), ('kind', 'uint8_t', 0))
    """
    found = re.findall(r"typedef struct \w*\s*\{(.*?)\} (\w+);", _headers(), re.DOTALL)
    return {name: tuple(_field(text) for text in body.split(";") if text.strip()) for body, name in found}


def _field(declaration: str) -> tuple[str, str, int]:
    """``const void *x`` -> x, ``*``, 0. ``uint8_t x[4]`` -> x, ``uint8_t``, 4."""
    match = re.fullmatch(r"\s*(?:const )?(\w+) (?:(\w+)(?:\[(\w+)\])?|.*?\*(\w+)\)?(?:\(.*\))?)\s*", declaration)
    assert match is not None, f"a field that is not understood: {declaration!r}"
    kind, name, count, pointer = match.groups()
    if pointer:
        return pointer, "*", 0
    return name, kind, 0 if count is None else int(constants().get(count, count))


KERNEL = "caplet_"
"""How names of the runtime's functions start, and no array's."""


@dataclass(frozen=True)
class Ref:
    """A pointer to the first element of the array of this name, or to the function where it starts with :data:`KERNEL`;
    NULL where the name is empty."""

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


def c_string(text: str) -> str:
    """A literal of C and C++ for ``text`` in UTF-8, without trigraphs.

    >>> print(c_string('a "b" ??/ \u00e9'))
    "a \\"b\\" \\?\\?/ \\303\\251"
    """
    escaped = {ord(sign): f"\\{sign}" for sign in '"\\?'}
    codes = (escaped.get(code, chr(code) if 32 <= code < 127 else f"\\{code:03o}") for code in text.encode())
    return f'"{"".join(codes)}"'


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
