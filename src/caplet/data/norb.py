"""smallNORB: pairs of gray images, left and right, of toys of five kinds; its files of binary matrices."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from caplet.data.files import check_labels, data_root, is_folder, list_folder
from caplet.data.idx import unpacked
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError

NAME = "smallnorb"
CLASSES = ("animal", "human", "airplane", "truck", "car")
LAYOUT = "smallnorb-...-training-dat.mat, ...-training-cat.mat, ...-testing-dat.mat and ...-testing-cat.mat (or .gz)"
_FILE = re.compile(r"smallnorb-.*-(train|test)ing-(dat|cat)\.mat(\.gz)?", re.I)
_KINDS: dict[int, "np.dtype[Any]"] = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}


def read_matrix(path: Path) -> np.ndarray:
    """A binary matrix of bytes or of 32-bit integers: its magic number, its axes, their sizes, the values.

    Raises:
        DataError: the file is something else, or is shorter or longer than its header says.
    """
    with unpacked(path) as stream:
        kind, axes = np.frombuffer(stream.read(8).ljust(8, b"\0"), "<u4").tolist()
        if kind not in _KINDS or not 1 <= axes <= 4:
            raise DataError(f"{path}: not a matrix of smallNORB (it starts with {kind:08x}): fetch it again")
        sizes = np.frombuffer(stream.read(4 * max(axes, 3)).ljust(16, b"\0"), "<u4").tolist()[:axes]
        wanted = int(np.prod(sizes, dtype=object)) * _KINDS[kind].itemsize
        values = stream.read(min(wanted, 1 << 31) + 1)
    if len(values) != wanted:
        raise DataError(
            f"{path}: {len(values):,} bytes or more; its header {sizes} asks for {wanted:,}: fetch it again"
        )
    return np.frombuffer(values, _KINDS[kind]).reshape(sizes)


def find_norb(folder: Path) -> dict[tuple[str, str], Path]:
    """smallNORB's files in a folder, by split and kind, where all four are there."""
    names = list_folder(folder)[1] if is_folder(folder) else []
    matches = [match for name in names if (match := _FILE.fullmatch(name))]
    found = {(match[1].lower(), match[2].lower()): folder / match[0] for match in matches}
    return found if len(found) == 4 else {}


def load_norb(paths: dict[tuple[str, str], Path], request: DataRequest) -> Source:
    """Read the four files: two channels, the left and the right picture. Raises DataError."""
    sets = {}
    for split in ("train", "test"):
        images, labels = (read_matrix(paths[split, kind]) for kind in ("dat", "cat"))
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != 2 or labels.ndim != 1:
            found = f"{images.dtype} {images.shape} and {labels.shape}"
            raise DataError(f"{paths[split, 'dat']}: images must be bytes (N, 2, H, W), labels (N,), found {found}")
        check_labels(paths[split, "cat"], labels, len(images), range(len(CLASSES)), paths[split, "dat"])
        sets[split] = ImageSet.of_arrays(images.copy(), labels, CLASSES, f"{NAME}/{split}")
    where = paths["train", "dat"].parent
    return Source(sets["train"], sets["test"], "binary matrices", where, note="smallNORB: left and right are channels")


def load_smallnorb(request: DataRequest) -> Source:
    """Read smallNORB at ``request.root`` or in its folder ``smallnorb``; nothing is downloaded. Raises DataError."""
    root = data_root(request)
    for place in (root, root / "smallnorb", root / "SmallNORB", root / "raw"):
        if paths := find_norb(place):
            return load_norb(paths, request)
    raise DataError(f"no smallNORB in {root}: expected {LAYOUT}; fetch them, and give --root")
