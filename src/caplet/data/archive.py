"""An image folder packed as a tar archive, read in memory: nothing is unpacked to disk."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import PIL

from caplet.data.cache import load_arrays, store_arrays
from caplet.data.decode import EXTENSIONS, ImageFile
from caplet.data.files import file_hash, is_file, why
from caplet.data.source import Request
from caplet.data.tree import ByClass, DecodedTree, ImageTree, decode_tree
from caplet.errors import DataError

_SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz")
_MAX_IMAGE_BYTES = 64 << 20
_MAX_TOTAL_BYTES = 4 << 30
_ARRAYS = ("images", "labels", "test_count", "classes", "formats")
_CACHE_VERSION = 1


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file named like a tar archive."""
    return path.name.endswith(_SUFFIXES) and is_file(path)


def scan_archive(path: Path) -> ImageTree:
    """Read the images of an archive: regular files named ``train/<class>/<file>`` and ``test/<class>/<file>``.

    One folder above ``train`` and ``test`` is allowed. Every other member (links, devices, absolute names, names with
    ``..``, other file types) is left alone.

    Raises:
        DataError: the archive is unreadable or damaged, an image has more than 64 MiB, or classes are missing.
    """
    splits: dict[str, dict[str, list[tuple[str, ImageFile]]]] = {"train": {}, "test": {}}
    total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if (
                    not member.isreg()
                    or not 3 <= len(parts) <= 4
                    or {"/", ".."} & set(parts)
                    or parts[-3] not in splits
                    or parts[-1].startswith(".")
                    or not parts[-1].lower().endswith(EXTENSIONS)
                ):
                    continue
                total += member.size
                if member.size > _MAX_IMAGE_BYTES or total > _MAX_TOTAL_BYTES:
                    raise DataError(
                        f"{path}: {member.name} has {member.size} bytes, {total} so far; at most {_MAX_IMAGE_BYTES} "
                        f"per image and {_MAX_TOTAL_BYTES} in all are read from an archive: unpack it, give the folder"
                    )
                stream = archive.extractfile(member)
                data = stream.read() if stream is not None else b""
                if len(data) != member.size:
                    raise EOFError(f"{member.name} is cut off")
                image = ImageFile(f"{path.name}:{member.name}", data)
                splits[parts[-3]].setdefault(parts[-2], []).append((parts[-1], image))
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: damaged or incomplete archive ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read archive {path}: {why(error)}") from error
    train, test = _by_class(splits["train"]), _by_class(splits["test"])
    return ImageTree(path, train, test or None)


def _by_class(found: dict[str, list[tuple[str, ImageFile]]]) -> ByClass:
    return {name: [image for _, image in sorted(files, key=lambda f: f[0])] for name, files in found.items()}


def load_archive(path: Path, request: Request) -> DecodedTree:
    """Decode an archive, or take the arrays kept from the last time.

    They are kept under a key made of the archive's size and SHA-256, the image size and channels asked for, and the
    decoder's version, so that a changed archive is never mistaken for an old one.

    Raises:
        DataError: as :func:`scan_archive` and :func:`caplet.data.tree.decode_tree`.
    """
    key = _cache_key(path, request)
    stored = load_arrays(key, _ARRAYS)
    decoded = _from_arrays(stored) if stored is not None else None
    if decoded is None:
        decoded = decode_tree(scan_archive(path), request)
        store_arrays(
            key,
            {
                "images": decoded.images,
                "labels": decoded.labels,
                "test_count": np.array(decoded.test_count),
                "classes": np.array(decoded.classes),
                "formats": np.array(decoded.formats),
            },
        )
    return decoded


def _cache_key(path: Path, request: Request) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read archive {path}: {why(error)}") from error
    parts = (_CACHE_VERSION, PIL.__version__, size, file_hash(path), request.size, request.channels)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _from_arrays(stored: dict[str, np.ndarray]) -> DecodedTree | None:
    """The tree in a cache entry, or None if the entry does not have the form this version writes."""
    images, labels, test_count = stored["images"], stored["labels"], stored["test_count"]
    sound = (
        (images.dtype, images.ndim) == (np.uint8, 4)
        and (labels.dtype, labels.shape) == (np.int64, images.shape[:1])
        and test_count.ndim == 0
        and test_count.dtype.kind == "i"
        and 0 <= int(test_count) < len(images)
        and all(stored[name].ndim == 1 and stored[name].dtype.kind == "U" for name in ("classes", "formats"))
    )
    if not sound:
        return None
    return DecodedTree(
        images, labels, int(test_count), tuple(stored["classes"].tolist()), tuple(stored["formats"].tolist())
    )
