"""SVHN's cropped digits from their MATLAB files."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from caplet.data.files import check_labels, check_md5, find_or_fetch, is_file, read_bytes
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError

NAME = "svhn"
CLASSES = tuple("0123456789")
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
LAYOUT = " and ".join(FILES.values())
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""How values are stored, by the number in a MATLAB 5 file; 14 is a variable, 15 one that is compressed."""
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""What a variable's values are."""
_PACKED = 64
_PUBLISHED_COUNTS = {"train": 73_257, "test": 26_032}


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One ``.mat`` file in the cropped-digits format: ``X`` (32, 32, 3, N) and ``y`` (N, 1), where 10 means digit 0.

    Returns:
        (images, labels): uint8 (N, 3, 32, 32), int64 (N,) in 0..9.

    Raises:
        DataError: the file is damaged, or ``X`` or ``y`` is missing, of another shape or type, or out of range.
    """
    data = read_bytes(path)
    try:
        order = {b"IM": "<", b"MI": ">"}[data[126:128]]
        found = dict(_variables(memoryview(data)[128:], order))
    except (LookupError, ValueError, TypeError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable .mat file ({len(data)} bytes; {reason}): fetch it again") from error
    if "X" not in found or "y" not in found:
        raise DataError(f"{path}: variables X and y expected, found {sorted(found) or 'none of them'}")
    pixels, digits = found["X"], found["y"].reshape(-1)
    if pixels.ndim == 3:  # MATLAB drops a last dimension of 1
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or not pixels.shape[-1]:
        raise DataError(f"{path}: X must be uint8 (32, 32, 3, N), found {pixels.dtype} {pixels.shape}: fetch it again")
    check_labels(path, digits, pixels.shape[3], range(1, 11))
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), digits.astype(np.int64) % 10


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The number of its type and the bytes of each element, one after another. Raises ValueError."""
    while data:
        head = np.frombuffer(data[:8], f"{order}u4")
        kind, size = (int(value) for value in (*head, 0, 0)[:2])
        start, end = 8, 8 + size + (-size % 8 if kind != 15 else 0)
        if kind >> 16:  # a small one: its bytes are in the place of its size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if len(data) < start + size or size > end:
            raise ValueError("it is cut off, or not in MATLAB 5 form")
        yield kind, data[start : start + size]
        data = data[end:]


def _variables(data: memoryview, order: str) -> Iterator[tuple[str, np.ndarray]]:
    """X and y, of their own types. Raises ValueError, KeyError, TypeError, zlib.error."""
    most = min(1 << 31, max(1 << 28, _PACKED * len(data)))
    for kind, content in _elements(data, order):
        if kind == 15:
            unpacking = zlib.decompressobj()
            content = memoryview(unpacking.decompress(content, most))
            if not unpacking.eof:
                raise ValueError("a variable is cut off, or unpacks to far more than its size")
            [(kind, content), *_] = _elements(content, order)
        if kind != 14:
            continue
        (_, flags), (_, sizes), (_, name), *values = _elements(content, order)
        if bytes(name) in (b"X", b"y"):
            shape = np.frombuffer(sizes, f"{order}i4").tolist()
            stored = np.frombuffer(values[0][1], f"{order}{_TYPES[values[0][0]]}")
            whole = _CLASSES[int(np.frombuffer(flags[:4], f"{order}u4")[0]) & 0xFF]
            yield bytes(name).decode(), stored.astype(whole).reshape(shape, order="F")


def _read_split(path: Path, split: str) -> ImageSet:
    images, labels = read_mat(path)
    if len(images) == _PUBLISHED_COUNTS[split]:
        from torchvision.datasets import SVHN

        check_md5(path, SVHN.split_list[split][2])
    return ImageSet.of_arrays(images, labels, CLASSES, f"{NAME}/{split}")


def find_mats(root: Path) -> dict[str, Path] | None:
    """The two files in a folder, None where one is missing."""
    paths = {split: root / file for split, file in FILES.items()}
    return paths if all(map(is_file, paths.values())) else None


def load_svhn(request: DataRequest) -> Source:
    """Read SVHN's cropped digits, downloaded by torchvision if the files are missing.

    A file with the published number of images must have the published MD5. One with another number is read as it is,
    and the source's note says that it is not the published file.

    Raises:
        DataError: files are missing and not to be had, or damaged.
    """
    paths = find_or_fetch(NAME, LAYOUT, request, find_mats, "SVHN", *({"split": split} for split in FILES))
    return load_mats(paths, request)


def load_mats(paths: dict[str, Path], request: DataRequest) -> Source:
    """Read the two files. Raises DataError."""
    train, test = (_read_split(path, split) for split, path in paths.items())
    published = (len(train), len(test)) == (_PUBLISHED_COUNTS["train"], _PUBLISHED_COUNTS["test"])
    note = "SVHN (cropped digits)" if published else "files in SVHN's format, not the published ones"
    return Source(train, test, "MATLAB files", paths["train"].parent, note=note)
