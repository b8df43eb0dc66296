"""MNIST and Fashion-MNIST from their IDX files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from caplet.data.files import check_labels, find_or_fetch, is_file, read_bytes
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_idx(name: str, folder: str, classes: tuple[str, ...], request: DataRequest) -> Source:
    """Read a dataset in MNIST's format, downloaded by torchvision if its files are missing.

    Files are looked for in ``root/FOLDER/raw``, then in ``root`` itself.

    Args:
        folder: torchvision's name of the dataset's class and folder.

    Raises:
        DataError: files are missing and not to be had, damaged, or do not belong together.
    """

    def find(root: Path) -> list[Path] | None:
        for place in (root / folder / "raw", root):
            found = [path for file in FILES for path in (place / file, place / f"{file}.gz") if is_file(path)]
            names = {path.name.removesuffix(".gz"): path for path in reversed(found)}
            if len(names) == len(FILES):
                return [names[file] for file in FILES]
        return None

    def download(place: str) -> object:
        import torchvision.datasets

        return getattr(torchvision.datasets, folder)(place, train=False, download=True)

    layout = f"{folder}/raw/{{{','.join(FILES)}}} (or .gz)"
    paths = find_or_fetch(name, layout, request, find, download)
    train = _read_split(paths[0], paths[1], classes, f"{name}/train")
    test = _read_split(paths[2], paths[3], classes, f"{name}/test")
    return Source(train, test, source="IDX files", root=paths[0].parent)


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    Returns:
        uint8, of the shape its header names.

    Raises:
        DataError: the file cannot be read, is not IDX, or is shorter or longer than its header says.
    """
    data = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise DataError(
            f"{path}: not an IDX file of bytes: it starts with {data[:4].hex()!r}, not 000008..: fetch it again"
        )
    offset = 4 + 4 * data[3]
    if len(data) < offset:
        raise DataError(f"{path}: truncated: its header has {len(data)} of {offset} bytes: fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    wanted = offset + int(np.prod(shape, dtype=object))
    if len(data) != wanted:
        kind = "truncated" if len(data) < wanted else "too long"
        raise DataError(f"{path}: {kind}: {len(data)} bytes, its header {shape} asks for {wanted}: fetch it again")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape).copy()


def _read_split(images_path: Path, labels_path: Path, classes: tuple[str, ...], name: str) -> ImageSet:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(
            f"{images_path}: images must have 3 dimensions and labels 1, found {images.ndim} and {labels.ndim}: "
            "are files mixed up?"
        )
    check_labels(labels_path, labels, len(images), range(len(classes)), images_path)
    return ImageSet.of_arrays(images[:, None], labels, classes, name)
