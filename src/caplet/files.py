"""Files: read and written with errors that say which file and why, whole or not at all, and their digests."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from typing_extensions import Buffer

from caplet.errors import ArtefactError, CapletError, FolderInUse

if TYPE_CHECKING:
    import numpy as np

Kind = type[CapletError]
LOCK = ".lock"
"""Of a folder: the file that :func:`locked` locks."""
_UNPACKED = 1 << 28
_DEPTH = 100
_DEEP = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{_DEPTH}}}""")
_PAGE = "a web page, not the file itself: download the file that the page is about"
_POINTER = "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
_STAND_INS = {b"version https://git-lfs": _POINTER, b"<!doctype html": _PAGE, b"<html": _PAGE}


def why(error: OSError) -> str:
    """The reason of an OSError without errno and path, such as ``permission denied``; for a full disk what to do."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += " (nothing of it was written: make room, then start again, with --resume where the command has it)"
    return reason


@contextlib.contextmanager
def access(doing: str, path: str | Path, todo: str = "", kind: Kind = ArtefactError) -> Iterator[None]:
    """An OSError in the ``with`` block becomes an error of ``kind``: ``cannot DOING PATH: reason; TODO``.

    >>> with access("read the plan", "absent.json"):
    ...     open("absent.json")
    Traceback (most recent call last):
    caplet.errors.ArtefactError: cannot read the plan absent.json: no such file or directory
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot {doing} {path}: {why(error)}{todo and f'; {todo}'}") from error


def check_regular(
    path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError, most: int = 1 << 50
) -> None:
    """Raise ``kind`` unless ``path`` is a regular file (no pipe, device or folder) of at most ``most`` bytes.

    A web page or a Git LFS pointer that was saved in place of the file is refused, too.
    """
    with access(f"read {what}".strip(), path, todo, kind):
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is a pipe or a device, no regular file")
        if found.st_size > most:
            raise OSError(f"it has {found.st_size:,} bytes, at most {most:,} are read")
        with open(path, "rb") as stream:
            start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, what_it_is in _STAND_INS.items():
        if start.startswith(mark):
            raise kind(f"{path} is {what_it_is}")


def read_bytes(
    path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError, most: int = 1 << 31
) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Args:
        what: what the file is, with its article, for messages.
        todo: what to do when it cannot be read, for messages.
        kind: the class of the error.

    Raises:
        ArtefactError: or another ``kind``: it cannot be read, is no regular file, is larger, or something else
            was saved in its place.
    """
    check_regular(path, what, todo, kind, most)
    with access(f"read {what}".strip(), path, todo, kind):
        return Path(path).read_bytes()


def read_text(path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError) -> str:
    """The text of a file in UTF-8, of at most 64 MiB, without its byte-order mark; see :func:`read_bytes`."""
    try:
        return read_bytes(path, what, todo, kind, 1 << 26).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is not a text file in UTF-8 ({error}){todo and f'; {todo}'}") from error


def read_json(path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError) -> Any:
    """What a JSON file holds; see :func:`read_text`. Also raises ``kind`` where the content is not JSON."""
    return _parsed(json.loads, "valid JSON", path, what, todo, kind)


def read_arrays(
    path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError, packed: int = 1
) -> dict[str, "np.ndarray"]:
    """The numpy arrays in an ``.npz`` file by name.

    Raises:
        ArtefactError: or another ``kind``: it cannot be read, has more than 8 GiB, is damaged, or unpacks to more than
            256 MiB and ``packed`` times its size.
    """
    check_regular(path, what, todo, kind, 1 << 33)
    doing = f"read {what}".strip()
    with access(doing, path, todo, kind), _sound(path, ".npz", todo, kind), zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > max(_UNPACKED, packed * os.path.getsize(path)):
            raise ValueError("it unpacks to far more than its size")
        # reading to the end checks each CRC-32
        return {entry.filename.removesuffix(".npy"): _array(archive.read(entry)) for entry in archive.infolist()}


def read_array(path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError) -> "np.ndarray":
    """The array in an ``.npy`` file of at most 2 GiB; see :func:`read_bytes`. Raises ``kind`` where it is damaged."""
    data = read_bytes(path, what, todo, kind)
    with _sound(path, ".npy", todo, kind):
        return _array(data)


@contextlib.contextmanager
def _sound(path: str | Path, form: str, todo: str, kind: Kind) -> Iterator[None]:
    """Whatever is raised inside becomes one error of ``kind``."""
    try:
        yield
    except (CapletError, OSError):
        raise
    except Exception as error:  # what zipfile, zlib and numpy raise for damaged files has no common base
        reason = f"{type(error).__name__}: {error}"[:200]
        raise kind(f"{path} is not a sound {form} file ({reason}){todo and f'; {todo}'}") from error


def _array(data: bytes) -> "np.ndarray":
    """The array in the bytes of an ``.npy`` file; pickled objects are refused, and no memory is taken on its word."""
    import numpy as np

    stream = io.BytesIO(data)
    if not data.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it holds something else than arrays")
    first = np.lib.format.read_magic(stream) == (1, 0)
    shape, columns_first, kind = getattr(np.lib.format, f"read_array_header_{1 if first else 2}_0")(stream)
    at = stream.tell()
    if kind.hasobject or not kind.itemsize:
        raise ValueError("it holds something else than arrays of numbers or texts")
    if (size := math.prod(shape) * kind.itemsize) != len(data) - at:
        raise ValueError(f"EOF: {shape} of {kind} asks for {size:,} bytes, it has {len(data) - at:,}")
    array = np.frombuffer(data, kind, offset=at).reshape(shape, order="F" if columns_first else "C").copy()
    if array.dtype.kind == "U" and np.atleast_1d(array).view("u4").max(initial=0) > sys.maxunicode:
        raise ValueError("a text is not Unicode")
    return array


def read_toml(path: str | Path, what: str = "", todo: str = "", kind: Kind = ArtefactError) -> Any:
    """What a TOML file holds; see :func:`read_text`. Also raises ``kind`` where the content is not TOML."""
    return _parsed(_toml, "a TOML file", path, what, todo, kind)


def _toml(text: str) -> Any:
    if found := _DEEP.search(text):  # tomllib takes time with the square of the depth
        raise ValueError(f"the key {found[0][:20]}... has more than {_DEPTH} parts")
    return tomllib.loads(text)


def _parsed(parse: Callable[[str], Any], form: str, path: str | Path, what: str, todo: str, kind: Kind) -> Any:
    text = read_text(path, what, todo, kind)
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not {form} ({error}){todo and f'; {todo}'}") from error


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object], what: str = "", todo: str = "") -> None:
    """Write a file so that it is there whole or not at all: into a neighbour first, then renamed over ``path``.

    Args:
        path: its folder is created with its parents where it is missing.
        write: called with the open file.
        what: what the file is, with its article, for messages.
        todo: what to do when it cannot be written, for messages.

    Raises:
        ArtefactError: it cannot be written; nothing is left behind and an older file stays as it was.
    """
    path = Path(path)
    with access(f"write {what}".strip(), path, todo):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes the file private; give it the usual permissions
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``folder`` (or its content, where it exists) at the end, or is removed."""
    home = folder if folder.is_dir() else folder.parent
    part = home / f".{folder.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for child in part.iterdir() if home is folder else ():
            os.replace(child, folder / child.name)
        if home is not folder:
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, option: str, *, wait: bool = False) -> Iterator[None]:
    """Create the folder ``path`` and keep other processes out that lock it, too; ``option`` chooses another one.

    Raises ArtefactError where it cannot be written, FolderInUse where another process has it, unless told to ``wait``.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        reason = "it is a file" if path.is_file() else why(error)
        raise ArtefactError(f"cannot write to the folder {path}: {reason}; choose another {option}") from error
    try:
        with contextlib.suppress(ImportError):  # not a POSIX system: no advisory locks to take
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise FolderInUse(
            f"the folder {path} is in use by another caplet process; wait for it or choose another {option}"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def write_bytes(path: str | Path, data: Buffer, what: str = "", todo: str = "") -> None:
    """Write a file; see :func:`write_atomic`."""
    write_atomic(path, lambda stream: stream.write(data), what, todo)


def write_text(path: str | Path, text: str, what: str = "", todo: str = "") -> None:
    """Write a text file in UTF-8; see :func:`write_atomic`. Bytes of names that are no UTF-8 become ``udcff``."""
    write_bytes(path, text.encode(errors="backslashreplace"), what, todo)


def write_json(path: str | Path, data: Any, what: str = "", todo: str = "", *, sort_keys: bool = False) -> None:
    """Write ``data`` as indented JSON; see :func:`write_atomic`."""
    write_text(path, json.dumps(data, indent=1, sort_keys=sort_keys) + "\n", what, todo)


def digest(*parts: Buffer | str) -> str:
    """SHA-256 (64 hexadecimal digits) of bytes, memory views and texts in UTF-8, one after another.

    >>> digest("ab", b"c") == digest("abc")
    True
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
    return found.hexdigest()


def file_digest(path: str | Path, algorithm: str = "sha256", todo: str = "", kind: Kind = ArtefactError) -> str:
    """Digest of a file's content in hexadecimal digits. Raises ArtefactError, or ``kind``, when it cannot be read."""
    check_regular(path, todo=todo, kind=kind)
    with access("read", path, todo, kind), open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
