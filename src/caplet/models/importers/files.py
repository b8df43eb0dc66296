"""Opening files with errors a user understands."""

from __future__ import annotations

from pathlib import Path

from caplet.errors import ModelError

HEAD = 16


def read_head(path: Path) -> bytes:
    """The first 16 bytes of a file.

    Raises:
        ModelError: missing, a folder, unreadable, or empty.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path}: a folder, but a checkpoint is one file; give the path of the file")
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path of the checkpoint") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(f"{path}: cannot be read: {reason.lower()}; check the path and its permissions") from None
    if not head:
        raise ModelError(f"{path}: the file is empty (0 bytes); was its download or copy interrupted?")
    return head
