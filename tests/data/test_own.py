"""What a path may hold besides class folders: files of other forms, in folders and archives, found by their names."""

import gzip
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from data_files import idx_bytes, pixels, write_folder, write_idx

from caplet.data import load_data, load_saved_splits
from caplet.data.norb import read_matrix
from caplet.errors import ConfigError, DataError

FINE = [f"thing {n}" for n in range(6)]
MAGIC = {1: 0x1E3D4C55, 4: 0x1E3D4C54}


def matrix(array: np.ndarray) -> bytes:
    sizes = [*array.shape, 1, 1, 1][: max(3, array.ndim)]
    head = struct.pack(f"<II{len(sizes)}I", MAGIC[array.itemsize], array.ndim, *sizes)
    return head + array.astype(array.dtype.newbyteorder("<")).tobytes()


def write_norb(folder, count=40, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, split in enumerate(("training", "testing")):
        name = f"smallnorb-5x46789x9x18x6x2x96x96-{split}"
        made[split] = pixels(count, (2, 12, 10), seed)
        for kind, array in (("dat", made[split]), ("cat", np.arange(count, dtype=np.int32) % 5)):
            data = matrix(array)
            (folder / f"{name}-{kind}.mat{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return made


def write_cifar100(folder, binary=False):
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, (name, count) in enumerate((("train", 60), ("test", 20))):
        made[name], labels = pixels(count, (3072,), seed), [i % 6 for i in range(count)]
        coarse = [5 - k for k in labels]
        if binary:
            rows = np.concatenate([np.array([coarse, labels], np.uint8).T, made[name]], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            batch = {
                b"data": made[name],
                b"fine_labels": labels,
                b"coarse_labels": coarse,
                b"filenames": [b"x"] * count,
            }
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [name.replace(" ", "_") for name in FINE]
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        meta = {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"a"]}
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return made


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("how", ["name", "name, at once", "folder", "parent", "zip"])
def test_cifar100(tmp_path, binary, how):
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    made = write_cifar100(folder, binary)
    if how.startswith("name"):
        splits = load_data("cifar100", folder if how == "name, at once" else tmp_path, download=False)
    elif how == "zip":
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"a/{path.name}")
        splits = load_data(tmp_path / "all.zip")
    else:
        splits = load_data(folder if how == "folder" else tmp_path)
    assert splits.train.classes == tuple(name.replace(" ", "_") for name in FINE)
    assert splits.info["sizes"] == {"train": 54, "calibration": 6, "test": 20}
    assert np.array_equal(splits.test.images.numpy().reshape(20, -1), made["test"])
    assert splits.test.labels.tolist() == [i % 6 for i in range(20)]
    assert "files in CIFAR-100's format, not the published ones" in splits.info["note"]
    assert "fine labels" in splits.info["note"]
    assert ("binary version" in splits.info["note"]) == binary


def test_cifar10_in_binary_form(tmp_path):
    rows = pixels(20, (3073,))
    rows[:, 0] %= 10
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    splits = load_data("cifar10", tmp_path, download=False)
    assert np.array_equal(splits.test.images.numpy().reshape(20, -1), rows[:, 1:])
    assert splits.test.labels.tolist() == rows[:, 0].tolist()
    assert load_data(tmp_path).info["hashes"] == splits.info["hashes"]
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(
        DataError, match=r"test_batch\.bin: 61,459 bytes; CIFAR-10 in binary form has a multiple of 3073"
    ):
        load_data("cifar10", tmp_path, download=False)


def test_names_of_cifar100_that_are_none(tmp_path):
    write_cifar100(tmp_path)
    for meta in ([1], {b"fine_label_names": 3}, {b"fine_label_names": [b"a", b"a"]}, {}):
        (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
        with pytest.raises(DataError, match=r"meta: (not a readable CIFAR-100 batch|names of classes expected)"):
            load_data("cifar100", tmp_path, download=False)


@pytest.mark.parametrize("packed", [False, True])
def test_smallnorb(tmp_path, packed):
    made = write_norb(tmp_path / "smallnorb", packed=packed)
    splits = load_data("smallnorb", tmp_path, download=False)
    assert splits.train.classes == ("animal", "human", "airplane", "truck", "car")
    assert splits.train.image_shape == (2, 12, 10)
    assert np.array_equal(splits.test.images.numpy(), made["testing"])
    assert splits.test.labels.tolist() == [n % 5 for n in range(40)]
    assert load_data(tmp_path).info["hashes"] == splits.info["hashes"]
    small = load_data("smallnorb", tmp_path, size=6)
    alone = load_data("smallnorb", tmp_path, size=6).test.images[:, 1]
    assert small.test.image_shape == (2, 6, 6)
    assert np.array_equal(small.test.images[:, 1], alone)
    with pytest.raises(ConfigError, match="images of 2 channels are no pictures: leave channels"):
        load_data("smallnorb", tmp_path, channels=1)


def test_channels_are_resized_one_by_one(tmp_path):
    images, labels = pixels(40, (2, 12, 10)), np.arange(40) % 5
    for name, array in (("both", images), ("left", images[:, :1]), ("right", images[:, 1:])):
        np.savez(tmp_path / f"{name}.npz", x=array, y=labels)
    both, *each = (load_data(tmp_path / f"{name}.npz", size=(5, 7)).test.images for name in ("both", "left", "right"))
    assert np.array_equal(both, np.concatenate(each, axis=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a matrix of smallNORB \(it starts with 00000000\)"),
        (matrix(pixels(4, (2, 3, 3)))[:-1], r"its header \[4, 2, 3, 3\] asks for 72"),
        (matrix(pixels(4, (2, 3, 3))) + b"x", "73 bytes or more"),
        (struct.pack("<6I", MAGIC[1], 4, *[2**32 - 1] * 4), "asks for"),
        (struct.pack("<2I", MAGIC[1], 9), "not a matrix of smallNORB"),
        (matrix(pixels(40, (2, 3))), r"images must be bytes \(N, 2, H, W\)"),
        (matrix(pixels(39, (2, 3, 3))), "39 images, but 40 labels"),
    ],
)
def test_damaged_smallnorb(tmp_path, content, message):
    write_norb(tmp_path)
    path = tmp_path / "smallnorb-5x46789x9x18x6x2x96x96-testing-dat.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data("smallnorb", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"no smallNORB in .*training-cat\.mat"):
        load_data("smallnorb", tmp_path)


def test_integers_of_smallnorb(tmp_path):
    (tmp_path / "x").write_bytes(matrix(np.array([3, -70000], np.int32)))
    assert read_matrix(tmp_path / "x").tolist() == [3, -70000]


def write_emnist(folder, split, classes, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, part in enumerate(("train", "test")):
        made[part] = pixels(classes * 4, (8, 8), seed)
        labels = (np.arange(classes * 4) % classes + first).astype(np.uint8)
        (folder / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx_bytes(made[part]))
        (folder / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return made


@pytest.mark.parametrize(
    ("split", "classes", "first", "some"),
    [
        ("letters", 26, 1, {0: "a", 25: "z"}),
        ("balanced", 47, 0, {9: "9", 10: "A", 36: "a", 46: "t"}),
        ("digits", 10, 0, {}),
    ],
)
@pytest.mark.parametrize("how", ["name", "folder"])
def test_emnist_is_put_upright(tmp_path, split, classes, first, some, how):
    folder = tmp_path / "EMNIST" / "raw"
    made = write_emnist(folder, split, classes, first)
    write_emnist(folder, "mnist", 10)
    if how == "name":
        splits = load_data(f"emnist-{split}", tmp_path, download=False)
    else:
        with pytest.raises(DataError, match=r"several datasets \(emnist-.*give --data emnist-SPLIT --root"):
            load_data(folder)
        for path in folder.glob("emnist-mnist-*"):
            path.unlink()
        splits = load_data(folder)
    assert len(splits.test.classes) == classes
    assert {place: splits.test.classes[place] for place in some} == some
    assert np.array_equal(splits.test.images[:, 0].numpy(), made["test"].transpose(0, 2, 1))
    assert splits.test.labels.tolist() == [n % classes for n in range(classes * 4)]
    assert "rows and columns exchanged: the images were put upright" in splits.info["note"]


def test_kmnist(tmp_path):
    made = write_idx(tmp_path / "KMNIST" / "raw")
    splits = load_data("kmnist", tmp_path, download=False)
    assert splits.test.classes[:3] == ("o", "ki", "su")
    assert np.array_equal(splits.test.images[:, 0].numpy(), made["t10k-images-idx3-ubyte"])
    assert "whether these are the published files was not looked at" in splits.info["note"]


def test_class_names_are_torchvisions():
    from torchvision.datasets import EMNIST, KMNIST

    from caplet.data.idx import EMNIST_CLASSES, KMNIST_CLASSES

    assert list(KMNIST_CLASSES) == KMNIST.classes
    for split, names in EMNIST.classes_split_dict.items():
        assert list(EMNIST_CLASSES[split]) == [name for name in names if name != "N/A"]


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_archives_of_files(tmp_path, ending):
    write_idx(tmp_path / "in" / "MNIST" / "raw")
    (tmp_path / "in" / "__MACOSX").mkdir()
    path = tmp_path / f"all.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "in").rglob("*"):
                archive.write(file, file.relative_to(tmp_path / "in"))
            archive.writestr("../evil", b"x")
    else:
        with tarfile.open(path, f"w:{ending[4:]}") as archive:
            archive.add(tmp_path / "in", "all")
    splits = load_data(path)
    assert splits.info["hashes"] == load_data(tmp_path / "in" / "MNIST" / "raw").info["hashes"]
    assert splits.info["root"] == str(path)
    assert "MNIST/raw" in splits.info["note"]
    splits.save_ids(tmp_path / "ids.json")
    assert load_saved_splits(tmp_path / "ids.json", path).info["hashes"] == splits.info["hashes"]
    assert not (tmp_path.parent / "evil").exists()


def test_errors_in_an_archive_name_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/train.csv", b"label,pixel0\n0,1\n0,700\n")
    with pytest.raises(DataError, match=rf"^{tmp_path / 'a.zip'}/x/train\.csv, line 3, column 2: '700' is no pixel"):
        load_data(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(300 << 20))
    with pytest.raises(DataError, match=r"b\.zip: it unpacks to more than 268,435,456 bytes: unpack it"):
        load_data(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("notes.txt", b"x")
    with pytest.raises(DataError, match=r"c\.zip: no class folders with images found"):
        load_data(tmp_path / "c.zip")


def test_several_datasets_in_a_folder(tmp_path):
    for name in ("MNIST", "FashionMNIST"):
        write_idx(tmp_path / name / "raw")
    with pytest.raises(DataError, match=r"several datasets, in FashionMNIST/raw, MNIST/raw: give the folder of one"):
        load_data(tmp_path)


def test_class_folders_win_over_a_table_beside_them(tmp_path):
    write_folder(tmp_path, ("a", "b"), 10)
    (tmp_path / "labels.csv").write_text("file,label\nx.png,3\n")
    assert load_data(tmp_path).train.classes == ("a", "b")


def test_svhn_by_folder(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    for split, count in (("train", 40), ("test", 20)):
        content = {"X": pixels(count, (32, 32, 3)).transpose(1, 2, 3, 0), "y": (np.arange(count) % 10 + 1)[:, None]}
        savemat(tmp_path / f"{split}_32x32.mat", content)
    by_name, by_path = load_data("svhn", tmp_path, download=False), load_data(tmp_path)
    assert by_name.info["hashes"] == by_path.info["hashes"]
