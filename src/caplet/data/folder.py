"""Image folders: one folder per class, on disk or in an archive, which is read in memory and not unpacked to disk."""

import re
import shlex
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import PIL

from caplet.data.files import file_hash, is_file, is_hidden, list_folder, load_arrays, store_arrays
from caplet.data.images import ImageFile, decode_all, endings
from caplet.data.imageset import ImageSet, spelt
from caplet.data.source import DataRequest, Source, cut_test, joined
from caplet.errors import DataError
from caplet.files import check_regular, digest, why

LAYOUT = "<class>/*.png (.jpg, .bmp, ...), or train/<class>/* and test/<class>/*, with at least two classes"
ARCHIVES = (".tar", ".tar.xz", ".tar.gz", ".tar.bz2", ".tgz", ".txz", ".zip")
"""Endings of the archives that are read."""
ByClass = dict[str, list[ImageFile]]
_PART = re.compile(
    r"(?:seg|images?|data)?[ _-]*(?:(train)|(val)|(test))(?:ing|id|idation)?[ _-]*(?:set|split|data|images?)?", re.I
)
_NESTED = "images lie one folder deeper than their class's folder"
_OUTSIDE = "images outside class folders, or below their images, left out"


@dataclass(frozen=True)
class ImageTree:
    """Image files by split and class, before decoding; a split that there is not is None; ``note`` for the user."""

    where: Path
    train: ByClass
    test: ByClass | None
    calibration: ByClass | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            found = f"only one class ({next(iter(self.train))!r})" if self.train else "no class folders with images"
            raise DataError(f"{self.where}: {found} found: expected {LAYOUT}")
        for name, files in self.train.items():
            if not files:
                todo = "add some (.png, .jpg, ...), or remove it"
                left = self.note and f" ({self.note})"
                raise DataError(f"{self.where}: class {name!r} has no training images: {todo}{left}")
        for split, by_class in (("test", self.test or {}), ("validation", self.calibration or {})):
            if unknown := sorted(set(by_class) - set(self.train)):
                todo = "both need the same class names"
                raise DataError(f"{self.where}: {split} has class {unknown[0]!r}, train does not: {todo}")
        if self.test is not None and not any(self.test.values()):
            todo = "add some, or remove it to have a split made"
            raise DataError(f"{self.where}: the test folder has no images: {todo}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order: sorted."""
        return tuple(sorted(self.train))


@dataclass(eq=False)
class FoundFolder:
    """A folder: its sub-folders by name, its images by name, and how many other files it has by their ending."""

    where: Path
    folders: dict[str, "FoundFolder"] = field(default_factory=dict)
    images: list[ImageFile] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def below(self) -> list["FoundFolder"]:
        """This folder and all folders in it."""
        return [self, *chain.from_iterable(folder.below() for folder in self.folders.values())]


def scan_folder(path: Path, depth: int = 5) -> FoundFolder:
    """What is in a folder, down to ``depth`` levels below it, without links to folders that it is in itself.

    Raises DataError when a folder cannot be read.
    """
    folders, files = list_folder(path)
    linked = {name for name in folders if (path / name).is_symlink()}
    folders = [name for name in folders if name not in linked or (path / name).resolve() not in _around(path)]
    images = [ImageFile(str(path / name)) for name in files if _ending(name) in endings()]
    others = Counter(ending for name in files if (ending := _ending(name)) not in endings())
    return FoundFolder(path, {name: scan_folder(path / name, depth - 1) for name in folders if depth}, images, others)


def _around(path: Path) -> tuple[Path, ...]:
    place = path.resolve()
    return place, *place.parents


def part_of(name: str) -> str:
    """The split for which a folder of this name stands: train, calibration or test; ``""`` if it is no such name.

    >>> part_of("Training"), part_of("valid"), part_of("test_set"), part_of("trains")
    ('train', 'calibration', 'test', '')
    """
    match = _PART.fullmatch(name)
    return ("train", "calibration", "test")[(match.lastindex or 1) - 1] if match else ""


def find_layout(top: FoundFolder) -> ImageTree:
    """Which images of a folder belong to which split and class.

    ``train/<class>/*`` with ``test/<class>/*``, ``val/<class>/*`` or both, else ``<class>/*``. Capitals do not matter,
    and training, testing, valid and validation are known, too. Without test, val is the test split; with both, val is
    the calibration split. One folder around all this is allowed.

    Raises:
        DataError: there are not at least two classes with images each, or it is not clear what is what.
    """
    folder, said, notes = _inside(top), Counter[str](), list[str]()
    where = folder.where
    if not folder.folders and folder.images:
        raise DataError(
            f"{where}: {len(folder.images):,} images, but no class folders: expected {LAYOUT}; if this is the folder of"
            f" one class, give its parent {shlex.quote(str(where.resolve().parent))}"
        )
    parts = {part: inner for name, inner in folder.folders.items() if (part := part_of(name))}
    if "train" in parts and parts["train"].folders:
        said[_OUTSIDE] += len(folder.images)
        flat = {part: parts.pop(part) for part, inner in [*parts.items()] if inner.images and not inner.folders}
        if "test" in flat and "calibration" not in parts:
            todo = "put them into class folders, or move the folder away to have a test split made from train"
            raise DataError(
                f"{flat['test'].where}: its images are in no class folders, so nothing says what they are: {todo}"
            )
        unread = [name for name, inner in folder.folders.items() if inner not in parts.values()]
        notes += [f"not read: {', '.join(unread)}"] if unread else []
        if "calibration" in parts:
            split = "calibration" if "test" in parts else "test"
            parts[split] = parts.pop("calibration")
            notes.append(f"the {split} split is the folder {parts[split].where.name}")
    elif held := [inner.where.name for inner in parts.values() if inner.folders]:
        raise DataError(f"{where}: {held[0]} has class folders, but there is no train: expected {LAYOUT}")
    else:
        parts = {"train": folder}
        notes += [f"the classes are the folders in {where.relative_to(top.where)}"] if folder is not top else []
    splits = {part: _by_class(_inside(inner), said) for part, inner in parts.items()}
    notes += [f"{said.pop(kind):,} {kind}" for kind in (_NESTED, _OUTSIDE) if said[kind]]
    if left := said.total():
        kinds = ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in said.most_common(5) if count)
        notes.append(f"{left:,} files left out ({kinds}{', ...' if len(said) > 5 else ''})")
    return ImageTree(where, splits["train"], splits.get("test"), splits.get("calibration"), joined(*notes))


def _inside(folder: FoundFolder) -> FoundFolder:
    """The folder itself, or the only one in it, where that has the class folders."""
    inner = next(iter(folder.folders.values()), folder)
    many = len(inner.folders) > 1 or any(below.folders for below in inner.folders.values())
    return _inside(inner) if many and len(folder.folders) == 1 and not folder.images else folder


def _by_class(folder: FoundFolder, said: Counter[str]) -> ByClass:
    """The images of class folders; where one has none, those of the folders in it. Counts in ``said`` what is odd."""
    found: ByClass = {}
    said[_OUTSIDE] += len(folder.images)
    for name, inner in folder.folders.items():
        every = [image for below in inner.below() for image in below.images]
        [usual] = spelt([name])
        found[name if usual in folder.folders else usual] = inner.images or every
        said[_OUTSIDE if inner.images else _NESTED] += len(every) - len(inner.images)
        said += sum((below.others for below in inner.below()), Counter[str]())
    return found


class DecodedTree(NamedTuple):
    """A decoded :class:`ImageTree`: uint8 NCHW, int64 labels; images of train, calibration, test."""

    images: np.ndarray
    labels: np.ndarray
    counts: tuple[int, int, int]
    classes: tuple[str, ...]
    formats: tuple[str, ...]
    note: str


def decode_tree(tree: ImageTree, request: DataRequest) -> DecodedTree:
    """Decode every image of a tree, in order: by split; by class; by file name.

    Raises:
        DataError: as :func:`caplet.data.images.decode_all`.
    """
    files: list[ImageFile] = []
    labels: list[int] = []
    counts: list[int] = []
    for by_class in (tree.train, tree.calibration or {}, tree.test or {}):
        start = len(files)
        for label, name in enumerate(tree.classes):
            found = by_class.get(name, [])
            files += found
            labels += [label] * len(found)
        counts.append(len(files) - start)
    images, said = decode_all(
        files, size=request.size, channels=request.channels, background=request.background, progress=request.progress
    )
    sizes = counts[0], counts[1], counts[2]
    formats = tuple(sorted({_ending(file.name) for file in files}))
    classes, numbers = tree.classes, np.array(labels, dtype=np.int64)
    return DecodedTree(images, numbers, sizes, classes, formats, joined(tree.note, said))


def to_source(decoded: DecodedTree, name: str, *, source: str, root: Path | None, note: str = "") -> Source:
    """The sets of decoded images; without test images, 20 % of all are cut off as the test split.

    ``note`` says more about them than the tree's own note.
    """
    note = joined(note, decoded.note)
    every = ImageSet.of_arrays(decoded.images, decoded.labels, decoded.classes, f"{name}/all")
    if not decoded.counts[2]:
        return cut_test(every, name, source, root, note)
    held = sum(decoded.counts[:2])
    places = {"train": (0, decoded.counts[0]), "calibration": (decoded.counts[0], held), "test": (held, len(every))}
    train, calibration, test = (every.subset(range(*ends), name=f"{name}/{split}") for split, ends in places.items())
    test = replace(test, ids=test.ids - held)
    return Source(train, test, source, root, note=note, calibration=calibration if len(calibration) else None)


_MAX_IMAGE_BYTES = 64 << 20
MAX_TOTAL_BYTES = 4 << 30
_STORED = {"images": ("u1", 4), "labels": ("i8", 1), "counts": ("i8", 1)}
_STORED |= {"classes": ("U", 1), "formats": ("U", 1), "note": ("U", 0)}
"""Type and number of axes of every array in a cache entry."""
_CACHE_VERSION = 3


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a file named like an archive that is read."""
    return path.name.lower().endswith(ARCHIVES) and is_file(path)


def scan_archive(path: Path) -> FoundFolder:
    """What is in a tar or zip archive; images are read into memory.

    Links, devices, absolute names and names with ``..`` are left alone. Of several files of one name, the last counts,
    as where an archive is unpacked.

    Raises:
        DataError: the archive is unreadable or damaged, or an image has more than 64 MiB.
    """
    top, total, places = FoundFolder(path), 0, dict[str, int]()
    with members(path) as entries:
        for parts, size, opened in entries:
            folder, name = top, "/".join(parts)
            for part in parts[:-1]:
                if part not in folder.folders:
                    folder.folders[part] = FoundFolder(folder.where / part)
                folder = folder.folders[part]
            ending = _ending(name)
            if ending not in endings():
                folder.others[ending] += 1
                continue
            total += size
            if size > _MAX_IMAGE_BYTES or total > MAX_TOTAL_BYTES:
                raise DataError(
                    f"{path}: {name} has {size} bytes, {total} so far; at most {_MAX_IMAGE_BYTES} "
                    f"per image and {MAX_TOTAL_BYTES} in all are read from an archive: unpack it, give the folder"
                )
            with opened() as stream:
                data = stream.read()
            if len(data) != size:
                raise EOFError(f"{name} is cut off")
            image, place = ImageFile(f"{path.name}:{name}", data), places.setdefault(name, len(folder.images))
            folder.images[place : place + 1] = [image]
    for folder in top.below():
        folder.folders = dict(sorted(folder.folders.items()))
        folder.images.sort(key=lambda image: image.name.rpartition("/")[2])
    return top


Opener = Callable[[], AbstractContextManager[IO[bytes]]]


@contextmanager
def members(path: Path) -> Iterator[Iterator[tuple[tuple[str, ...], int, Opener]]]:
    """The regular files of a tar or zip archive: the parts of their names, bytes, and what opens them.

    Links, devices, absolute names, names with ``..`` and hidden ones are left alone.

    Raises:
        DataError: the archive is unreadable or damaged.
    """
    check_regular(path, "the archive", kind=DataError)
    try:
        with zipfile.ZipFile(path) if path.name.lower().endswith(".zip") else tarfile.open(path, "r:*") as archive:
            entries = ((_parts(name), size, opened) for name, size, opened in _entries(archive))
            yield (entry for entry in entries if _is_plain(entry[0]))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read archive {path}: {why(error)}") from error
    except Exception as error:  # a damaged archive can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or incomplete archive ({reason}): fetch it again") from error


def _parts(name: str) -> tuple[str, ...]:
    """As ``PurePosixPath(name).parts``, in a fraction of its time: archives have tens of thousands of names."""
    top = ("/",) if name.startswith("/") else ()
    return (*top, *(part for part in name.split("/") if part not in ("", ".")))


def _ending(name: str) -> str:
    """As ``Path(name).suffix.lower()`` of a name that does not begin with a dot, in a fraction of its time."""
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f"{dot}{ending}".lower() if ending and dot else ""


def _is_plain(parts: tuple[str, ...]) -> bool:
    return 0 < len(parts) <= 7 and not {"/", ".."} & set(parts) and not any(map(is_hidden, parts))


def _entries(archive: "zipfile.ZipFile | tarfile.TarFile") -> Iterator[tuple[str, int, Opener]]:
    """Name, bytes and opener of every regular file."""
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename.replace("\\", "/"), entry.file_size, partial(archive.open, entry)
    else:
        for member in archive:
            if member.isreg() and (stream := archive.extractfile(member)) is not None:
                yield member.name, member.size, partial(closing, stream)


def read_tree(path: Path, request: DataRequest) -> DecodedTree:
    """Decode a folder or an archive; of an archive, take the arrays that the cache has.

    Their key is made of the archive's SHA-256, of what was asked for, and of the decoder's version.

    Raises:
        DataError: as :func:`scan_archive`, :func:`scan_folder`, :func:`find_layout` and :func:`decode_tree`.
    """
    if not is_archive(path):
        return decode_tree(find_layout(scan_folder(path)), request)
    asked = (request.size, request.channels, request.background)
    key = digest(repr((_CACHE_VERSION, PIL.__version__, file_hash(path), *asked)))[:32]
    decoded = _from_arrays(load_arrays(key, tuple(_STORED)))
    if decoded is None:
        decoded = decode_tree(find_layout(scan_archive(path)), request)
        store_arrays(key, {name: np.asarray(value) for name, value in decoded._asdict().items()})
    return decoded


def _from_arrays(stored: dict[str, np.ndarray] | None) -> DecodedTree | None:
    """The tree in a cache entry, or None if the entry does not have the form this version writes."""
    if stored is None or any(
        (stored[name].dtype.str.lstrip("<|")[: len(kind)], stored[name].ndim) != (kind, axes)
        for name, (kind, axes) in _STORED.items()
    ):
        return None
    images, labels, counts, classes, formats, note = (stored[name] for name in _STORED)
    if len(labels) != len(images) or len(counts) != 3 or counts.min() < 0 or counts.sum() != len(images):
        return None
    train, calibration, test = counts.tolist()
    texts = tuple(classes.tolist()), tuple(formats.tolist()), str(note)
    return DecodedTree(images, labels, (train, calibration, test), *texts)
