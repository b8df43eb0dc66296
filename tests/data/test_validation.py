"""Validation images: read with or without labels, in the data's shape, and refused where they are not new."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caplet.data import load_data
from caplet.data.splits import Splits
from caplet.data.validation import load_validation
from caplet.errors import DataError


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digits")


def write(folder: Path, name: str, seed: int, shape: tuple[int, ...] = (8, 8)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def test_classes_come_from_the_folders_and_take_turns(tmp_path: Path, splits: Splits) -> None:
    for index in range(6):
        write(tmp_path / "3", f"a{index}", index)
        write(tmp_path / "7", f"b{index}", 100 + index)
    images, labelled = load_validation(tmp_path, splits)
    assert labelled
    assert images.image_shape == splits.train.image_shape
    assert images.labels.tolist() == [3, 7] * 6


def test_images_without_folders_have_no_labels(tmp_path: Path, splits: Splits) -> None:
    for index in range(3):
        write(tmp_path, str(index), index)
    images, labelled = load_validation(tmp_path, splits)
    assert not labelled
    assert len(images) == 3


def test_images_that_are_not_new_are_refused_with_their_number(tmp_path: Path, splits: Splits) -> None:
    (tmp_path / "0").mkdir()
    for index, split in enumerate((splits.test, splits.test, splits.train)):
        Image.fromarray(split.images[index, 0].numpy()).save(tmp_path / "0" / f"{index}.png")
    write(tmp_path / "1", "new", 5)
    with pytest.raises(DataError, match=r"1 of 4 validation images are in digits/train"):
        load_validation(tmp_path, splits)
    (tmp_path / "0" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 validation images are in digits/test"):
        load_validation(tmp_path, splits)


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (("0", "cat"), (8, 8), "'cat' is no class of the data"),
        (("0",), (8, 8), "one class only"),
        (("0", "1"), (9, 8), "images are 1x9x8, the data's 1x8x8"),
    ],
)
def test_other_images_are_refused(
    tmp_path: Path, splits: Splits, names: tuple[str, ...], shape: tuple[int, int], message: str
) -> None:
    for name in names:
        write(tmp_path / name, "one", 1, shape)
        write(tmp_path / name, "two", 2, shape)
    with pytest.raises(DataError, match=message):
        load_validation(tmp_path, splits)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path, splits: Splits) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        load_validation(tmp_path / "nowhere", splits)
    with pytest.raises(DataError, match="no images found"):
        load_validation(tmp_path, splits)
