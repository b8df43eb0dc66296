"""The C files of the runtime, as they ship with caplet, and what their headers declare."""

import re
from functools import cache
from importlib.resources import files

HOST_ONLY = frozenset({"host.c", "host.h", "host_conv.c"})
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
