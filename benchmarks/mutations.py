"""Files damaged at random: in their bytes, or inside their format with lengths and checksums made right again.

:func:`mutate` takes the bytes of a sound file and its form, and gives other bytes. Half of the changes know nothing
of the form (flipped bits, a cut, a block spliced in, a field that becomes a huge length, a number in a text replaced);
the other half take the file apart, damage one part by its own form, and put it together again, so that the damage gets
past checksums and compression to what reads it. Equal generators give equal files.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

NUMBERS: list[Any] = [
    *[
        -(2**63),
        -(10**18),
        -2,
        -1,
        0,
        1,
        2,
        3,
        7,
        8,
        16,
        17,
        63,
        64,
        65,
        255,
        256,
        999,
        1001,
        4096,
        65535,
        65536,
        100_000,
    ],
    *[2**20, 2**26, 2**31 - 1, 2**31, 2**32, 10**12, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**18, 10**40, 10**400],
    *[0.0, -0.0, 0.5, 1e-320, 1e-12, 3.4e38, 3.5e38, 1e308, float("nan"), float("inf"), float("-inf")],
]
"""What takes the place of a number."""
OTHERS: list[Any] = [
    *[
        None,
        True,
        False,
        "",
        "a",
        "0",
        "nan",
        "\x00",
        "line\nline",
        "\ud800",
        r"$\frac{b$",
        "../../etc",
        "/",
        "-",
        "[x",
    ],
    *["a" * 5000, [], {}, [[]], [0], [1, 2, 3], {"a": 1}, {"": None}, [None, "x"]],
]
"""What takes the place of a value that is not a number, and now and then of a number."""
SIZES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
"""What is written over a field that may be a length."""
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_ENDINGS = {
    ".json": "json",
    ".npy": "npy",
    ".pkl": "pickle",
    ".h5": "h5",
    ".png": "png",
    ".jsonl": "jsonl",
    ".csv": "csv",
}


def mutate(draw: random.Random, data: bytes, form: str) -> bytes:
    """A damaged copy of ``data``, which has the ``form``: a name in :data:`FORMS`, or another one for bytes alone."""
    for _ in range(8):
        inside = FORMS.get(form) if draw.random() < 0.6 else None
        try:
            made = raw(draw, data) if inside is None else inside(draw, data)
        except Exception:  # a form that an earlier change broke, or that this part of it cannot have
            made = raw(draw, data)
        if made != data:
            break
    return made


def raw(draw: random.Random, data: bytes) -> bytes:
    """Bytes damaged by one of several ways that know no form, now and then by several in turn."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice((_flipped, _flipped, _cut, _spliced, _spliced, _inflated, _inflated, _renumbered))(
            draw, data
        )
    return data


def _flipped(draw: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    end = len(made) if draw.random() < 0.5 else min(len(made), 512)  # headers are short and come first
    for _ in range(draw.randint(1, 8) if made else 0):
        made[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(made)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.choice((0, 1, 8, draw.randrange(len(data) + 1), max(0, len(data) - draw.randint(1, 64))))]


def _spliced(draw: random.Random, data: bytes) -> bytes:
    """A block taken out, doubled, swapped for another block of the file or for noise, or noise at the end."""
    a, b, c, d = sorted(draw.randrange(len(data) + 1) for _ in range(4))
    noise = draw.randbytes(draw.choice((1, 4, 8, 64, 1000)))
    return draw.choice(
        (
            *(data[:a] + data[b:], data[:b] + data[a:], data[:a] + data[c:d] + data[b:], data[:a] + noise + data[a:]),
            *(
                data[:a] + noise + data[b:],
                data + noise,
                data[:a] + bytes(b - a) + data[b:],
                data[:a] + data[c:d] + data[a:],
            ),
        )
    )


def _inflated(draw: random.Random, data: bytes) -> bytes:
    width = draw.choice((1, 2, 4, 4, 8))
    if len(data) < width:
        return data
    at = (
        draw.randrange(len(data) - width + 1)
        if draw.random() < 0.5
        else draw.randrange(min(len(data) - width + 1, 256))
    )
    order = draw.choice(("little", "big"))
    old = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]  # one of the two words
    value = draw.choice((*SIZES, old + 1, old - 1, old * 2, old << 8)) % (1 << (8 * width))
    return data[:at] + value.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]  # as above


def _renumbered(draw: random.Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _flipped(draw, data)
    match = draw.choice(found)
    return data[: match.start()] + json.dumps(draw.choice(NUMBERS)).encode() + data[match.end() :]


def in_value(draw: random.Random, value: Any) -> Any:
    """A JSON-like value with one to three changes anywhere inside; ``value`` itself may be changed."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.93:
        key = draw.choice(list(value))
        act = draw.random()
        if act < 0.08:
            del value[key]
        elif act < 0.13:
            value[draw.choice(("", "extra", "__class__", f"{key}x"))] = value.pop(key)
        elif act < 0.16:
            value["extra"] = draw.choice(OTHERS)
        else:
            value[key] = _changed(draw, value[key])
        return value
    if isinstance(value, list) and value and draw.random() < 0.9:
        place, act = draw.randrange(len(value)), draw.random()
        if act < 0.1:
            del value[place]
        elif act < 0.2:
            value.insert(place, value[draw.randrange(len(value))])
        elif act < 0.22:
            value[:] = value * draw.choice((2, 50))
        else:
            value[place] = _changed(draw, value[place])
        return value
    if draw.random() < 0.01:
        return json.loads("[" * 300 + "]" * 300)
    if isinstance(value, str) and value[:1] == "{":  # JSON in a text of JSON
        return json.dumps(in_value(draw, json.loads(value)))
    if isinstance(value, str) and value and draw.random() < 0.5:
        return raw(draw, value.encode("utf-8", "replace")).decode("utf-8", "replace")
    if isinstance(value, int | float) and draw.random() < 0.3:
        return draw.choice(
            (-value, value + 1, value - 1, value * 1000, value * 10**9, value / 7, int(min(max(value, -9e9), 9e9)))
        )
    return draw.choice(NUMBERS if isinstance(value, int | float) and draw.random() < 0.8 else OTHERS)


def _json(draw: random.Random, data: bytes) -> bytes:
    if draw.random() < 0.02:
        return b"[" * 100_000
    return json.dumps(in_value(draw, json.loads(data))).encode()


def _json_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    place, act = draw.randrange(len(lines)), draw.random()
    if act < 0.7:
        lines[place] = _json(draw, lines[place]) + b"\n"
    elif act < 0.8:
        del lines[place]
    elif act < 0.9:
        lines.insert(place, draw.choice(lines))
    else:
        draw.shuffle(lines)
    return b"".join(lines)


def _csv(draw: random.Random, data: bytes) -> bytes:
    rows = [row.split(b",") for row in data.splitlines()]
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = draw.choice(
        (json.dumps(draw.choice(NUMBERS)).encode(), b'"', b"", b"\x00", b"x" * 200_000, b"\xff", b"a,b,c", b'"open\n')
    )
    return b"\r\n".join(b",".join(row) for row in rows) + b"\r\n"


def _toml(draw: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    places = [at for at, line in enumerate(lines) if "=" in line]
    at, act = draw.choice(places), draw.random()
    name = lines[at].partition("=")[0].strip("# ")
    if act < 0.75:
        value = draw.choice(NUMBERS if draw.random() < 0.6 else OTHERS)
        shown = str(value) if isinstance(value, float) else "''" if value is None else json.dumps(value)
        lines[at] = f"{name} = {shown}"
    elif act < 0.85:
        lines[at] = f"{name} = {'[' * 3000}"
    elif act < 0.95:
        lines.insert(
            at, draw.choice(("[[x]]", "[limits.flash]", "a.b.c = 1", lines[at].strip("# "), '"" = 1', "[model]"))
        )
    else:
        lines[at] = f"{name}.x = 1"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _inner(name: str) -> str:
    return next((form for ending, form in _ENDINGS.items() if name.endswith(ending)), "bytes")


def _zip(draw: random.Random, data: bytes) -> bytes:
    """One entry damaged by its own form and its checksum made right; or entries renamed, doubled, left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    place, act = draw.randrange(len(entries)), draw.random()
    entry, content = entries[place]
    if act < 0.8:
        entries[place] = entry, mutate(draw, content, _inner(entry.filename))
    elif act < 0.87:
        entry.filename = draw.choice(("../x", "/x", "a\nb", "x" * 300, entries[0][0].filename, "\u2603.png", ".x"))
    elif act < 0.94:
        del entries[place]
    else:
        entries.insert(place, draw.choice(entries))
    stream = io.BytesIO()
    pack = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(stream, "w", pack) as archive:
        for entry, content in entries:
            archive.writestr(entry.filename, content)
    made = stream.getvalue()
    return _flipped(draw, made) if draw.random() < 0.05 else made


def _npy(draw: random.Random, data: bytes) -> bytes:
    """The header of an array: its type, its shape, the order of its elements."""
    (length,) = struct.unpack("<H", data[8:10])
    head, body = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if draw.random() < 0.3:
        return data[: 10 + length] + raw(draw, body)
    if draw.random() < 0.5:
        types = ("|O", "<U100", "<f8", "|u1", ">i8", "<c16", "|V8", "|S0", "<U0", "x", "[('a', '<i4')]", "<m8", "<i99")
        head = re.sub(r"'descr': [^,]*,", f"'descr': '{draw.choice(types)}',", head)
    else:
        shapes = (
            "()",
            "(0,)",
            "(-1,)",
            "(10**9,)",
            "(1000000000000,)",
            "(3, 0)",
            "(2, 2, 2)",
            "None",
            "(1,) * 70",
            "(1,",
            "[1]",
        )
        head = re.sub(r"'shape': \([^)]*\)", f"'shape': {draw.choice(shapes)}", head)
    head = head.rstrip("\n ") + "\n"
    return data[:8] + struct.pack("<H", len(head)) + head.encode("latin1") + body


def _safetensors(draw: random.Random, data: bytes) -> bytes:
    """The header, with its length made right, or the tensors."""
    size = int.from_bytes(data[:8], "little")
    if draw.random() < 0.2:
        return data[: 8 + size] + raw(draw, data[8 + size :])
    head = json.loads(data[8 : 8 + size])
    if draw.random() < 0.6 and "__metadata__" in head:
        head["__metadata__"] = in_value(draw, head["__metadata__"])
    else:
        head = in_value(draw, head)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _packed(
    pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], inner: str
) -> Callable[[random.Random, bytes], bytes]:
    """What damages the content of a compressed file by its form, and packs it again."""
    return lambda draw, data: pack(mutate(draw, unpack(data), inner))


def _tar(draw: random.Random, data: bytes) -> bytes:
    """One header with its checksum made right, or one member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    member = draw.choice(members)
    if member.size and draw.random() < 0.4:
        start, end = member.offset_data, member.offset_data + member.size
        content = mutate(draw, data[start:end], _inner(member.name))[: member.size].ljust(member.size, b"\0")
        return data[:start] + content + data[end:]
    head = bytearray(data[member.offset : member.offset + 512])
    at, width = draw.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    value = draw.choice(
        (
            b"\xff" * 12,
            b"\x80" + b"\x7f" * 11,
            b"77777777777",
            b"0",
            b"-1",
            b"../x",
            b"L",
            b"x",
            b"g",
            b"S",
            b"\n",
            b"2",
        )
    )
    head[at : at + width] = value[:width].ljust(width, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[: member.offset] + bytes(head) + data[member.offset + 512 :]


def _png(draw: random.Random, data: bytes) -> bytes:
    """One chunk, with its length and checksum made right: the size of the image among others."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = draw.randrange(len(chunks))
    name, body = chunks[place]
    if draw.random() < 0.4:
        name, body = chunks[place := 0]
        sides = struct.pack(">II", draw.choice(SIZES) % 2**32, draw.choice((1, 8, 50_000, 2**31 - 1, 2**32 - 1)))
        body = draw.choice((sides + body[8:], body[:8] + draw.randbytes(5), raw(draw, body)))
    elif name == b"IDAT" and draw.random() < 0.5:
        body = zlib.compress(raw(draw, zlib.decompress(body)) + bytes(draw.choice((0, 10**7))))
    else:
        body = raw(draw, body)
    chunks[place] = name, body
    if draw.random() < 0.2:
        text = draw.choice((b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"acTL", b"PLTE", b"tRNS", b"fcTL"))
        chunks.insert(1, (text, draw.choice((b"a\0", b"a\0\0", b"")) + zlib.compress(bytes(draw.choice((1, 10**7))))))
    made = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:8] + b"".join(made)


def _h5(draw: random.Random, data: bytes) -> bytes:
    """An attribute or a data set of an HDF5 file, by its library."""
    import h5py
    import numpy as np

    stream = io.BytesIO(data)
    with h5py.File(stream, "r+") as file:
        places: list[Any] = [file]
        file.visititems(lambda _, place: places.append(place))
        place = draw.choice(places if draw.random() < 0.5 else [place for place in places if place.attrs] or places)
        names = list(place.attrs)
        if names and draw.random() < 0.8:
            name = draw.choice(names)
            value = place.attrs[name]
            if isinstance(value, str | bytes):
                place.attrs[name] = json.dumps(in_value(draw, json.loads(value)))
            else:
                place.attrs[name] = draw.choice(
                    [np.zeros(0), value[:-1], value[::-1], 3, "x", np.array([b"", b"\xff"]), value.repeat(2)]
                )
        elif isinstance(place, h5py.Dataset):
            name, value = place.name, place[()]
            del file[name]
            kinds = ["f8", "f2", "i4", "S3", "c8", "?"]
            made = draw.choice(
                [value[..., :-1], value.T, value[None], value.astype(draw.choice(kinds)), value * np.nan, value * 1e38]
            )
            if draw.random() < 0.1:
                file.create_dataset(name, (1 << 40,), "f4", chunks=(1024,))
            elif draw.random() < 0.2:
                file[name] = draw.choice(
                    [h5py.SoftLink("/nowhere"), h5py.SoftLink(name), h5py.ExternalLink("x.h5", "/")]
                )
            else:
                file[name] = made
        elif place is not file:
            del file[place.name]
    return stream.getvalue()


def _pickle(draw: random.Random, data: bytes) -> bytes:
    """Operands of single instructions; or other instructions."""
    import pickletools

    try:
        places = [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:  # several pickles, one after another
        places = list(range(min(len(data), 2000)))
    at = draw.choice(places)
    kinds = b"().0123]}{NQPRXabcdeghijlopqrstu" + bytes([*range(0x80, 0x83), *range(0x85, 0x99)])
    act = draw.random()
    if act < 0.4:
        return data[:at] + bytes([draw.choice(kinds)]) + data[at + 1 :]
    if act < 0.7:
        size = draw.choice((1, 4, 8))
        return data[: at + 1] + draw.choice((b"\xff", b"\x7f", b"\x00", b"\x01")) * size + data[at + 1 + size :]
    other = draw.choice(places)
    return data[:at] + data[other : other + draw.randint(1, 60)] + data[at:]


def _checkpoint(draw: random.Random, data: bytes) -> bytes:
    """The values in a PyTorch file, read and written by PyTorch; lists and tables of tensors and numbers."""
    import torch

    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    stream = io.BytesIO()
    torch.save(_in_tensors(draw, content), stream)
    return stream.getvalue()


def _in_tensors(draw: random.Random, value: Any) -> Any:
    import torch

    if isinstance(value, dict) and value:
        key = draw.choice(list(value))
        act = draw.random()
        if act < 0.1:
            del value[key]
        elif act < 0.15:
            value[draw.choice((3, "", "extra", (1, 2), None))] = value.pop(key)
        else:
            value[key] = _in_tensors(draw, value[key])
        return value
    if isinstance(value, torch.Tensor):
        ways: tuple[Callable[[], Any], ...] = (
            *(lambda: value * float("nan"), lambda: value * 1e38, lambda: value[None], lambda: value.flatten()[:-1]),
            *(
                lambda: value.double() * 1e300,
                lambda: value.bool(),
                lambda: value.to(torch.complex64),
                lambda: value.half(),
            ),
            *(lambda: value.flatten()[:1].expand(1 << 40), lambda: value.to_sparse(), lambda: None, lambda: 3),
            *(
                lambda: torch.zeros(0),
                lambda: value.to(torch.float8_e5m2),
                lambda: value.to(torch.bfloat16),
                lambda: torch.empty(5, device="meta"),
            ),
        )
        return draw.choice(ways)()
    return in_value(draw, value)


def _mat(draw: random.Random, data: bytes) -> bytes:
    """A MATLAB file's compressed elements, opened, damaged and packed again."""
    at, parts = 128, [data[:128]]
    while at + 8 <= len(data):
        kind, size = struct.unpack("<II", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == 15 and draw.random() < 0.7:
            body = zlib.compress(raw(draw, zlib.decompress(body)))
        parts.append(struct.pack("<II", kind, len(body)) + body)
        at += 8 + size
    return b"".join(parts)


FORMS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "json": _json,
    "jsonl": _json_lines,
    "csv": _csv,
    "toml": _toml,
    "zip": _zip,
    "npy": _npy,
    "safetensors": _safetensors,
    "tar": _tar,
    "tar.gz": _packed(gzip.compress, gzip.decompress, "tar"),
    "tar.xz": _packed(lambda data: lzma.compress(data, preset=0), lzma.decompress, "tar"),
    "tar.bz2": _packed(bz2.compress, bz2.decompress, "tar"),
    "gz": _packed(gzip.compress, gzip.decompress, "bytes"),
    "png": _png,
    "h5": _h5,
    "pickle": _pickle,
    "checkpoint": _checkpoint,
    "mat": _mat,
}
"""What damages a file from the inside, by form."""
