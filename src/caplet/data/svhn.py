"""SVHN's cropped digits from their MATLAB files."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from caplet.data.files import check_labels, check_md5, find_or_fetch, is_file
from caplet.data.imageset import ImageSet
from caplet.data.source import DataRequest, Source
from caplet.errors import DataError
from caplet.files import check_regular, read_arrays
from caplet.processes import run

NAME = "svhn"
CLASSES = tuple("0123456789")
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
LAYOUT = " and ".join(FILES.values())
_READ = """
import sys, numpy, scipy.io
if sys.platform != "win32":
    import resource
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30 if hard < 0 else min(hard, 4 << 30), hard))
found = scipy.io.loadmat(sys.argv[1], variable_names=("X", "y"))
numpy.savez(sys.argv[2], **{name: found[name] for name in ("X", "y") if name in found})
"""
"""scipy's reader follows sizes in a damaged file out of its memory, so it runs in a process of its own."""
_PUBLISHED_COUNTS = {"train": 73_257, "test": 26_032}


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One ``.mat`` file in the cropped-digits format: ``X`` (32, 32, 3, N) and ``y`` (N, 1), where 10 means digit 0.

    Returns:
        (images, labels): uint8 (N, 3, 32, 32), int64 (N,) in 0..9.

    Raises:
        DataError: the file is damaged, or ``X`` or ``y`` is missing, of another shape or type, or out of range.
    """
    check_regular(path, kind=DataError)
    with tempfile.TemporaryDirectory(prefix="caplet-") as folder:
        arrays = Path(folder) / "arrays.npz"
        done = run([sys.executable, "-P", "-c", _READ, str(path), str(arrays)])
        if done.returncode:
            reason = (done.stderr.strip() or f"its reader ended with {done.returncode}").splitlines()[-1][:200]
            raise DataError(f"{path}: not a readable .mat file ({path.stat().st_size} bytes; {reason}): fetch it again")
        found = read_arrays(arrays, kind=DataError)
    if "X" not in found or "y" not in found:
        raise DataError(f"{path}: variables X and y expected, found {sorted(found) or 'none of them'}")
    pixels, digits = found["X"], found["y"].reshape(-1)
    if pixels.ndim == 3:  # MATLAB drops a last dimension of 1
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or not pixels.shape[-1]:
        raise DataError(f"{path}: X must be uint8 (32, 32, 3, N), found {pixels.dtype} {pixels.shape}: fetch it again")
    check_labels(path, digits, pixels.shape[3], range(1, 11))
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), digits.astype(np.int64) % 10


def _read_split(path: Path, split: str) -> ImageSet:
    images, labels = read_mat(path)
    if len(images) == _PUBLISHED_COUNTS[split]:
        from torchvision.datasets import SVHN

        check_md5(path, SVHN.split_list[split][2])
    return ImageSet.of_arrays(images, labels, CLASSES, f"{NAME}/{split}")


def find_mats(root: Path) -> dict[str, Path] | None:
    """The two files in a folder, None where one is missing."""
    paths = {split: root / file for split, file in FILES.items()}
    return paths if all(map(is_file, paths.values())) else None


def load_svhn(request: DataRequest) -> Source:
    """Read SVHN's cropped digits, downloaded by torchvision if the files are missing.

    A file with the published number of images must have the published MD5. One with another number is read as it is,
    and the source's note says that it is not the published file.

    Raises:
        DataError: files are missing and not to be had, or damaged.
    """
    paths = find_or_fetch(NAME, LAYOUT, request, find_mats, "SVHN", *({"split": split} for split in FILES))
    return load_mats(paths, request)


def load_mats(paths: dict[str, Path], request: DataRequest) -> Source:
    """Read the two files. Raises DataError."""
    train, test = (_read_split(path, split) for split, path in paths.items())
    published = (len(train), len(test)) == (_PUBLISHED_COUNTS["train"], _PUBLISHED_COUNTS["test"])
    note = "SVHN (cropped digits)" if published else "files in SVHN's format, not the published ones"
    return Source(train, test, "MATLAB files", paths["train"].parent, note=note)
