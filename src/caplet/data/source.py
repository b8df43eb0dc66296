"""What a dataset's loader is asked for, and what it gives back before the splits are made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caplet.data.imageset import ImageSet
from caplet.data.splits import cut

TEST_PERCENT = 20
TEST_SEED = 0


@dataclass(frozen=True)
class DataRequest:
    """What :func:`caplet.data.load_data` asks of a loader.

    Attributes:
        root: where the files are; None for the default place (:func:`caplet.data.files.cache_dir` / ``datasets``).
        size: (height, width) the images shall have; None for their own.
        channels: 1 (grayscale) or 3 (RGB); None for the images' own.
        download: fetch missing files from the network.
        progress: show a progress bar on stderr while decoding.
        background: the colour that transparent pixels are laid over; None for white or black, whatever shows more.
    """

    root: Path | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    download: bool = True
    progress: bool = False
    background: str | None = None


@dataclass(frozen=True)
class Source:
    """A dataset as its files give it.

    Attributes:
        train: everything that may be trained or calibrated on.
        test: the images of the final report.
        source: what was read, such as ``"IDX files"``.
        root: the file or folder it was read from; None for embedded data.
        test_split: where the test images come from, and so what the ids count.
        note: what a reader of a result must know, such as ``"CIFAR-10 (JPEG)"``; may be empty.
        calibration: images that the files set apart for it; None to have them cut from ``train``.
    """

    train: ImageSet
    test: ImageSet
    source: str
    root: Path | None = None
    test_split: str = "published; ids count each split from 0"
    note: str = ""
    calibration: ImageSet | None = None


def joined(*notes: str) -> str:
    """Notes in one line."""
    return "; ".join(filter(None, notes))


def cut_test(images: ImageSet, name: str, source: str, root: Path | None = None, note: str = "") -> Source:
    """Data that comes without a test split: 20 % of it, stratified by class, seed 0, always the same, become one.

    The ids of both parts count the images of the undivided set.

    Raises:
        DataError: there are too few images to leave one of each class.
    """
    divisible = sum(count >= 3 for count in images.class_counts())
    size = max(1, divisible, (len(images) * TEST_PERCENT + 50) // 100)
    note = joined(note, f"{TEST_PERCENT} % of the images were cut off as the test split")
    train, test = cut(images, size, seed=TEST_SEED, rest_name=f"{name}/train", cut_name=f"{name}/test")
    about = (
        f"cut by caplet: {TEST_PERCENT} % of all images, stratified by class, seed {TEST_SEED}; ids count all images"
    )
    return Source(train, test, source, root, about, note)


Loader = Callable[[DataRequest], Source]
"""Reads a dataset; raises :class:`caplet.errors.DataError` with what to do if it cannot."""
