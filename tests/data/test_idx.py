"""MNIST and Fashion-MNIST: small IDX files, the real ones, and broken ones."""

import gzip

import numpy as np
import pytest
from data_files import IDX_NAMES, idx_bytes, write_idx

from caplet.data import load_data
from caplet.data.idx import read_idx
from caplet.errors import DataError


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
@pytest.mark.parametrize("direct", [False, True])
def test_small_files(tmp_path, name, folder, direct):
    place = tmp_path if direct else tmp_path / folder / "raw"
    made = write_idx(place)
    splits = load_data(name, tmp_path, download=False)
    assert splits.info["sizes"] == {"train": 50, "calibration": 10, "test": 20}
    assert splits.info["root"] == str(place)
    assert np.array_equal(splits.test.images[:, 0].numpy(), made["t10k-images-idx3-ubyte"])
    assert np.array_equal(splits.test.labels.numpy(), made["t10k-labels-idx1-ubyte"])
    assert np.array_equal(splits.train.images[:, 0].numpy(), made["train-images-idx3-ubyte"][splits.train.ids])


def test_gzipped_files(tmp_path):
    made = write_idx(tmp_path)
    for name in IDX_NAMES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    splits = load_data("mnist", tmp_path, download=False)
    assert np.array_equal(splits.test.images[:, 0].numpy(), made["t10k-images-idx3-ubyte"])


def test_the_other_dataset_is_not_taken_for_it(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match=r"mnist not found under .*put MNIST/raw/\{train-images"):
        load_data("mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            idx_bytes(np.zeros((20, 28, 28), np.uint8))[:-5],
            r"truncated: 15691 bytes, its header \(20, 28, 28\) asks for 15696",
        ),
        (idx_bytes(np.zeros((20, 28, 28), np.uint8)) + b"x", "too long: 15697 bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated: its header has 6 of 16 bytes"),
        (b"", "not an IDX file"),
        (b"PNG and more", "not an IDX file: it starts with '504e4720'"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "truncated: 16 bytes"),
        (gzip.compress(idx_bytes(np.zeros((20, 28, 28), np.uint8)))[:-9], "damaged gzip file"),
        (idx_bytes(np.zeros((19, 28, 28), np.uint8)), "19 images, but 20 labels in t10k-labels-idx1-ubyte"),
        (
            idx_bytes(np.zeros(20, np.uint8)),
            "images of 3 dimensions and labels of 1, found uint8 of 1 and uint8 of 1",
        ),
    ],
    ids=["cut", "long", "header", "empty", "other", "huge", "gzip", "count", "dims"],
)
def test_broken_images_file(tmp_path, content, message):
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_data("mnist", tmp_path, download=False)
    assert "t10k-images-idx3-ubyte" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_label_out_of_range(tmp_path):
    made = write_idx(tmp_path)
    labels = made["train-labels-idx1-ubyte"]
    labels[17] = 10
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: label 10 of image 17 is out of range 0\.\.9: fetch"):
        load_data("mnist", tmp_path, download=False)


def test_no_permission(tmp_path, monkeypatch):
    write_idx(tmp_path)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match="train-images-idx3-ubyte: permission denied"):
        load_data("mnist", tmp_path, download=False)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_real_files_equal_torchvisions(shared, name, folder):
    import torchvision.datasets

    splits = load_data(name, shared / "data", download=False)
    assert splits.info["sizes"] == {"train": 55_000, "calibration": 5_000, "test": 10_000}
    for train, part in ((True, splits.train), (True, splits.calibration), (False, splits.test)):
        theirs = getattr(torchvision.datasets, folder)(shared / "data", train=train)
        assert np.array_equal(part.images[:, 0].numpy(), theirs.data[part.ids].numpy())
        assert np.array_equal(part.labels.numpy(), theirs.targets[part.ids].numpy())
    if name == "fashion-mnist":
        assert theirs.classes == list(splits.test.classes)


@pytest.mark.shared
def test_real_images_are_those_of_the_reference_outputs(shared):
    stored = np.load(shared / "models" / "shallow_fmnist.reference.npz")
    test = load_data("fashion-mnist", shared / "data", download=False).test.with_ids(stored["index"])
    assert np.array_equal(test.images.numpy(), stored["images"])
    assert np.array_equal(test.labels.numpy(), stored["labels"])


def test_read_idx_gives_an_own_array(tmp_path):
    (tmp_path / "x").write_bytes(idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3)))
    array = read_idx(tmp_path / "x")
    array[0, 0] = 9
    assert array.tolist() == [[9, 1, 2], [3, 4, 5]]


def test_a_folder_of_idx_files_has_the_images_of_each_split(tmp_path):
    made = write_idx(tmp_path)
    splits = load_data(tmp_path)
    assert splits.info["sizes"] == {"train": 50, "calibration": 10, "test": 20}
    for part, name in ((splits.train, "train"), (splits.calibration, "train"), (splits.test, "t10k")):
        assert np.array_equal(part.images[:, 0].numpy(), made[f"{name}-images-idx3-ubyte"][part.ids])
        assert np.array_equal(part.labels.numpy(), made[f"{name}-labels-idx1-ubyte"][part.ids])


@pytest.mark.parametrize("zipped", [False, True])
def test_headers_tell_what_other_names_do_not(tmp_path, zipped):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (40, 5, 4)), np.arange(40) % 4
    fractions = idx_bytes((pixels[:30] / 255).astype(">f4")).replace(b"\0\0\x08", b"\0\0\x0d", 1)
    numbers = idx_bytes(labels[:30].astype(">i4")).replace(b"\0\0\x08", b"\0\0\x0c", 1)
    colour = (pixels[30:, :, :, None] / 255).astype(">f4").repeat(3, axis=3)
    files = {"training.a.bin": fractions, "training.b.bin": numbers}
    files["testing.a.bin"] = idx_bytes((pixels[30:] / 255).astype(">f4")).replace(b"\0\0\x08", b"\0\0\x0d", 1)
    files["testing.b.bin"] = idx_bytes(labels[30:].astype(np.uint8))
    for name, content in files.items():
        (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    (tmp_path / "readme").write_text("two files of each split")
    test = load_data(tmp_path).test
    assert test.images[:, 0].tolist() == pixels[30:].tolist()
    assert test.labels.tolist() == labels[30:].tolist()
    (tmp_path / "testing.a.bin").write_bytes(idx_bytes(colour).replace(b"\0\0\x08", b"\0\0\x0d", 1))
    with pytest.raises(DataError, match="all splits need one shape"):
        load_data(tmp_path)
