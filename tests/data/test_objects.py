"""from_dataset: datasets of other libraries, by their items and length; small ones that behave as the real ones."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from data_files import pixels, write_folder
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import caplet
from caplet.data import from_dataset, load_data
from caplet.errors import ConfigError, DataError

RGB = pixels(60, (6, 5, 3))
LABELS = [n % 3 for n in range(60)]


class Pairs:
    """As torchvision's: (image, label) by number; classes as a list; a transform."""

    def __init__(self, images, labels=LABELS, transform=Image.fromarray, classes=("cat", "dog", "eel")):
        self.images, self.labels, self.transform, self.classes = images, labels, transform, list(classes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.transform(self.images[number]), self.labels[number]


class Names:
    names = ("cat", "dog", "eel")


class Rows:
    """As Hugging Face's: a table by number, and features."""

    def __init__(self, images, keys=("img", "fine_label"), **more):
        self.images, self.keys, self.more = images, keys, more
        self.features = {keys[0]: None, keys[1]: Names()}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return dict(zip(self.keys, (Image.fromarray(self.images[number]), LABELS[number]), strict=True)) | self.more


def planes(image):
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "make",
    [
        Pairs,
        Rows,
        lambda images: Rows(images, ("image", "label"), coarse=3),
        lambda images: Pairs(images, transform=lambda image: image),
        lambda images: Pairs(images, transform=planes),
        lambda images: Pairs(images, [torch.tensor(k) for k in LABELS]),
        lambda images: Pairs(images, np.array(LABELS)),
    ],
)
def test_other_libraries_datasets(make):
    splits = from_dataset(make(RGB), make(RGB[:20]))
    assert splits.info["sizes"] == {"train": 54, "calibration": 6, "test": 20}
    assert splits.train.classes == ("cat", "dog", "eel")
    assert np.array_equal(splits.test.images.numpy(), RGB[:20].transpose(0, 3, 1, 2))
    assert splits.test.labels.tolist() == LABELS[:20]
    assert np.array_equal(splits.train.images.numpy(), RGB.transpose(0, 3, 1, 2)[splits.train.ids])
    assert splits.info["name"] == "objects"
    assert splits.info["root"] is None
    assert splits.info["source"].startswith("test_objects's ")


def test_tensors_without_names_and_a_test_split():
    gray = torch.from_numpy(pixels(60, (6, 5)))
    splits = caplet.from_dataset(TensorDataset(gray, torch.tensor(LABELS)))
    assert splits.info["sizes"] == {"train": 44, "calibration": 4, "test": 12}
    assert splits.train.classes == ("0", "1", "2")
    assert np.array_equal(splits.test.images[:, 0], gray[splits.test.ids])
    for said in ("labels 0..2 are the classes", "20 % of the images were cut off"):
        assert said in splits.info["note"]
    part = Subset(TensorDataset(gray, torch.tensor(LABELS)), range(30))
    assert len(caplet.from_dataset(part, part, part).calibration) == 30


def test_settings_and_what_pictures_need():
    clear = np.full((60, 6, 5, 4), 255, np.uint8)
    clear[:, :3, :, 3] = 0
    splits = from_dataset(Pairs(clear), size=4, channels=1, background="black", limit=6, calibration_size=9)
    assert splits.train.image_shape == (1, 4, 4)
    assert splits.info["sizes"] == {"train": 6, "calibration": 6, "test": 6}
    assert "transparent pixels were laid over black" in splits.info["note"]
    assert splits.train.images[0, 0, 0, 0] == 0
    assert splits.train.images[0, 0, 3, 0] == 255
    for wrong in ({"size": 0}, {"channels": 2}, {"background": "x"}, {"limit": 0}, {"calibration_size": 0}):
        with pytest.raises(ConfigError):
            from_dataset(Pairs(RGB), **wrong)


def test_torchvisions_folder_is_caplets(tmp_path):
    from torchvision.datasets import ImageFolder

    write_folder(tmp_path, ("a", "b"), 20)
    ours, theirs = load_data(tmp_path), from_dataset(ImageFolder(str(tmp_path)))
    assert ours.info["hashes"] == theirs.info["hashes"]


def test_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    rows = {"image": [Image.fromarray(image) for image in RGB], "label": LABELS}
    hub = datasets.Dataset.from_dict(rows, features=features)
    splits = from_dataset(hub, hub.select(range(20)))
    assert splits.train.classes == ("x", "y", "z")
    assert np.array_equal(splits.test.images.numpy(), RGB[:20].transpose(0, 3, 1, 2))
    assert splits.info["source"] == "datasets's Dataset"
    plain = hub.with_format("numpy")
    assert from_dataset(plain, plain).info["hashes"]["test"] == from_dataset(hub, hub).info["hashes"]["test"]
    with pytest.raises(DataError, match="a table of datasets: give them one by one"):
        from_dataset(datasets.DatasetDict(train=hub))
    with pytest.raises(DataError, match="has no length or no items"):
        from_dataset(hub.to_iterable_dataset())


class Broken(Pairs):
    def __init__(self, item):
        super().__init__(RGB)
        self.item = item

    def __getitem__(self, number):
        return self.item if number == 7 else super().__getitem__(number)


GOOD = Image.fromarray(RGB[0])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, r"train\[7\]: int found; expected \(image, label\)"),
        ((GOOD,), r"train\[7\]: tuple found"),
        ({"image": GOOD, "caption": "x"}, r"train\[7\]: keys image, caption; expected image and label"),
        ((GOOD, 1.5), r"train\[7\]: label array\(1\.5\); expected a whole number or a text"),
        ((GOOD, [0, 1, 0]), r"train\[7\]: label array\(\[0, 1, 0\]\); expected a whole number"),
        ((GOOD, None), r"train\[7\]: label array\(None"),
        ((GOOD, 3), r"label 3 is out of range; 3 classes: 0\.\.2"),
        ((GOOD, -1), r"label -1 is out of range"),
        ((Image.fromarray(RGB[0, :5]), 1), "images differ in size"),
        ((RGB[0], 1), r"image .*all must be Pillow images, or arrays of one shape"),
        ((None, 1), "all must be Pillow images, or arrays of one shape"),
    ],
)
def test_items_that_are_wrong_are_named(item, message):
    with pytest.raises(DataError, match=message):
        from_dataset(Broken(item))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": Pairs(RGB)}, r"train: a table of datasets: give them one by one \(\.\.\.\['train'\]\)"),
        (iter([(GOOD, 1)]), "train: list_iterator has no length or no items: give a dataset that is not streamed"),
        (Pairs(RGB[:0]), "train: the dataset is empty"),
        (
            Pairs(RGB, transform=lambda image: planes(image) * 2 - 1),
            r"train: pixels -1 to 1; .* before they were normalized",
        ),
    ],
)
def test_datasets_that_are_none(given, message):
    assert isinstance(given, Mapping | Pairs) or hasattr(given, "__next__")
    with pytest.raises(DataError, match=message):
        from_dataset(given)
