"""Keeping decoded images between runs: decoding 60,000 JPEG files takes seconds, reading the arrays back does not.

The folder is ``$CAPLET_CACHE`` if set, else the user's cache folder. Whatever is in it may be deleted at any time; an
entry that is damaged (zip checksum) or of another form is ignored and written anew.
"""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import platformdirs

from caplet.files import why, write_atomic

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The cache folder (not created): ``$CAPLET_CACHE``, or the user cache folder of the system."""
    chosen = os.environ.get("CAPLET_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("caplet", appauthor=False)


def _entry(key: str) -> Path:
    return cache_dir() / "decoded" / f"{key}.npz"


def load_arrays(key: str, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The arrays stored under ``key``, or None if there is no sound entry with exactly these names."""
    try:
        with np.load(_entry(key), allow_pickle=False) as stored:
            if sorted(stored.files) != sorted(names):
                return None
            return {name: stored[name] for name in names}  # reading to the end checks each array's CRC-32
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def store_arrays(key: str, arrays: dict[str, np.ndarray]) -> None:
    """Store arrays under ``key``, atomically. A cache that cannot be written costs only time: logged, not raised."""
    path = _entry(key)
    try:
        write_atomic(path, lambda stream: np.savez(stream, allow_pickle=False, **arrays))
    except OSError as error:
        _log.warning("decoded images are not kept for the next run: cannot write %s: %s", path, why(error))
