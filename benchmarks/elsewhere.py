"""How faithful integers are away from the calibration images: on training images as they are, shifted and mirrored.

    python benchmarks/elsewhere.py MODEL fashion-mnist RUN/model_satisfied.caplet [...] --root ../shared/data

Training images were seen by no fit. Also counts the calibration images that the float model has right, plain and with
its class capsules averaged over shifts of up to a pixel (the target of the joint fit). The test split stays closed.
Writes benchmarks/records/<date>-elsewhere-<name>.json.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data import load_data
from caplet.metrics import paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model
from caplet.program.file import load_program
from caplet.quant.measure.evaluator import predict
from caplet.quant.reconstruct.end_to_end import smoothed
from caplet.runtime.engine import predictions

RECORDS = Path(__file__).parent / "records"


def answers(model: CapsNet, images: Tensor) -> NDArray[np.int64]:
    """What the float model says."""
    return predict(smoothed(model, images, 0)).numpy()


def main() -> None:
    """Compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("programs", type=Path, nargs="+")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--name", help="of the record; default: the model's")
    options = parser.parse_args()
    model = load_model(options.model)
    splits = load_data(options.data, options.root, calibration_size=5000)
    images, labels = splits.train.images[: options.images], splits.train.labels[: options.images].numpy()
    places = {
        "as they are": images,
        "one pixel down and right": images.roll((1, 1), (2, 3)),
        "mirrored": images.flip(3),
    }
    rows = []
    for place, pixels in places.items():
        exact = answers(model, pixels)
        for path in options.programs:
            found = predictions(load_program(path), pixels.numpy())[0]
            rows.append(
                {
                    "program": f"{path.parent.name}/{path.name}",
                    "images": place,
                    "float_percent": 100 * float((exact == labels).mean()),
                    "changed_percent": 100 * float((found != exact).mean()),
                    "paired": asdict(paired(exact == labels, found == labels)),
                }
            )
            print(rows[-1], flush=True)
    known = splits.calibration.labels
    right = {
        name: int((predict(smoothed(model, splits.calibration.images, reach)) == known).sum())
        for name, reach in (("plain", 0), ("smoothed over a pixel", 1))
    }
    print(right)
    record = {
        "command": shlex.join(["python", "benchmarks/elsewhere.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "training_images": len(images),
        "rows": rows,
        "float_right_of_calibration": right,
        "calibration_images": len(known),
    }
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-elsewhere-{options.name or options.model.stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
