"""Pickles in the instructions of protocol 2, the only ones that PyTorch's restricted reader knows; nothing is run."""

import io
import pickletools
import zipfile
from pickle import UnpicklingError
from typing import Any, BinaryIO

#: A file of tensors has some ten instructions for each. Beyond this many, or so many bytes, it is none.
MOST_INSTRUCTIONS, MOST_BYTES = 1_000_000, 1 << 26
#: With what a PyTorch file that is no archive begins: magic number, version, system, content, names of storages.
PICKLES = 5
#: Sets become lists, and bytes None: no tensor is made of them.
_FIXED = {"PROTO": b"\x80\x02", "FRAME": b"", "EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t"} | dict.fromkeys(
    ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), b"N"
)


def _protocol_2(stream: BinaryIO, names: set[str]) -> tuple[int, bytes]:
    """The protocol of the next pickle of a stream, and its translation."""
    out: list[bytes] = []
    memo: dict[int, str | None] = {}
    texts: list[tuple[str, int]] = []  # those on top of the stack, and where in ``out`` each stands
    protocol = size = 0
    arg: Any
    for op, arg, start in pickletools.genops(stream):
        raw, text, end = _FIXED.get(op.name), None, stream.tell()
        if op.name == "PROTO":
            protocol = arg
        elif op.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            place = len(memo) if op.name == "MEMOIZE" else arg
            memo[place] = texts[-1][0] if texts else None
            raw = b"" if texts else b"r" + place.to_bytes(4, "little")
        elif op.name in ("BINGET", "LONG_BINGET"):
            text = memo.get(arg)
        elif "UNICODE" in op.name:
            text = arg
        elif op.name == "GLOBAL":
            names.add(arg.replace(" ", "."))
        elif op.name == "STACK_GLOBAL":
            (module, place), (name, _) = texts[-2:]
            names.add(f"{module}.{name}")
            del out[place:]
            raw = f"c{module}\n{name}\n".encode()
        if text is not None:
            texts.append((text, len(out)))
            data = text.encode("utf-8", "surrogatepass")
            raw = b"X" + len(data).to_bytes(4, "little") + data
        elif raw != b"":
            texts.clear()
        if raw is None:
            raw = stream.read(end - stream.seek(start or 0))
        out.append(raw)
        size += len(raw)
        if len(out) > MOST_INSTRUCTIONS or size > MOST_BYTES:
            raise UnpicklingError("too long for a list of tensors")
    return protocol, b"".join(out)


def protocol_2(stream: BinaryIO, entry: str | None, names: set[str]) -> BinaryIO:
    """A PyTorch file with its pickles in protocol 2: ``stream`` itself, from its beginning on, where they are.

    Args:
        entry: the pickle's place in the archive; None for a file that is none.
        names: receives the functions and classes that the pickles ask for, as ``module.name``.

    Raises:
        ValueError, UnpicklingError, and what zipfile raises: damaged, or longer than a list of tensors is.
    """
    if entry is None:
        pickles = [_protocol_2(stream, names) for _ in range(PICKLES)]
        if max(protocol for protocol, _ in pickles) > 2:
            return io.BytesIO(b"".join([*(text for _, text in pickles), stream.read()]))
    else:
        with zipfile.ZipFile(stream) as archive:
            protocol, text = _protocol_2(io.BytesIO(archive.read(entry)), names)
            if protocol > 2:
                with zipfile.ZipFile(result := io.BytesIO(), "w") as copy:
                    for name in archive.namelist():
                        copy.writestr(name, text if name == entry else archive.read(name))
                stream = result
    stream.seek(0)
    return stream
