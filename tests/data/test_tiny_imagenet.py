"""Tiny-ImageNet-200's folder layout, and every way it can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from data_files import pixels, write_image

from caplet.data import Splits, load_data
from caplet.errors import DataError

CLASSES = ("n01443537", "n01629819", "n02002556")


def write(root: Path, train: int = 12, val: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The published layout with few images; gives train's pixels by class and file, val's by file."""
    made = pixels(len(CLASSES) * train, (8, 8, 3))
    for c, name in enumerate(CLASSES):
        for i in range(train):
            write_image(root / "train" / name / "images" / f"{name}_{i:02}.PNG", made[c * train + i])
        (root / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    held = pixels(len(CLASSES) * val, (8, 8, 3), 1)
    lines = []
    for i, image in enumerate(held):
        write_image(root / "val" / "images" / f"val_{i}.PNG", image)
        lines.append(f"val_{i}.PNG\t{CLASSES[i % len(CLASSES)]}\t0\t0\t7\t7")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    write_image(root / "test" / "images" / "test_0.PNG", held[0])
    (root / "wnids.txt").write_text("\n".join(CLASSES))
    return made, held


def load(root: Path) -> Splits:
    return load_data("tiny-imagenet", root, calibration_size=3)


def test_val_is_the_test_split(tmp_path: Path) -> None:
    train, val = write(tmp_path / "tiny-imagenet-200")
    splits = load(tmp_path)
    assert splits.train.classes == CLASSES
    assert splits.info["sizes"] == {"train": 33, "calibration": 3, "test": 6}
    assert "validation split" in splits.info["note"]
    assert splits.test.class_counts() == (2, 2, 2)
    order = [i for c in range(3) for i in range(6) if i % 3 == c]
    assert np.array_equal(splits.test.images.numpy(), val[order].transpose(0, 3, 1, 2))
    first = splits.train.images[0].numpy()
    assert np.array_equal(first, train[int(splits.train.ids[0])].transpose(2, 0, 1))
    assert load(tmp_path / "tiny-imagenet-200").info["hashes"] == splits.info["hashes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.PNG n01443537", "line 7 is 'val_0.PNG n01443537'; the rule is an image, a tab, and one of the 3"),
        ("val_0.PNG\tn99", "line 7 is"),
        ("val_9.PNG\tn01443537", "line 7: no image 'val_9.PNG'"),
        ("val_0.PNG\tn01443537", "or named twice"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path)
    path = tmp_path / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + line)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_an_image_without_a_line_and_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "val" / "val_annotations.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match=r"1 images have no line, the first is val_0\.PNG"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"no Tiny-ImageNet-200 in .* fetch and unpack it"):
        load(tmp_path)
