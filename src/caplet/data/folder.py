"""Own images: one folder per class, or a tar archive of one, which is read in memory and not unpacked to disk."""

import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import PIL

from caplet.data.files import file_hash, is_file, is_folder, list_folder, load_arrays, store_arrays
from caplet.data.images import EXTENSIONS, ImageFile, decode_all
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source, cut_test
from caplet.errors import DataError
from caplet.files import access, digest, why

LAYOUT = "<class>/*.png (.jpg, .bmp, ...), or train/<class>/* and test/<class>/*, with at least two classes"
ByClass = dict[str, list[ImageFile]]


@dataclass(frozen=True)
class ImageTree:
    """Image files by split and class, before decoding; ``test`` is None if there is no such split."""

    where: Path
    train: ByClass
    test: ByClass | None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"{self.where}: no class folders with images found: expected {LAYOUT}")
        if len(self.train) < 2:
            raise DataError(f"{self.where}: only one class ({next(iter(self.train))!r}) found: expected {LAYOUT}")
        for name, files in self.train.items():
            if not files:
                raise DataError(
                    f"{self.where}: class {name!r} has no training images ({', '.join(EXTENSIONS)}): add or remove it"
                )
        unknown = sorted(set(self.test or ()) - set(self.train))
        if unknown:
            raise DataError(
                f"{self.where}: test has class {unknown[0]!r}, train does not: both need the same class names"
            )
        if self.test is not None and not any(self.test.values()):
            raise DataError(
                f"{self.where}: the test folder has no images: add some, or remove the folder to have a split made"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order: sorted."""
        return tuple(sorted(self.train))

    @property
    def formats(self) -> tuple[str, ...]:
        """The file extensions that occur, lower case, sorted."""
        files = (f for by_class in (self.train, self.test or {}) for group in by_class.values() for f in group)
        return tuple(sorted({Path(file.name).suffix.lower() for file in files}))


class DecodedTree(NamedTuple):
    """A decoded :class:`ImageTree`: uint8 NCHW, int64 labels; first the training, then ``test_count`` test images."""

    images: np.ndarray
    labels: np.ndarray
    test_count: int
    classes: tuple[str, ...]
    formats: tuple[str, ...]


def scan_folder(root: Path) -> ImageTree:
    """Find the images under a folder.

    ``root/train/<class>/*`` (and ``root/test/<class>/*``) if ``root/train`` has sub-folders, else ``root/<class>/*``.
    Hidden files, other file types, and folders beside ``train`` and ``test`` are left out.

    Raises:
        DataError: the folder is missing, cannot be read, or has not at least two classes with images each.
    """
    if not is_folder(root):
        raise DataError(f"no folder {root}: expected one with {LAYOUT}")
    folders, _ = list_folder(root)
    if "train" not in folders or not list_folder(root / "train")[0]:
        return ImageTree(root, _scan_classes(root), None)
    test = _scan_classes(root / "test") if "test" in folders else None
    return ImageTree(root, _scan_classes(root / "train"), test, tuple(f for f in folders if f not in ("train", "test")))


def _scan_classes(folder: Path) -> ByClass:
    return {name: image_files(folder / name) for name in list_folder(folder)[0]}


def image_files(folder: Path) -> list[ImageFile]:
    """The images in a folder by name, sorted; other files are left out."""
    names = (file for file in list_folder(folder)[1] if file.lower().endswith(EXTENSIONS))
    return [ImageFile(str(folder / name), folder / name) for name in names]


def decode_tree(tree: ImageTree, request: DataRequest) -> DecodedTree:
    """Decode every image of a tree, in order: train, then test; by class; by file name.

    Raises:
        DataError: as :func:`caplet.data.images.decode_all`.
    """
    files: list[ImageFile] = []
    labels: list[int] = []
    counts: list[int] = []
    for by_class in (tree.train, tree.test or {}):
        start = len(files)
        for label, name in enumerate(tree.classes):
            found = by_class.get(name, [])
            files += found
            labels += [label] * len(found)
        counts.append(len(files) - start)
    images = decode_all(files, size=request.size, channels=request.channels, progress=request.progress)
    return DecodedTree(images, np.array(labels, dtype=np.int64), counts[1], tree.classes, tree.formats)


def to_source(decoded: DecodedTree, name: str, *, source: str, root: Path, note: str = "") -> Source:
    """Train and test sets of decoded images; without test images, 20 % of all are cut off as the test split."""

    def part(chosen: slice, split: str) -> ImageSet:
        return ImageSet.of_arrays(decoded.images[chosen], decoded.labels[chosen], decoded.classes, f"{name}/{split}")

    boundary = len(decoded.images) - decoded.test_count
    if decoded.test_count:
        train, test = part(slice(boundary), "train"), part(slice(boundary, None), "test")
        return Source(train, test, source, root, note=note)
    return cut_test(part(slice(None), "all"), name, source, root, note)


_SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz")
_MAX_IMAGE_BYTES = 64 << 20
_MAX_TOTAL_BYTES = 4 << 30
_STORED = {"images": ("u1", 4), "labels": ("i8", 1), "test_count": ("i8", 0), "classes": ("U", 1), "formats": ("U", 1)}
"""Type and number of axes of every array in a cache entry."""
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
    splits: dict[str, ByClass] = {"train": {}, "test": {}}
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
                splits[parts[-3]].setdefault(parts[-2], []).append(ImageFile(f"{path.name}:{member.name}", data))
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: damaged or incomplete archive ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read archive {path}: {why(error)}") from error
    for by_class in splits.values():
        for images in by_class.values():
            images.sort(key=lambda image: PurePosixPath(image.name).name)
    return ImageTree(path, splits["train"], splits["test"] or None)


def load_archive(path: Path, request: DataRequest) -> DecodedTree:
    """Decode an archive, or take the arrays that the cache has.

    Their key is made of the archive's size and SHA-256, the image size and channels asked for, and the
    decoder's version, so that a changed archive is never mistaken for an old one.

    Raises:
        DataError: as :func:`scan_archive` and :func:`caplet.data.folder.decode_tree`.
    """
    with access("read archive", path, kind=DataError):
        size = path.stat().st_size
    parts = (_CACHE_VERSION, PIL.__version__, size, file_hash(path), request.size, request.channels)
    key = digest(repr(parts))[:32]
    decoded = _from_arrays(load_arrays(key, tuple(_STORED)))
    if decoded is None:
        decoded = decode_tree(scan_archive(path), request)
        store_arrays(key, {name: np.asarray(value) for name, value in decoded._asdict().items()})
    return decoded


def _from_arrays(stored: dict[str, np.ndarray] | None) -> DecodedTree | None:
    """The tree in a cache entry, or None if the entry does not have the form this version writes."""
    if stored is None or any(
        (stored[name].dtype.str.lstrip("<|")[: len(kind)], stored[name].ndim) != (kind, axes)
        for name, (kind, axes) in _STORED.items()
    ):
        return None
    images, labels, test_count, classes, formats = (stored[name] for name in _STORED)
    if len(labels) != len(images) or not 0 <= int(test_count) < len(images):
        return None
    return DecodedTree(images, labels, int(test_count), tuple(classes.tolist()), tuple(formats.tolist()))


def load_folder(request: DataRequest) -> Source:
    """Read the image folder (or ``.tar``, ``.tar.xz``, ... archive of one) ``request.root``.

    Raises:
        DataError: no root was given, or as :func:`scan_folder` and :func:`decode_tree`.
    """
    if request.root is None:
        raise DataError(f"dataset 'folder' needs the path of your images: give root= (--root) with {LAYOUT}")
    if is_archive(request.root):
        return to_source(load_archive(request.root, request), "folder", source="image archive", root=request.root)
    tree = scan_folder(request.root)
    note = f"not read: {', '.join(tree.ignored)}" if tree.ignored else ""
    return to_source(decode_tree(tree, request), "folder", source="image folder", root=request.root, note=note)
