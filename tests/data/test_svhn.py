"""SVHN: the reader of its .mat files, on small files written here."""

import struct
import zlib

import numpy as np
import pytest
from data_files import pixels
from scipy.io import savemat

from caplet.data import load_data
from caplet.data.svhn import read_mat
from caplet.errors import DataError


def write(path, count=40, seed=0, **change):
    images = pixels(count, (32, 32, 3), seed)
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)
    savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]} | change, do_compression=True)
    return images, labels


def test_small_files(tmp_path):
    images, labels = write(tmp_path / "train_32x32.mat")
    test_images, _ = write(tmp_path / "test_32x32.mat", 20, seed=1)
    splits = load_data("svhn", tmp_path, download=False)
    assert splits.info["sizes"] == {"train": 30, "calibration": 10, "test": 20}
    assert splits.info["note"] == "files in SVHN's format, not the published ones"
    assert np.array_equal(splits.test.images.numpy(), test_images.transpose(0, 3, 1, 2))
    assert np.array_equal(splits.train.images.numpy(), images.transpose(0, 3, 1, 2)[splits.train.ids])
    assert np.array_equal(splits.train.labels.numpy(), labels[splits.train.ids] % 10)
    assert splits.test.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_reads_as_torchvision_does(tmp_path, monkeypatch):
    from torchvision.datasets import SVHN

    write(tmp_path / "test_32x32.mat")
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    theirs = SVHN(tmp_path, split="test")
    images, labels = read_mat(tmp_path / "test_32x32.mat")
    assert np.array_equal(images, theirs.data)
    assert np.array_equal(labels, theirs.labels)


def test_one_image(tmp_path):
    savemat(tmp_path / "one.mat", {"X": pixels(1, (32, 32, 3))[0], "y": np.array([[10]])})
    images, labels = read_mat(tmp_path / "one.mat")
    assert images.shape == (1, 3, 32, 32)
    assert labels.tolist() == [0]


def test_a_file_of_published_length_must_be_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr("caplet.data.svhn._PUBLISHED_COUNTS", {"train": 40, "test": 20})
    write(tmp_path / "train_32x32.mat")
    write(tmp_path / "test_32x32.mat", 20)
    with pytest.raises(
        DataError, match=r"train_32x32\.mat: MD5 [0-9a-f]{32} is not that of the published file \(e26dedcc"
    ):
        load_data("svhn", tmp_path, download=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full((40, 1), 11)}, r"label 11 of image 0 is out of range 1\.\.10"),
        ({"y": np.zeros((40, 1))}, "out of range"),
        ({"y": np.full((40, 1), 1.5)}, "out of range"),
        ({"y": np.ones((39, 1))}, r"x\.mat: 40 images, but 39 labels in x\.mat"),
        ({"X": np.zeros((32, 32, 3, 40))}, r"X must be uint8 \(32, 32, 3, N\), found float64"),
        ({"X": np.zeros((28, 28, 3, 40), np.uint8)}, r"found uint8 \(28, 28, 3, 40\)"),
    ],
)
def test_bad_content(tmp_path, change, message):
    write(tmp_path / "x.mat", **change)
    with pytest.raises(DataError, match=message):
        read_mat(tmp_path / "x.mat")


def test_damaged_or_other_files(tmp_path):
    savemat(tmp_path / "other.mat", {"a": 1})
    with pytest.raises(DataError, match="variables X and y expected"):
        read_mat(tmp_path / "other.mat")
    write(tmp_path / "cut.mat")
    content = (tmp_path / "cut.mat").read_bytes()
    for keep in (0, 60, 200, len(content) // 2):
        (tmp_path / "cut.mat").write_bytes(content[:keep])
        with pytest.raises(DataError, match=r"cut\.mat: (not a readable \.mat file|variables X and y expected)"):
            read_mat(tmp_path / "cut.mat")


def element(kind, content, order="<"):
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def variable(name, values, number, kind, order="<"):
    """A variable of the class ``number``, its values stored by the type ``kind``; small parts in the short form."""
    sizes = struct.pack(f"{order}{values.ndim}i", *values.shape)
    short = struct.pack(f"{order}I", len(name) << 16 | 1) + name.ljust(4, b"\0")
    whole = element(6, struct.pack(f"{order}II", number, 0), order) + element(5, sizes, order) + short
    return element(14, whole + element(kind, values.tobytes("F"), order), order)


def file(*variables, order="<"):
    return b"MATLAB 5.0 MAT-file".ljust(124) + (b"\x00\x01IM" if order == "<" else b"\x01\x00MI") + b"".join(variables)


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_byte_order_and_values_stored_in_fewer_bytes(tmp_path, order):
    images, labels = pixels(7, (32, 32, 3)), np.arange(7, dtype=np.uint8)[:, None] + 1
    parts = variable(b"X", images.transpose(1, 2, 3, 0), 9, 2, order), variable(b"y", labels, 6, 2, order)
    (tmp_path / "x.mat").write_bytes(file(*parts, order=order))
    found, digits = read_mat(tmp_path / "x.mat")
    assert np.array_equal(found, images.transpose(0, 3, 1, 2))
    assert digits.tolist() == [1, 2, 3, 4, 5, 6, 7]


def zeros(megabytes):
    """So many megabytes of zeros, compressed at once: a full flush lets a block stand any number of times."""
    pack = zlib.compressobj()
    first, again = (pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (megabytes - 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89HDF\r\n\x1a\n" + bytes(200),
        file(struct.pack("<II", 14, 2**32 - 1)),
        file(struct.pack("<II", 14 | 9 << 16, 0)),
        file(element(14, b"")),
        file(element(14, element(6, b""))),
        file(element(15, zeros(300))),
        file(element(15, zlib.compress(b"")[:-1])),
        file(element(15, zlib.compress(b""))),
        file(element(15, b"not zlib")),
        file(variable(b"X", np.zeros((2, 2), np.uint8), 1, 2)),
        file(variable(b"X", np.zeros((2, 2), np.uint8), 9, 88)),
        file(variable(b"X", np.zeros((2, 2), np.uint8), 9, 9)),
        file(
            variable(b"X", np.zeros((2, 2), np.uint8), 9, 2).replace(struct.pack("<2i", 2, 2), b"\xff\xff\xff\x7f" * 2)
        ),
    ],
)
def test_sizes_in_a_damaged_file_are_not_believed(tmp_path, content):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mat: not a readable \.mat file"):
        read_mat(tmp_path / "x.mat")
