"""Fetching a published dataset through torchvision, so that a broken download never looks like data."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from caplet.data.cache import cache_dir
from caplet.data.source import Request
from caplet.errors import DataError

_TIMEOUT_SECONDS = 30.0
_PACKED = (".gz", ".zip", ".xz")


def data_root(request: Request) -> Path:
    """Where a dataset's files are looked for: the root asked for, else ``datasets`` in the cache folder."""
    return request.root if request.root is not None else cache_dir() / "datasets"


def fetch(title: str, layout: str, request: Request, get: Callable[[str], object]) -> None:
    """Download a dataset into :func:`data_root`: first beside it, then moved into place.

    Args:
        title: the dataset's name in messages.
        layout: the files that belong under the root, for messages.
        request: says where, and whether downloading is allowed.
        get: fetches and checks everything in the folder it is given (a torchvision dataset with ``download=True``).

    Raises:
        DataError: downloading is not allowed or failed; the message says where the files should be and what to do.
    """
    root = data_root(request)
    todo = f"put {layout} there, or give the folder that has them as root (--root)"
    if not request.download:
        raise DataError(f"{title} not found under {root} (downloading is off): {todo}")
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=".download-"))
        with contextlib.redirect_stdout(sys.stderr), _timeout():
            get(str(temporary))
        for file in sorted(path for path in temporary.rglob("*") if path.is_file() and path.suffix not in _PACKED):
            target = root / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{title} not found under {root} and not downloaded ({reason}): {todo}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:  # leave no empty folders behind a failed download
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
