"""Arrays of pixels and labels in .npz and .npy files: names, layouts, ranges, labels; and what is refused."""

import io
import zipfile

import numpy as np
import pytest
from data_files import pixels

from caplet.data import load_data
from caplet.data.arrays import split_and_kind
from caplet.errors import DataError

LABELS = np.arange(60) % 3
GRAY, RGB = pixels(60, (6, 5)), pixels(60, (6, 5, 3), 1)
SQUARE = pixels(60, (6, 6))


def smooth(count: int, side: int) -> np.ndarray:
    """Images (N, side, side, 3) whose neighbours are alike, and whose channels are not."""
    down, across = np.mgrid[0:side, 0:side]
    phase = np.random.default_rng(0).uniform(0, 6, (count, 1, 1, 3))
    waves = np.sin(down[None, :, :, None] / side * 4 + phase) + np.cos(across[None, :, :, None] / side * 5 - phase)
    return np.round(255 * (waves + 2) / 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x_train", ("train", "images")),
        ("y_test", ("test", "labels")),
        ("X", ("", "images")),
        ("y", ("", "labels")),
        ("val_images", ("calibration", "images")),
        ("test_labels", ("test", "labels")),
        ("trainX", ("train", "images")),
        ("ytrain", ("train", "labels")),
        ("data", ("", "images")),
        ("target", ("", "labels")),
        ("kmnist-test-imgs", ("test", "images")),
        ("data_train_labels", ("train", "labels")),
        ("class_names", ("", "classes")),
        ("arr_0", ("", "")),
    ],
)
def test_names_tell_what_is_what(name, found):
    assert split_and_kind(name) == found


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
    ],
)
@pytest.mark.parametrize("how", ["npz", "compressed", "npy", "npz each", "zip"])
def test_the_usual_names(tmp_path, names, how):
    arrays = dict(zip(names, (RGB, LABELS, RGB[:20], LABELS[:20, None]), strict=True))
    place = tmp_path / "x.npz" if how in ("npz", "compressed") else tmp_path
    if how == "npy":
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    elif how == "npz each":
        for name, array in arrays.items():
            np.savez(tmp_path / f"set-{name}.npz", array)
    elif how == "zip":
        place = tmp_path / "all.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for name, array in arrays.items():
                np.save(stream := io.BytesIO(), array)
                archive.writestr(f"inner/{name}.npy", stream.getvalue())
    else:
        (np.savez if how == "npz" else np.savez_compressed)(place, **arrays)
    splits = load_data(place)
    assert splits.info["sizes"] == {"train": 54, "calibration": 6, "test": 20}
    assert np.array_equal(splits.test.images.numpy(), RGB[:20].transpose(0, 3, 1, 2))
    assert np.array_equal(splits.test.labels.numpy(), LABELS[:20])
    assert np.array_equal(splits.train.images.numpy(), RGB.transpose(0, 3, 1, 2)[splits.train.ids])
    assert splits.info["root"] == str(place)
    assert splits.info["source"] == "NumPy arrays"
    assert "labels 0..2 are the classes" in splits.info["note"]
    assert ("the validation split is the test split" in splits.info["note"]) == ("X_val" in names)


def test_validation_and_test(tmp_path):
    arrays = {f"{split}_images": GRAY[:n] for split, n in (("train", 60), ("val", 12), ("test", 30))}
    arrays |= {f"{split}_labels": LABELS[:n] for split, n in (("train", 60), ("val", 12), ("test", 30))}
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    splits = load_data(tmp_path / "bloodmnist.npz")
    assert splits.info["sizes"] == {"train": 60, "calibration": 12, "test": 30}
    assert "the validation split is the calibration split" in splits.info["note"]
    np.savez(tmp_path / "pathmnist.npz", **arrays)
    with pytest.raises(DataError, match=r"bloodmnist.npz:\w+ and pathmnist.npz:\w+ are both .*: give the file of one"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("array", "expected", "said"),
    [
        (GRAY, GRAY[:, None], ""),
        (RGB, RGB.transpose(0, 3, 1, 2), ""),
        (RGB.transpose(0, 3, 1, 2), RGB.transpose(0, 3, 1, 2), ""),
        (GRAY[..., None], GRAY[:, None], ""),
        (RGB[..., :2], RGB[..., :2].transpose(0, 3, 1, 2), ""),
        (RGB[:, :3], RGB[:, :3].transpose(0, 3, 1, 2), "(3, 5, 3) taken as (rows, columns, channels)"),
        (SQUARE.reshape(60, 36), SQUARE[:, None], "36 values taken as 6 x 6 pixels"),
        (GRAY / np.float32(255), GRAY[:, None], "pixels 0..1 were multiplied by 255"),
        (GRAY.astype(np.float64), GRAY[:, None], ""),
        (GRAY.astype(np.int64), GRAY[:, None], ""),
        (np.clip(GRAY, 0, 254) + 0.25, np.clip(GRAY, 0, 254)[:, None], "pixels were rounded"),
        (GRAY > 99, (GRAY > 99)[:, None] * 255, "pixels 0..1 were multiplied by 255"),
        (GRAY // 16, GRAY[:, None] // 16, "warning: the largest pixel is 15, taken as of 255"),
        (np.asfortranarray(GRAY), GRAY[:, None], ""),
        (GRAY.astype(">u2"), GRAY[:, None], ""),
    ],
)
def test_layouts_and_ranges(tmp_path, array, expected, said):
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    splits = load_data(tmp_path / "a.npz")
    for part in (splits.train, splits.calibration, splits.test):
        assert np.array_equal(part.images.numpy(), expected[part.ids])
        assert np.array_equal(part.labels.numpy(), LABELS[part.ids])
    assert said in splits.info["note"]
    assert bool(said) or splits.info["note"].startswith("labels 0..2 are the classes; 20 % of")


@pytest.mark.parametrize("side", [8, 9])
def test_the_smoother_images_tell_how_three_channels_lie(tmp_path, side):
    images = smooth(60, side)
    expected = images.transpose(0, 3, 1, 2)
    for name, flat, said in (("a", images, "pixel by pixel"), ("b", expected, "one after another")):
        np.savez(tmp_path / f"{name}.npz", x=flat.reshape(60, -1), y=LABELS)
        splits = load_data(tmp_path / f"{name}.npz")
        assert said in splits.info["note"]
        assert np.array_equal(splits.test.images.numpy(), expected[splits.test.ids])


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "said"),
    [
        (LABELS + 1, ("1", "2", "3"), LABELS, "labels 1..3 are the classes"),
        (np.eye(4)[LABELS], ("0", "1", "2", "3"), LABELS, "one-hot labels"),
        (LABELS.astype(float), ("0", "1", "2"), LABELS, "labels 0..2"),
        (LABELS * 2, ("0", "1", "2", "3", "4"), LABELS * 2, "(1, 3 without images)"),
        (LABELS * 100 - 7, ("-7", "93", "193"), LABELS, "labels -7, 93, 193 are the classes 0..2"),
        (LABELS.astype(np.uint64) * 10**12, ("0", "1000000000000", "2000000000000"), LABELS, "are the classes 0..2"),
        (np.array(["cat", "ant", "bee"])[LABELS], ("ant", "bee", "cat"), (LABELS + 2) % 3, ""),
        (np.array([b"cat", b"ant", b"bee"])[LABELS], ("ant", "bee", "cat"), (LABELS + 2) % 3, ""),
    ],
)
def test_labels(tmp_path, labels, classes, expected, said):
    np.savez(tmp_path / "a.npz", images=GRAY, labels=labels)
    splits = load_data(tmp_path / "a.npz")
    assert splits.train.classes == classes
    assert np.array_equal(splits.test.labels.numpy(), expected[splits.test.ids])
    assert said in splits.info["note"]


def test_names_of_classes_in_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=GRAY, labels=LABELS, class_names=np.array(["x", "y", "z"]), other=np.zeros(3))
    splits = load_data(tmp_path / "a.npz")
    assert splits.train.classes == ("x", "y", "z")
    assert "arrays not read: other" in splits.info["note"]
    np.savez(tmp_path / "a.npz", images=GRAY, labels=LABELS, class_names=np.array(["x", "y"]))
    with pytest.raises(DataError, match=r"a\.npz \(a\.npz:labels\): label 2 is out of range; 2 classes: 0\.\.1"):
        load_data(tmp_path / "a.npz")


def test_names_of_classes_in_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", images=GRAY, labels=LABELS, classes=np.array([b"x", b"y", "\xe9".encode()]))
    assert load_data(tmp_path / "a.npz").train.classes == ("x", "y", "\xe9")


def test_a_file_for_each_class(tmp_path):
    for n, name in enumerate(("cat", "dog")):
        np.save(tmp_path / f"{name}.npy", pixels(30, (36,), n))
    splits = load_data(tmp_path)
    assert splits.train.classes == ("cat", "dog")
    assert splits.test.class_counts() == (6, 6)
    assert "each file is a class" in splits.info["note"]
    expected = pixels(30, (36,), 1)[splits.test.ids[-1] - 30]
    assert np.array_equal(splits.test.images[-1].numpy().ravel(), expected)
    np.save(tmp_path / "dog.npy", pixels(30, (36,), 1) / np.float32(255))
    with pytest.raises(DataError, match=r"cannot be told apart .*\(dog\): up to 1; .*\(cat\): up to 255"):
        load_data(tmp_path)
    np.save(tmp_path / "dog.npy", np.uint8(3))
    with pytest.raises(DataError, match="dog: expected images"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GRAY, "labels": LABELS[:-1]}, r"60 images, but labels \(59,\)"),
        ({"images": GRAY}, "arrays a.npz:images; each split needs images and labels, such as x_train and y_train"),
        ({"a": GRAY, "b": LABELS}, "arrays a, b; each split needs images and labels"),
        ({"x_train": GRAY, "y_train": LABELS, "x_test": GRAY}, "each split needs images and labels"),
        ({"x_test": GRAY, "y_test": LABELS}, "each split needs images and labels"),
        ({"x": GRAY - 1.0, "y": LABELS}, r"pixels -1 to 254; the rule is 0\.\.255, or 0\.\.1: give them before"),
        ({"x": GRAY * 257.0, "y": LABELS}, "pixels 0 to 65535; the rule"),
        ({"x": np.where(GRAY > 9, GRAY, np.nan), "y": LABELS}, "that are no numbers, or infinite"),
        ({"x": np.where(GRAY > 9, GRAY, np.inf), "y": LABELS}, "that are no numbers, or infinite"),
        ({"x": GRAY.astype("U3"), "y": LABELS}, r"images must be numbers .*: <U3 \(60, 6, 5\)"),
        ({"x": GRAY.astype(complex), "y": LABELS}, "images must be numbers"),
        ({"x": GRAY[:0], "y": LABELS[:0]}, r"images must be numbers .*\(0, 6, 5\)"),
        ({"x": np.uint8(3), "y": LABELS}, "images must be numbers"),
        ({"x": GRAY, "y": np.array(3)}, r"60 images, but labels \(\)"),
        ({"x": GRAY, "y": np.array([b"\xff", b"\xfe", b"a"])[LABELS]}, "texts are not UTF-8"),
        ({"x": GRAY, "y": LABELS, "classes": np.array(["a", "a", "b"])}, "class names 'a', 'a', 'b': each needs"),
        ({"x": GRAY, "y": LABELS, "classes": np.array(["", "a", "b"])}, "each needs one of its own"),
        ({"x": GRAY / 250, "y": LABELS}, r"0\.\.1 and 0\.\.255 cannot be told apart \(.*a\.npz:x\): up to 1\.02"),
        (
            {"x_train": GRAY, "y_train": LABELS, "x_test": GRAY / 255, "y_test": LABELS},
            r"cannot be told apart \(.*x_test\): up to 1; .*x_train\): up to 255\): scale them alike",
        ),
        ({"x": GRAY.reshape(60, 30), "y": LABELS}, "30 values are no square image, gray or of three channels"),
        ({"x": pixels(60, (6, 5, 4)), "y": LABELS}, r"images \(6, 5, 4\): expected \(H, W, C\) or \(C, H, W\) with 1"),
        ({"x": pixels(60, (2, 3, 3, 3)), "y": LABELS}, r"images \(2, 3, 3, 3\): expected"),
        ({"x": GRAY, "y": LABELS + 0.5}, "labels must be whole numbers or texts, found float64"),
        ({"x": GRAY, "y": np.where(LABELS == 1, np.nan, LABELS)}, "labels must be whole numbers"),
        ({"x": GRAY, "y": LABELS * 1e300}, "labels must be whole numbers"),
        ({"x": GRAY, "y": np.ones((60, 14))}, r"labels \(60, 14\), not one-hot: each image needs one label"),
        ({"x": GRAY, "y": np.zeros((60, 3, 1))}, r"60 images, but labels \(60, 3, 1\)"),
        ({"x": GRAY, "y": np.arange(60)}, "60 classes for 60 images: are these the labels?"),
        ({"x": GRAY, "y": np.zeros(60, int)}, "1 classes for 60 images"),
        (
            {"x_train": GRAY, "y_train": LABELS, "x_test": SQUARE, "y_test": LABELS},
            r"images of \(6, 5\) and \(6, 6\): all splits need one shape",
        ),
    ],
)
def test_what_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_data(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


def test_one_scale_for_all_splits(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GRAY, y_train=LABELS, x_test=(GRAY > 99) * 1, y_test=LABELS)
    splits = load_data(tmp_path / "a.npz")
    assert splits.test.images.max() == 1
    assert "warning: all or nearly all test images are equal" in splits.info["note"]


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([GRAY, None], dtype=object), y=LABELS)
    with pytest.raises(DataError, match=r"a\.npz is not a sound \.npz file .*something else than arrays of numbers"):
        load_data(tmp_path / "a.npz")
    np.save(tmp_path / "x.npy", np.array([{}, None], dtype=object))
    with pytest.raises(DataError, match=r"x\.npy is not a sound \.npy file .*something else than arrays of numbers"):
        load_data(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", ["(10**9, 28, 28)", "(999999999999,)", "(-1,)", "(True,)", "()"])
def test_a_header_is_not_believed(tmp_path, shape):
    np.save(stream := io.BytesIO(), GRAY)
    data = stream.getvalue().replace(b"(60, 6, 5)", shape.encode().ljust(10)[:10])
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npy is not a sound \.npy file"):
        load_data(tmp_path / "x.npy")
