"""Reading and writing files with errors a user understands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from caplet.errors import DataError
from caplet.files import why


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False when it is missing.

    Raises:
        DataError: it cannot be looked at (no permission).
    """
    return _probe(path, Path.is_dir)


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False when it is missing.

    Raises:
        DataError: it cannot be looked at (no permission).
    """
    return _probe(path, Path.is_file)


def _probe(path: Path, test: Callable[[Path], bool]) -> bool:
    try:
        return test(path)
    except (OSError, ValueError) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot look at {path}: {reason}; check the path and its permissions") from error


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """(folders, files) in ``path``, by name, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read folder {path}: {why(error)}; check the path and its permissions") from error
    return sorted(folders), sorted(files)


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}; check the path and its permissions") from error


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content, read in pieces.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.new(algorithm, usedforsecurity=False)
            while piece := stream.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}; check the path and its permissions") from error
