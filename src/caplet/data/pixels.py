"""Where pixels lie: in memory, or in a file of the cache folder that is mapped into memory."""

import logging
import os
import re
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from caplet.errors import DataError

MAPPED = 1 << 29
"""Bytes of pixels that lie in memory at most; more lie in a file that is mapped into memory."""
_AT_ONCE = 4096
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The cache folder (not created): ``$CAPLET_CACHE``, or the user cache folder of the system."""
    chosen = os.environ.get("CAPLET_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("caplet", appauthor=False)


def pixel_array(shape: tuple[int, ...]) -> np.ndarray:
    """A new uint8 array; from :data:`MAPPED` bytes on, in a file without a name in the cache folder.

    The system keeps of such a file in memory what there is room for. It is gone when the array is. Where the disk has
    no room for it, the array lies in memory.

    Raises:
        DataError: neither the disk nor the memory that is free has room for it.
    """
    size = prod(shape)
    if size < MAPPED:
        return np.empty(shape, dtype=np.uint8)
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        if size > free_memory():
            raise DataError(
                f"{size / 1e9:,.1f} GB of pixels {shape} are more than memory or {cache_dir()} has room for"
                f" ({error.strerror}): give fewer or smaller images (--limit, --size)"
            ) from error
        _log.warning("%d MB of pixels lie in memory, for %s has no room: %s", size >> 20, cache_dir(), error.strerror)
        return np.empty(shape, dtype=np.uint8)


def free_memory() -> int:
    """Bytes of the machine's memory that processes can still take; what the system does not say is 8 GiB."""
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) << 10 if found else 8 << 30


def taken(images: Tensor, index: Tensor) -> Tensor:
    """``images[index]``, where it is large a part at a time."""
    if len(index) * images[:1].numel() < MAPPED:
        return images[index]
    result = torch.from_numpy(pixel_array((len(index), *images.shape[1:])))
    for start in range(0, len(index), _AT_ONCE):
        result[start : start + _AT_ONCE] = images[index[start : start + _AT_ONCE]]
    return result
