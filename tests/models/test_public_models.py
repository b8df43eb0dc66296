"""Real data and public models: the images that the references hold, and the counts that are published."""

from pathlib import Path

import numpy as np
import pytest

from caplet.api import evaluate, load_data
from caplet.data import Splits
from caplet.models.importers import import_model

pytestmark = [pytest.mark.shared, pytest.mark.slow(25)]


@pytest.fixture(scope="module")
def cifar10(shared: Path) -> Splits:
    """The archive of 60,000 images, which takes seconds to decode."""
    return load_data("cifar10", shared / "data" / "cifar10-jpeg.tar.xz")


def test_the_archive_has_the_reference_images(cifar10: Splits, shared: Path) -> None:
    assert cifar10.info["sizes"] == {"train": 45_000, "calibration": 5_000, "test": 10_000}
    assert cifar10.info["note"] == "CIFAR-10 (JPEG)"
    assert cifar10.calibration.class_counts() == (500,) * 10
    stored = np.load(shared / "models" / "deep_cifar10.reference.npz")
    listed = cifar10.test.subset(list(range(0, 10_000, 5))).subset(stored["index"])
    assert np.array_equal(listed.images.numpy(), stored["images"])
    assert np.array_equal(listed.labels.numpy(), stored["labels"])


def test_public_counts(cifar10: Splits, shared: Path) -> None:
    mnist = load_data("mnist", root=shared / "data")
    cases = (("q7_mnist_bn", mnist, 9_799), ("q7_cifar_same", cifar10, 7_664), ("q7_cifar_same_bn", cifar10, 7_204))
    for name, splits, correct in cases:
        model = import_model(shared / "models" / f"{name}.h5")
        assert evaluate(model, splits.test).accuracy.correct == correct, name
