"""Fixtures for all tests.

``shared``: the folder of real data and trained models that may lie beside the project; tests that use it carry
``@pytest.mark.shared`` and are skipped where it is absent. ``isolated_cache``: no test touches the user's cache.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from caplet.data import Splits

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core: their threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of `make test`: a make that a test starts is its own
    os.environ.pop(name, None)

settings.register_profile("any-machine", deadline=None)  # a slow machine is no failure
settings.load_profile("any-machine")

SLOW = 4
"""Seconds of a slow test whose mark does not say how many."""

SHARED = Path(os.environ.get("CAPLET_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _shared_is_here() -> bool:
    return (SHARED / "data").is_dir() and (SHARED / "models").is_dir()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that the workers end together. Skip ``shared`` where the folder is absent."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.args[0] if slow.args else SLOW
    items.sort(key=lambda item: -seconds[item.path])
    if not _shared_is_here():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="the folder 'shared' is not beside the project"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (``data/``) and trained models (``models/``), or a skip."""
    if not _shared_is_here():
        pytest.skip("the folder 'shared' is not beside the project")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point CAPLET_CACHE at a folder of this test session (one for all its workers)."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPLET_CACHE", str(base / "caplet-cache"))
        yield base / "caplet-cache"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Tests interrupt themselves; the shell of a job in the background may have turned that off."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits() -> "Splits":
    """The embedded dataset, loaded once."""
    from caplet.data import load_data

    return load_data("digits")


TINY = {"epochs": 3, "calibration_size": 120}
"""Settings that make training on digits short."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small, briefly trained capsule network for digits: model.safetensors, metrics.json, ..."""
    from caplet.jobs.train import train_by_recipe

    folder = tmp_path_factory.mktemp("trained") / "run"
    train_by_recipe("digits", folder, changes=TINY, limit=240, progress=False)
    return folder


@pytest.fixture(scope="session")
def quantized(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of its quantization: model_satisfied.caplet, plan_satisfied.json, metrics.json, ..."""
    from caplet.api import load_data, load_float, quantize
    from quantize_requests import as_measured

    folder = tmp_path_factory.mktemp("quantized") / "run"
    model, splits = load_float(trained / "model.safetensors"), load_data("digits", calibration_size=120)
    result = quantize(model, splits, folder, as_measured(tolerance=5.0))
    assert result.met
    return folder


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root under which the dataset ``mnist`` is: 60 training and 20 test images of noise."""
    import numpy as np

    root = tmp_path_factory.mktemp("tiny") / "root"
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        arrays = {"images-idx3": draws.integers(0, 256, (count, 28, 28)), "labels-idx1": np.arange(count) % 10}
        for kind, array in arrays.items():
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    return root


@pytest.fixture(scope="session")
def tiny_28(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of a tiny ShallowCaps for 1x28x28 images."""
    import torch

    from caplet.models.checkpoint import save_model
    from caplet.models.registry import build

    torch.manual_seed(0)
    stem = ({"kernel": 9, "channels": 4, "stride": 3},)
    small = {"stem": stem, "primary_types": 4, "primary_dim": 4, "primary_kernel": 3, "class_dim": 4}
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_model(build("shallow", {"image": (1, 28, 28), **small}), path)
    return path
