"""CIFAR-10: pickled batches, folder, archive and its cache; hostile and damaged files."""

import contextlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_files import pixels, write_folder, write_image

from caplet.data import load_data
from caplet.data.cifar import CLASSES, read_batch
from caplet.errors import DataError

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def write_batches(folder: Path, count: int = 20, protocol: int = 2) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for seed, name in enumerate(BATCHES):
        made[name] = pixels(count, (3072,), seed)
        batch = {b"data": made[name], b"labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return made


def write_archive(path: Path, folder: Path, top: str = "") -> None:
    with tarfile.open(path, "w:xz") as archive:
        for split in ("train", "test"):
            archive.add(folder / split, arcname=f"{top}{split}")


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    write_folder(folder / "train", CLASSES, 4, (32, 32, 3))
    write_folder(folder / "test", CLASSES, 2, (32, 32, 3))
    return folder


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("direct", [False, True])
def test_batches(tmp_path, direct, protocol):
    made = write_batches(tmp_path if direct else tmp_path / "cifar-10-batches-py", protocol=protocol)
    splits = load_data("cifar10", tmp_path, download=False)
    assert splits.info["sizes"] == {"train": 90, "calibration": 10, "test": 20}
    assert splits.info["note"] == "files in CIFAR-10's format, not the published ones"
    assert np.array_equal(splits.test.images.numpy().reshape(20, 3072), made["test_batch"])
    train = np.concatenate([made[name] for name in BATCHES[:5]])
    assert np.array_equal(splits.train.images.numpy().reshape(-1, 3072), train[splits.train.ids])
    assert splits.train.classes == CLASSES


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_pickle_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_batches(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_3: not a readable CIFAR-10 batch \(it asks for posix.system"):
        load_data("cifar10", tmp_path, download=False)
    assert not (tmp_path / "hacked").exists()


def test_a_damaged_number_takes_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "test_batch").write_bytes(b"\x80\x02]r\xff\xff\xff\x3f.")  # remember a list as number 2**30
    with pytest.raises(DataError, match="not a readable CIFAR-10 batch"):
        read_batch(tmp_path / "test_batch")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_type_in_the_place_of_an_array_does_not_crash(tmp_path):
    whole = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, protocol=2)
    at = whole.index(b"cnumpy\ndtype\n")
    for old, new in ((b"q\x0fX", b"q\x0cX"), (b"tr", b"0r"), (b"NNN", b"N(N"), (b"K\x01", b"J\xff")):
        for place in range(at - 60, at + 60):
            if whole[place : place + len(old)] == old:
                (tmp_path / "test_batch").write_bytes(whole[:place] + new + whole[place + len(old) :])
                with contextlib.suppress(DataError):
                    read_batch(tmp_path / "test_batch")
    state = pickle.dumps(np.dtype(np.uint8), protocol=2).removesuffix(b".")
    for values in (
        b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x7ftb.",
        b"(NNNNNtb.",
        b"(K\x05tb.",
        b"Nb.",
    ):
        (tmp_path / "test_batch").write_bytes(state + values)
        with pytest.raises(DataError, match="not a readable CIFAR-10 batch"):
            read_batch(tmp_path / "test_batch")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "not a readable CIFAR-10 batch"),
        ({b"labels": [0]}, "'data' must be uint8"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, r"found float64 \(2, 3072\)"),
        ({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}, r"found uint8 \(2, 99\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "test_batch: 2 images, but 1 labels in test_batch"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "label 10 of image 1 is out of range"),
    ],
)
def test_bad_batches(tmp_path, batch, message):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=message):
        read_batch(path)


def test_a_batch_of_the_published_size_is_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr("caplet.data.cifar._TEST_COUNT", 2)
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=2))
    with pytest.raises(DataError, match=r"MD5 .* is not that of the published"):
        read_batch(path)


def test_truncated_batch(tmp_path):
    write_batches(tmp_path)
    content = (tmp_path / "data_batch_1").read_bytes()
    (tmp_path / "data_batch_1").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"data_batch_1: not a readable CIFAR-10 batch .*fetch it again"):
        load_data("cifar10", tmp_path, download=False)


@pytest.mark.parametrize("top", ["", "./", "cifar/"])
def test_folder_and_archive_are_equal(tmp_path, images, top):
    write_archive(tmp_path / "cifar10-jpeg.tar.xz", images, top)
    by_folder = load_data("cifar10", images, download=False)
    by_archive = load_data("cifar10", tmp_path / "cifar10-jpeg.tar.xz", download=False)
    beside = load_data("cifar10", tmp_path, download=False)
    as_folder = load_data(tmp_path / "cifar10-jpeg.tar.xz")
    assert by_folder.info["hashes"] == by_archive.info["hashes"] == beside.info["hashes"] == as_folder.info["hashes"]
    assert by_archive.info["note"] == "CIFAR-10"
    assert by_archive.test.name == "cifar10/test"
    assert as_folder.test.name == "folder/test"


def test_jpeg_images_are_noted(images):
    write_image(images / "train" / "cat" / "z.jpg", pixels(1, (32, 32, 3))[0])
    assert load_data("cifar10", images, download=False).info["note"] == "CIFAR-10 (JPEG)"


def test_other_classes_and_missing_test_images(tmp_path, images):
    (images / "train" / "cat").rename(images / "train" / "kitten")
    (images / "test" / "cat").rename(images / "test" / "kitten")
    with pytest.raises(DataError, match=r"CIFAR-10 has the classes airplane, .*found airplane, .*kitten"):
        load_data("cifar10", images, download=False)
    write_folder(tmp_path / "half" / "train", CLASSES, 4, (32, 32, 3))
    with pytest.raises(DataError, match=r"test images .* are missing"):
        load_data("cifar10", tmp_path / "half", download=False)


def test_only_expected_members_are_read(tmp_path, images):
    path = tmp_path / "odd.tar.xz"
    png = (images / "train" / "cat" / "000.png").read_bytes()
    with tarfile.open(path, "w:xz") as archive:
        for name in ("../../train/evil/0.png", "/train/evil/0.png", "train/../evil/0.png", "train/evil/.0.png", "x/y"):
            member = tarfile.TarInfo(name)
            member.size = len(png)
            archive.addfile(member, io.BytesIO(png))
        link = tarfile.TarInfo("train/evil/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for split in ("train", "test"):
            archive.add(images / split, arcname=split)
    before = sorted(tmp_path.rglob("*"))
    assert load_data("cifar10", path, download=False).train.classes == CLASSES
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_archive(tmp_path, images, keep):
    path = tmp_path / "cut.tar.xz"
    write_archive(path, images)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"cut\.tar\.xz: damaged or incomplete archive"):
        load_data("cifar10", path, download=False)


def test_file_that_is_no_archive(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(DataError, match="is a file, but not an archive"):
        load_data("cifar10", tmp_path / "x.bin", download=False)


@pytest.fixture
def decodes(monkeypatch) -> list[str]:
    """Names of the archives that were really decoded."""
    import caplet.data.folder as module

    seen: list[str] = []
    scan = module.scan_archive
    monkeypatch.setattr(module, "scan_archive", lambda path: seen.append(path.name) or scan(path))
    return seen


def test_decoded_images_are_kept(tmp_path, images, decodes, monkeypatch):
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "c.tar.xz"
    write_archive(path, images)
    first = load_data("cifar10", path)
    second = load_data("cifar10", path)
    assert decodes == ["c.tar.xz"]
    assert first.info == second.info
    (entry,) = (tmp_path / "cache" / "decoded").iterdir()

    content = entry.read_bytes()
    for damaged in (content[: len(content) // 2], content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], b""):
        entry.write_bytes(damaged)
        assert load_data("cifar10", path).info == first.info
        assert entry.read_bytes() == content
    assert len(decodes) == 4

    write_image(images / "train" / "dog" / "new.png", pixels(1, (32, 32, 3))[0])
    write_archive(path, images)
    assert load_data("cifar10", path).info["sizes"] != first.info["sizes"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", np.zeros((60, 3, 32, 32))),
        ("labels", np.zeros(59, np.int64)),
        ("counts", np.array([20, 0, 30])),
        ("counts", np.array("20")),
        ("classes", np.arange(10)),
    ],
)
def test_cache_entry_of_another_form_is_written_anew(tmp_path, images, decodes, monkeypatch, name, value):
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "c.tar.xz"
    write_archive(path, images)
    first = load_data("cifar10", path)
    (entry,) = (tmp_path / "cache" / "decoded").iterdir()
    with np.load(entry) as stored:
        arrays = dict(stored)
    np.savez(entry, **(arrays | {name: value}))
    assert load_data("cifar10", path).info == first.info
    assert len(decodes) == 2


def test_cache_that_cannot_be_written_only_costs_time(tmp_path, images, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "file"))
    path = tmp_path / "c.tar.xz"
    write_archive(path, images)
    assert len(load_data("cifar10", path).test) == 20
    assert "not stored for the next run" in caplog.text
