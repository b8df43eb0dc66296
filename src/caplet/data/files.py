"""Files of datasets: read with errors a user understands, fetched whole, and a cache of decoded images.

Decoding 60,000 JPEG files takes seconds, reading the arrays back does not. The cache folder is ``$CAPLET_CACHE`` if
set, else the user's. Whatever is in it may be deleted at any time; an entry that is damaged (zip checksum) or of
another form is ignored and written anew.
"""

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from caplet import files
from caplet.data.imageset import cache_dir
from caplet.data.source import DataRequest
from caplet.errors import ArtefactError, DataError
from caplet.files import access, write_atomic

Found = TypeVar("Found")
_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 30.0
_PACKED = (".gz", ".zip", ".xz")
_LEFT_BY_SYSTEMS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini", "lost+found"}
_TODO = "check the path and its permissions"


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False when it is missing. Raises DataError when it cannot be looked at."""
    with access("look at", path, _TODO, DataError):
        return path.is_dir()


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False when it is missing. Raises DataError when it cannot be looked at."""
    with access("look at", path, _TODO, DataError):
        return path.is_file()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system leaves among a user's files."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """(folders, files) in ``path``, by name, sorted, without those that :func:`is_hidden`. Raises DataError."""
    inside: tuple[list[str], list[str]] = [], []
    with access("read folder", path, _TODO, DataError), os.scandir(path) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                inside[0 if entry.is_dir() else 1].append(entry.name)
    return sorted(inside[0]), sorted(inside[1])


def read_bytes(path: Path) -> bytes:
    """A whole file. Raises DataError when it cannot be read."""
    return files.read_bytes(path, todo=_TODO, kind=DataError)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's content in hexadecimal digits. Raises DataError when it cannot be read."""
    return files.file_digest(path, algorithm, _TODO, DataError)


def _entry(key: str) -> Path:
    return cache_dir() / "decoded" / f"{key}.npz"


def load_arrays(key: str, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The arrays stored under ``key``, or None if there is no sound entry with exactly these names."""
    try:
        stored = files.read_arrays(_entry(key))
    except ArtefactError:
        return None
    return stored if sorted(stored) == sorted(names) else None


def store_arrays(key: str, arrays: dict[str, np.ndarray]) -> None:
    """Store arrays under ``key``, atomically. A cache that cannot be written costs only time: logged, not raised."""
    try:
        write_atomic(_entry(key), lambda stream: np.savez(stream, allow_pickle=False, **arrays))
    except ArtefactError as error:
        _log.warning("decoded images are not stored for the next run: %s", error)


def data_root(request: DataRequest) -> Path:
    """Where a dataset's files are looked for: the root asked for, else ``datasets`` in the cache folder."""
    return request.root if request.root is not None else cache_dir() / "datasets"


def find_or_fetch(
    title: str, layout: str, request: DataRequest, find: Callable[[Path], Found | None], kind: str, *options: Any
) -> Found:
    """What ``find`` finds under :func:`data_root`; where it finds nothing, the dataset is downloaded first.

    Args:
        title: the dataset's name in messages.
        layout: the files that belong under the root, for messages.
        request: says where, and whether downloading is allowed.
        kind, options: torchvision's class, which fetches and checks everything when it is made with each of these.

    Raises:
        DataError: downloading is not allowed or failed; the message says where the files should be and what to do.
    """
    root = data_root(request)
    if (found := find(root)) is not None:
        return found
    todo = f"put {layout} there, or give the folder that has them as root (--root)"
    if not request.download:
        raise DataError(f"{title} not found under {root} (downloading is off): {todo}")
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    waiting = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(_TIMEOUT_SECONDS)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            with contextlib.redirect_stdout(sys.stderr):
                import torchvision.datasets

                for chosen in options:
                    getattr(torchvision.datasets, kind)(temporary, download=True, **chosen)
            for file in sorted(Path(temporary).rglob("*")):
                if file.is_file() and file.suffix not in _PACKED:
                    target = root / file.relative_to(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{title} not found under {root} and not downloaded ({reason}): {todo}") from error
    finally:
        socket.setdefaulttimeout(waiting)
        for folder in made:  # leave no empty folders behind a failed download
            with contextlib.suppress(OSError):
                folder.rmdir()
    if (found := find(root)) is None:
        raise DataError(f"{title}: the download did not bring {layout}: fetch the files by hand")
    return found


def check_md5(path: Path, published: str | None) -> None:
    """Raise DataError unless the file is the published one, by its MD5."""
    found = file_hash(path, "md5")
    if found != published:
        raise DataError(
            f"{path}: MD5 {found} is not that of the published file ({published}): it is damaged, fetch it again"
        )


def check_labels(path: Path, labels: np.ndarray, count: int, allowed: range, images: Path | None = None) -> None:
    """Raise DataError unless the file ``path`` has ``count`` labels, at least one, and each of them is in ``allowed``.

    ``images`` is the file of the images, where it is another one.
    """
    if len(labels) != count or not count:
        raise DataError(f"{images or path}: {count} images, but {len(labels)} labels in {path.name}: fetch it again")
    outside = np.flatnonzero(~np.isin(labels, allowed))
    if len(outside):
        raise DataError(
            f"{path}: label {labels[outside[0]]} of image {outside[0]} is out of range {allowed[0]}..{allowed[-1]}:"
            " fetch it again"
        )
