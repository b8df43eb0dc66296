"""load_data: names, paths, digits, limit, downloads."""

import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_idx
from sklearn.datasets import load_digits

from caplet.data import DATASETS, load_data
from caplet.data.files import cache_dir
from caplet.data.load import load_digits as load_source
from caplet.data.source import DataRequest
from caplet.errors import DataError


def test_names():
    assert {"digits", "mnist", "kmnist", "emnist-letters", "cifar100", "smallnorb", "svhn", "folder"} < {*DATASETS}


def test_registry_refuses_duplicates():
    with pytest.raises(ValueError, match="dataset mnist is registered already"):
        DATASETS.add("mnist", DATASETS["digits"])


@pytest.mark.parametrize(
    ("name", "near"), [("minst", "mnist"), ("Fashion_MNIST", "fashion-mnist"), ("cifar", "cifar10")]
)
def test_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(DataError, match=rf"unknown dataset '{name}'; did you mean '{near}'\? \(known: digits, mnist"):
        load_data(name)


def test_unknown_name_without_a_near_one():
    with pytest.raises(DataError, match=r"unknown dataset 'qqqq' \(known: "):
        load_data("qqqq")


def test_digits_are_scaled_exactly_and_divided(digits):
    bunch = load_digits()
    parts = (digits.train, digits.calibration, digits.test)
    assert [len(part) for part in parts] == [1295, 143, 359]
    ids = torch.cat([part.ids for part in parts])
    assert sorted(ids.tolist()) == list(range(1797))
    for part in parts:
        exact = np.floor(bunch.images[part.ids] * 255 / 16 + 0.5)
        assert np.array_equal(part.images[:, 0].numpy(), exact)
        assert np.array_equal(part.labels.numpy(), bunch.target[part.ids])
        assert min(part.class_counts()) >= 14
    assert (int(digits.train.images.min()), int(digits.train.images.max())) == (0, 255)


def test_info_says_where_the_data_comes_from(digits):
    info = digits.info
    assert info["name"] == "digits"
    assert info["source"] == "scikit-learn"
    assert info["calibration_seed"] == 0
    assert "cut by caplet" in info["test_split"]
    assert info["hashes"] == {s: getattr(digits, s).sha256() for s in ("train", "calibration", "test")}
    assert info["image_shape"] == [1, 8, 8]


def test_the_embedded_splits_never_change(digits):
    assert {split: digest[:16] for split, digest in digits.info["hashes"].items()} == {
        "train": "51d9bb0e848ac56c",
        "calibration": "15203c421fc1a97e",
        "test": "4f4d6b8ab281cb6b",
    }


def test_calibration_seed_and_size_leave_test_alone(digits):
    other = load_data("digits", calibration_seed=1, calibration_size=200)
    assert other.info["hashes"]["test"] == digits.info["hashes"]["test"]
    assert len(other.calibration) == 200
    assert set(other.calibration.ids.tolist()) != set(digits.calibration.ids.tolist())
    assert not set(other.calibration.ids.tolist()) & set(other.train.ids.tolist() + other.test.ids.tolist())


def test_limit_keeps_the_calibration_images_apart(digits):
    small = load_data("digits", limit=50)
    assert small.info["sizes"] == {"train": 50, "calibration": 50, "test": 50}
    assert small.info["limit"] == 50
    for split in ("train", "calibration", "test"):
        assert set(getattr(small, split).ids.tolist()) < set(getattr(digits, split).ids.tolist())
        assert set(getattr(small, split).class_counts()) == {5}


def test_size_and_channels_of_a_named_dataset():
    splits = load_data("digits", size=28, channels=3)
    assert splits.train.image_shape == (3, 28, 28)
    assert torch.equal(splits.train.images[:, 0], splits.train.images[:, 2])
    assert splits.info["size"] == [28, 28]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_missing_files_say_where_and_what(tmp_path, name, layout):
    with pytest.raises(DataError, match=r"\(downloading is off\)") as caught:
        load_data(name, tmp_path / "here", download=False)
    assert str(tmp_path / "here") in str(caught.value)
    assert layout in str(caught.value)
    assert "--root" in str(caught.value)
    with pytest.raises(DataError, match="datasets"):
        load_data(name, download=False)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_failed_download_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, name):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=rf"{name} not found under .*not downloaded \(.*put .* there") as caught:
        load_data(name, tmp_path / "a" / "b")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_download_is_moved_into_place(tmp_path, monkeypatch):
    import torchvision.datasets

    def fetch(root, train, download):
        assert download
        write_idx(Path(root) / "MNIST" / "raw")
        (tmp_path / "calls").write_text("x")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    first = load_data("mnist", tmp_path / "data")
    (tmp_path / "calls").unlink()
    second = load_data("mnist", tmp_path / "data")
    assert not (tmp_path / "calls").exists()
    assert first.info == second.info
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_download_without_permission(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"mnist not found under .* not downloaded \(.*Not a directory"):
        load_data("mnist", tmp_path / "file" / "x")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPLET_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("CAPLET_CACHE")
    assert cache_dir().name == "caplet"


def test_import_is_light():
    code = "import sys, caplet.data; print({'torchvision', 'sklearn', 'scipy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_request_defaults_fit_the_embedded_data():
    source = load_source(DataRequest())
    assert source.root is None
    assert len(source.train) + len(source.test) == 1797
