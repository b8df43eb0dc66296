"""What a path holds: class folders of images, an archive, or files of another form, known by their names."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from caplet.data import arrays, cifar, idx, norb, svhn, table
from caplet.data.files import is_file, is_folder, list_folder
from caplet.data.folder import (
    LAYOUT,
    MAX_TOTAL_BYTES,
    find_layout,
    is_archive,
    members,
    part_of,
    read_tree,
    scan_folder,
    to_source,
)
from caplet.data.images import endings
from caplet.data.source import DataRequest, Source, joined
from caplet.errors import DataError
from caplet.files import access

FILES = (*arrays.ENDINGS, *table.ENDINGS)
"""Endings of the single files that are read."""
_PACKED = 64


def _ending(endings: tuple[str, ...], folder: Path) -> list[Path]:
    return [folder / name for name in list_folder(folder)[1] if name.lower().endswith(endings)]


_FINDERS: tuple[tuple[Callable[[Path], Any], Callable[[Any, DataRequest], Source]], ...] = (
    (idx.find_idx, idx.load_idx_folder),
    (partial(cifar.find_batches, cifar.CIFAR10), partial(cifar.load_batches, cifar.CIFAR10)),
    (partial(cifar.find_batches, cifar.CIFAR100), partial(cifar.load_batches, cifar.CIFAR100)),
    (norb.find_norb, norb.load_norb),
    (svhn.find_mats, svhn.load_mats),
    (partial(_ending, arrays.ENDINGS), arrays.load_arrays),
    (partial(_ending, table.ENDINGS), table.load_tables),
)
"""What finds the files of a form in a folder, and what reads them, in this order."""


def is_data_file(path: Path) -> bool:
    """Whether ``path`` is a file named like one that is read by itself."""
    return path.name.lower().endswith(FILES) and is_file(path)


def load_folder(request: DataRequest) -> Source:
    """Read ``request.root``: a folder or an archive of images, or of files of another form, or one such file.

    Raises:
        DataError: no root was given, it holds nothing that is read, or as the reader of its form.
    """
    root = request.root
    if root is None:
        raise DataError(f"dataset 'folder' needs the path of your images: give root= (--root) with {LAYOUT}")
    if is_data_file(root):
        return (table.load_tables if root.name.lower().endswith(table.ENDINGS) else arrays.load_arrays)([root], request)
    if is_archive(root):
        with members(root) as entries:
            images = any(Path(parts[-1]).suffix.lower() in endings() for parts, *_ in entries)
        return _images(root, request) if images else _unpacked(root, request)
    if not is_folder(root):
        raise DataError(f"no folder {root}: expected one with {LAYOUT}")
    if paths := idx.find_idx(root):
        return idx.load_idx_folder(paths, request)
    return _images(root, request) if any(f.images for f in scan_folder(root).below()) else _files(root, request)


def _images(root: Path, request: DataRequest) -> Source:
    decoded, place = read_tree(root, request), root.resolve()
    others = [name for name in list_folder(place.parent)[0] if part_of(name) in ("calibration", "test")]
    beside = bool(others) and part_of(place.name) == "train"
    note = f"{others[0]} beside the folder is not read: give the folder of both to use it" if beside else ""
    return to_source(
        decoded, "folder", source="image archive" if is_file(root) else "image folder", root=root, note=note
    )


def _files(root: Path, request: DataRequest) -> Source:
    """The files in a folder, or in one of the folders in it, of the only form that is found."""
    found: dict[str, tuple[Path, partial[Source]]] = {}
    for place in [folder.where for folder in scan_folder(root, 3).below()]:
        for find, load in _FINDERS:
            if paths := find(place):
                found.setdefault(str(paths), (place, partial(load, paths, request)))
                break
    if not found:
        find_layout(scan_folder(root))  # says what is missing
        raise DataError(f"{root}: no images found: expected {LAYOUT}; or {', '.join(FILES)}, IDX or CIFAR files")
    [(place, read), *more] = found.values()
    if more:
        names = ", ".join(str(where.relative_to(root)) for where, _ in found.values())
        raise DataError(f"{root}: several datasets, in {names}: give the folder of one")
    source = read()
    return replace(source, note=joined(f"read from {place.relative_to(root)}" if place != root else "", source.note))


def _unpacked(root: Path, request: DataRequest) -> Source:
    """The files in an archive without images, by way of a temporary folder.

    Raises:
        DataError: they have more than 256 MiB and 64 times the archive's bytes, or more than 4 GiB.
    """
    most = min(MAX_TOTAL_BYTES, max(1 << 28, _PACKED * root.stat().st_size))
    with tempfile.TemporaryDirectory(prefix="caplet-") as name:
        place, left = Path(name).resolve(), most
        with members(root) as entries:
            for parts, size, opened in entries:
                left -= size
                if left < 0:
                    raise DataError(f"{root}: it unpacks to more than {most:,} bytes: unpack it, give the folder")
                with access("unpack", root, kind=DataError):
                    target = place.joinpath(*parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened() as stream, target.open("wb") as out:
                        shutil.copyfileobj(stream, out)
        try:
            source = _files(place, request)
        except DataError as error:
            raise DataError(str(error).replace(str(place), str(root))) from error
    return replace(source, root=root)
