"""The C files of the runtime, as they ship with caplet."""

from __future__ import annotations

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
