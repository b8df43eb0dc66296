"""Imported models on whole test sets: correct images against the counts their owners give, and reference outputs.

    python benchmarks/import_models.py --shared ../shared     # writes benchmarks/records/<date>-import-models.json, .md

Needs the folder of trained models and data that the models come with. CIFAR-10 (JPEG) is unpacked into a temporary
folder; its list is every fifth test image, sorted by class folder, then file name.
"""

import argparse
import hashlib
import json
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caplet.data import load_data
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.models.importers import detect
from caplet.nn.functional import lengths

RECORDS = Path(__file__).parent / "records"
TOLERANCE_IMAGES, TOLERANCE_OUTPUT = 2, 1e-4

Labelled = tuple[Tensor, Tensor]  # uint8 (N, C, H, W), int64 (N)


def idx_test(name: str, shared: Path) -> Labelled:
    """The test split of an IDX dataset."""
    test = load_data(name, root=shared / "data", download=False).test
    return torch.as_tensor(test.images), torch.as_tensor(test.labels).long()


def cifar10_every_fifth(shared: Path) -> Labelled:
    """2,000 of the 10,000 test images."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(shared / "data" / "cifar10-jpeg.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        test = next(path for path in sorted(Path(folder).rglob("test")) if path.is_dir())
        classes = sorted(path.name for path in test.iterdir())
        files = [(path, label) for label, name in enumerate(classes) for path in sorted((test / name).iterdir())]
        assert len(files) == 10_000, f"expected 10,000 test images, found {len(files)}"
        images = [np.asarray(Image.open(path).convert("RGB")) for path, _ in files[::5]]
    labels = [label for _, label in files[::5]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


@dataclass(frozen=True)
class Case:
    """A checkpoint and the images it is judged on."""

    file: str
    data: str
    load: Callable[[Path], Labelled]


CASES = (
    Case("shallow_fmnist.pt", "Fashion-MNIST test", lambda shared: idx_test("fashion-mnist", shared)),
    Case("deep_cifar10.pt", "CIFAR-10 (JPEG) test, every fifth image", cifar10_every_fifth),
    Case("q7_mnist.h5", "MNIST test", lambda shared: idx_test("mnist", shared)),
)


@torch.no_grad()
def correct(model: CapsNet, images: Tensor, labels: Tensor, batch: int = 100) -> int:
    """Number of images whose longest class capsule is their label's."""
    hits = 0
    for start in range(0, len(images), batch):
        scores = lengths(model(images[start : start + batch].float() / 255))
        hits += int((scores.argmax(1) == labels[start : start + batch]).sum())
    return hits


@torch.no_grad()
def measure(case: Case, shared: Path) -> dict[str, Any]:
    """Import one model and compare it with what its owners give."""
    path = shared / "models" / case.file
    reference = np.load(path.with_name(f"{path.stem}.reference.npz"))
    start = time.perf_counter()
    model = load_model(path)
    seconds = time.perf_counter() - start
    images, labels = case.load(shared)
    index = reference["index"]
    assert np.array_equal(images[index].numpy(), reference["images"]), f"{case.data}: other images than the reference's"
    output = model(torch.from_numpy(reference["images"]).float() / 255)
    expected = torch.from_numpy(reference["output"])
    output = lengths(output) if expected.ndim == 2 else output
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "model.safetensors"
        save_model(model, native)
        again = load_model(native)
        size = native.stat().st_size
        same = torch.equal(again(images[:64].float() / 255), model(images[:64].float() / 255))
    found, wanted = correct(model, images, labels), int(reference["correct"])
    difference = float((output - expected).abs().max())
    return {
        "file": case.file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": detect(path).name,
        "family": model.family,
        "config": model.config.model_dump(mode="json"),
        "parameters": model.parameter_count(),
        "data": case.data,
        "images": len(images),
        "correct": found,
        "correct_expected": wanted,
        "largest_output_difference": difference,
        "import_seconds": round(seconds, 2),
        "native_bytes": size,
        "native_round_trip_equal": same,
        "passed": abs(found - wanted) <= TOLERANCE_IMAGES and difference < TOLERANCE_OUTPUT and same,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# Imported models",
        "",
        f"{record['date']}, torch {record['torch']}. Made by `{record['command']}`.",
        "",
        f"Passed: correct images within {TOLERANCE_IMAGES} of the count given with the model, the class capsules of 64"
        f" reference images within {TOLERANCE_OUTPUT:g}, and equal outputs after saving and loading the native format.",
        "",
        "| file | format | data | correct | given | largest output difference | passed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['file']} | {r['format']} | {r['data']} | {r['correct']:,} of {r['images']:,} | {r['correct_expected']:,}"
        f" | {r['largest_output_difference']:.1e} | {'yes' if r['passed'] else 'NO'} |"
        for r in record["results"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse the command line, measure, write the record; 0 if all passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with models/ and data/")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="date of the record")
    options = parser.parse_args()
    record = {
        "benchmark": "import_models",
        "date": options.date,
        "command": shlex.join(["python", "benchmarks/import_models.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "results": [measure(case, options.shared) for case in CASES],
    }
    page = markdown(record)
    print(page)
    RECORDS.mkdir(exist_ok=True)
    stem = RECORDS / f"{record['date']}-import-models"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page)
    return 0 if all(result["passed"] for result in record["results"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
