"""What people really bring: names of split folders, wrapped, nested and archived classes, transparency, odd files."""

import shutil
import sys
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from data_files import idx_bytes, pixels, write_folder, write_idx, write_image
from PIL import Image

from caplet.data import load_data
from caplet.data.folder import scan_archive
from caplet.errors import ConfigError, DataError

CLASSES = ("a", "b")


@pytest.mark.parametrize(
    ("train", "held", "note"),
    [
        ("train", "Test", ""),
        ("Training", "Testing", ""),
        ("TRAIN", "TEST", ""),
        ("training_set", "test_set", ""),
        ("train", "val", "the test split is the folder val"),
        ("train", "valid", "the test split is the folder valid"),
        ("Train", "Validation", "the test split is the folder Validation"),
    ],
)
def test_held_out_folders_are_the_test_split(tmp_path, train, held, note):
    write_folder(tmp_path / train, CLASSES, 10)
    test = write_folder(tmp_path / held, CLASSES, 3)
    splits = load_data(tmp_path)
    assert np.array_equal(splits.test.images.numpy(), test.transpose(0, 3, 1, 2))
    assert splits.info["sizes"] == {"train": 18, "calibration": 2, "test": 6}
    assert splits.info["note"] == note


def test_test_images_without_class_folders_are_refused(tmp_path):
    write_folder(tmp_path / "train", CLASSES, 10)
    write_folder(tmp_path, ("test",), 5)
    with pytest.raises(DataError, match=r"test: its images are in no class folders, so nothing says what they are"):
        load_data(tmp_path)
    write_folder(tmp_path / "val", CLASSES, 3)
    splits = load_data(tmp_path)
    assert splits.info["sizes"]["test"] == 6
    assert splits.info["note"] == "not read: test; the test split is the folder val"


def test_test_folder_without_train_is_no_class(tmp_path):
    write_folder(tmp_path / "Testing", CLASSES, 3)
    write_folder(tmp_path, ("c",), 3)
    with pytest.raises(DataError, match="Testing has class folders, but there is no train"):
        load_data(tmp_path)


def test_wrapped_and_nested_classes(tmp_path):
    write_folder(tmp_path / "flat", CLASSES, 10)
    plain = load_data(tmp_path / "flat")
    shutil.copytree(tmp_path / "flat", tmp_path / "wrapped" / "dataset")
    for name in CLASSES:
        shutil.copytree(tmp_path / "flat" / name, tmp_path / "nested" / name / "batch1")
    wrapped, nested = (load_data(tmp_path / name) for name in ("wrapped", "nested"))
    assert wrapped.info["hashes"] == nested.info["hashes"] == plain.info["hashes"]
    assert "the classes are the folders in dataset" in wrapped.info["note"]
    assert "20 images lie one folder deeper than their class's folder" in nested.info["note"]


def test_what_systems_leave_behind_is_no_class(tmp_path):
    write_folder(tmp_path, CLASSES, 10)
    plain = load_data(tmp_path)
    for folder in ("__MACOSX/a", "@eaDir", "a/@eaDir", "#recycle"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "._000.png").write_bytes(b"x")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    assert load_data(tmp_path).info == plain.info


def test_a_class_folder_asks_for_its_parent(tmp_path):
    write_folder(tmp_path / "my images", CLASSES, 3)
    with pytest.raises(DataError, match=rf"3 images, but no class folders.*give its parent '{tmp_path}/my images'"):
        load_data(tmp_path / "my images" / "a")
    write_folder(tmp_path / "both" / "train", CLASSES, 10)
    write_folder(tmp_path / "both" / "Test", CLASSES, 3)
    assert "Test beside the folder is not read" in load_data(tmp_path / "both" / "train").info["note"]


@pytest.mark.parametrize("top", ["", "dataset/"])
@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ".TGZ", ".tar"])
def test_archives_of_class_folders(tmp_path, monkeypatch, ending, top):
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "flat", CLASSES, 10)
    plain, path = load_data(tmp_path / "flat"), tmp_path / f"shapes{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "flat").rglob("*.png")):
                archive.write(file, f"{top}{file.relative_to(tmp_path / 'flat')}")
            archive.writestr("../../evil/0.png", b"x")
            archive.writestr("__MACOSX/a/._0.png", b"x")
    else:
        with tarfile.open(path, "w:gz" if "gz" in ending.lower() else "w") as archive:
            archive.add(tmp_path / "flat", top or ".")
    for _ in range(2):  # decoded, then from the cache
        assert load_data(path).info["hashes"] == plain.info["hashes"]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="damaged or incomplete archive"):
        load_data(path)


def test_other_archives_and_stand_ins_are_named(tmp_path):
    for name, content, message in (
        ("x.tar.zst", b"1", r"x\.tar\.zst is no image folder, and no archive that is read \(\.tar.*unpack it"),
        ("x.zip", b"version https://git-lfs.github.com/spec/v1\n", r"x\.zip is a Git LFS pointer, .*git lfs pull"),
        ("x.tar", b"\n<!DOCTYPE HTML><html>", r"x\.tar is a web page, not the file itself"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / name)
    write_folder(tmp_path / "images", CLASSES, 3)
    (tmp_path / "images" / "a" / "000.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"000\.png is a web page"):
        load_data(tmp_path / "images")


def test_endings_of_pillow_are_read_and_others_counted(tmp_path):
    write_folder(tmp_path, CLASSES, 10)
    Image.fromarray(pixels(1, (6, 5, 3))[0]).save(tmp_path / "a" / "z.jfif", format="JPEG")
    for name in ("x.gifv", "y.gifv", "notes"):
        (tmp_path / "b" / name).write_text("no image")
    info = load_data(tmp_path).info
    assert sum(info["sizes"].values()) == 21
    assert "3 files left out (.gifv 2, no ending 1)" in info["note"]


def ink(folder, colour: int, mode: str) -> None:
    """Images whose drawing is in their transparency alone."""
    shape = np.zeros((8, 8), np.uint8)
    for name in CLASSES:
        for i in range(10):
            alpha = shape.copy()
            alpha[i % 8, :] = 255
            bands = [np.full_like(shape, colour)] * (len(mode) - 1)
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.merge(mode, [Image.fromarray(band) for band in (*bands, alpha)]).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("colour", "ground"), [(0, "white"), (255, "black")])
def test_transparency_keeps_the_drawing(tmp_path, mode, colour, ground):
    ink(tmp_path, colour, mode)
    chosen, stated = load_data(tmp_path), load_data(tmp_path, background=ground)
    assert chosen.info["hashes"] == stated.info["hashes"]
    assert sorted(chosen.train.images.unique().tolist()) == [0, 255]
    assert chosen.train.images.ne(colour).float().mean() == 0.875
    assert f"transparent pixels were laid over {ground}, which keeps more contrast" in chosen.info["note"]
    other = load_data(tmp_path, background="black" if ground == "white" else "white")
    assert "warning: all or nearly all train images are equal, or nearly so" in other.info["note"]
    with pytest.raises(ConfigError, match="background must be a colour"):
        load_data(tmp_path, background="pale-ish")


def test_classes_missing_from_a_split_are_said(tmp_path, capsys):
    write_folder(tmp_path, CLASSES, 20)
    write_image(tmp_path / "c" / "0.png", pixels(1, (6, 5, 3))[0])
    note = load_data(tmp_path, progress=True).info["note"]
    for split in ("calibration", "test"):
        assert f"warning: no {split} image is of class c" in note
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if line] == [
        "folder: 20 % of the images were cut off as the test split",
        "warning: no calibration image is of class c",
        "warning: no test image is of class c",
    ]


@pytest.mark.parametrize("counts", [(3, 3), (3, 40), (3, 3, 200), (3,) * 12, (1, 3, 90)])
def test_no_split_lacks_a_class_of_three_images(tmp_path, counts):
    for name, count in zip("abcdefghijkl", counts, strict=False):
        write_folder(tmp_path, (name,), count, (2, 2))
    splits = load_data(tmp_path)
    for part in (splits.train, splits.calibration, splits.test):
        for count, found in zip(counts, part.class_counts(), strict=True):
            assert found or count < 3


def test_a_folder_named_like_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "digits", CLASSES, 10)
    with pytest.raises(DataError, match=r"'digits' is a dataset and a folder here: give '\./digits' for the folder"):
        load_data("digits")
    assert load_data("./digits").train.classes == CLASSES
    assert len(load_data("digits", root=tmp_path).train.classes) == 10


def test_names_of_other_datasets_are_not_corrected_to_known_ones():
    for name in ("emnist", "EMNIST_letters", "qmnist", "K49-mnist"):
        with pytest.raises(DataError, match=f"'{name}' is not known by name: give the folder of its IDX files") as told:
            load_data(name)
        assert ("emnist-byclass, emnist-bymerge" in str(told.value)) == ("emnist" in name.lower())
    for name, known in (("KMNIST", "kmnist"), ("cifar-100", "cifar100")):
        with pytest.raises(DataError, match=f"unknown dataset '{name}'; did you mean '{known}'"):
            load_data(name)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "names", ["train-{}-idx{}-ubyte", "train-{}.idx{}-ubyte", "emnist-letters-train-{}-idx{}-ubyte"]
)
def test_idx_files_of_any_names_and_classes(tmp_path, first, names):
    images, labels = pixels(130, (7, 6)), (np.arange(130) % 26 + first).astype(np.uint8)
    (tmp_path / names.format("images", 3)).write_bytes(idx_bytes(images))
    (tmp_path / names.format("labels", 1)).write_bytes(idx_bytes(labels))
    splits = load_data(tmp_path)
    letters = first and "emnist" in names
    named = tuple("abcdefghijklmnopqrstuvwxyz") if letters else tuple(str(label) for label in range(first, 26 + first))
    assert splits.train.classes == named
    upright = images.transpose(0, 2, 1) if "emnist" in names else images
    assert np.array_equal(splits.test.images[:, 0].numpy(), upright[splits.test.ids])
    assert ("put upright" in splits.info["note"]) == ("emnist" in names)
    every = {int(i): int(k) for part in (splits.train, splits.test) for i, k in zip(part.ids, part.labels, strict=True)}
    assert all(labels[i] == k + first for i, k in every.items())
    assert letters or f"labels {first}..{25 + first} are the classes" in splits.info["note"]
    (tmp_path / names.format("labels", 1)).unlink()
    with pytest.raises(DataError, match="needs an IDX file of images and one of labels"):
        load_data(tmp_path)


def test_the_folder_raw_or_its_parent_may_be_given(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    found = [load_data("mnist", tmp_path / place, download=False) for place in ("", "MNIST", "MNIST/raw")]
    assert found[0].info == found[1].info == found[2].info
    assert found[0].info["note"] == "files in mnist's format, not the published ones"


@pytest.mark.shared
def test_published_files_are_told_apart(shared):
    with pytest.raises(DataError, match=r"is the file of fashion-mnist train images, .*give --data fashion-mnist"):
        load_data("mnist", shared / "data" / "FashionMNIST" / "raw", download=False)
    assert load_data("mnist", shared / "data", download=False).info["note"] == ""
    by_path = load_data(shared / "data" / "FashionMNIST" / "raw")
    assert by_path.train.classes[0] == "T-shirt/top"
    assert by_path.info["note"] == "the published files of fashion-mnist"


def test_a_class_may_be_spelt_in_two_ways(tmp_path):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        write_folder(tmp_path / split, (name, "tea"), 10)
    splits = load_data(tmp_path)
    assert splits.test.classes == ("caf\u00e9", "tea")
    assert splits.test.class_counts() == (10, 10)
    for name in ("caf\u00e9", "cafe\u0301"):  # two folders of one split stay two
        write_folder(tmp_path / "both", (name,), 10)
    assert load_data(tmp_path / "both").train.class_counts() == (7, 7)


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_links_to_folders_around_them_are_left_out(tmp_path):
    write_folder(tmp_path, ("a", "b"), 10)
    (tmp_path / "all").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    elsewhere = write_folder(tmp_path.parent / "more", ("d",), 10)
    (tmp_path / "c").symlink_to(tmp_path.parent / "more" / "d")
    splits = load_data(tmp_path)
    assert splits.train.classes == ("a", "b", "c")
    assert sum(splits.info["sizes"].values()) == 30
    assert "left out" not in splits.info["note"]
    assert len(elsewhere) == 10


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_of_files_of_one_name_in_an_archive_the_last_counts(tmp_path, ending):
    write_folder(tmp_path / "one", ("a", "b"), 10)
    write_folder(tmp_path / "two", ("a",), 1, (6, 5))
    path = tmp_path / f"x.{ending}"
    files = [*sorted((tmp_path / "one").rglob("*.png")), *sorted((tmp_path / "two").rglob("*.png"))]
    names = [str(file.relative_to(file.parents[1])) for file in files]
    with warnings.catch_warnings(action="ignore"):  # zipfile's about the name that is there twice
        if ending == "tar":
            with tarfile.open(path, "w") as archive:
                for file, name in zip(files, names, strict=True):
                    archive.add(file, name)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for file, name in zip(files, names, strict=True):
                    archive.write(file, name)
    found = scan_archive(path).folders["a"].images
    assert len(found) == 10
    assert [image.data for image in found if image.data == files[-1].read_bytes()]
