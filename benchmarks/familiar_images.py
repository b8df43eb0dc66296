"""What quantization changes on images that a network was trained on, on the same images moved, and on new ones.

    python benchmarks/familiar_images.py ../shared/models/q7_mnist.h5 --data mnist --root ../shared/data

Equal widths everywhere, so nothing is chosen by the images. This opens the test split: rules for familiar images are
looked at here (docs/evaluation.md), and no search may use what it prints.
"""

import argparse
import json
import platform
import shlex
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from caplet.data import load_data
from caplet.data.images import augment
from caplet.data.imageset import ImageSet, to_float
from caplet.jobs.quantize.job import CALIBRATION_IMAGES
from caplet.jobs.quantize.promise import varied
from caplet.jobs.run import classify, correct_images
from caplet.lower import lower
from caplet.metrics import paired
from caplet.models.checkpoint import load_model
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.units import uniform_plan


def moved(images: ImageSet) -> ImageSet:
    """Every image moved by up to a pixel each way."""
    generator = torch.Generator().manual_seed(1)
    parts = [augment(to_float(part), generator, shift=1) for part in torch.split(images.images, 1000)]
    return replace(images, images=torch.cat([(255 * part).round().to(torch.uint8) for part in parts]))


def main() -> None:
    """Parse the options, measure, print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--bits", type=int, nargs="+", default=[5, 6, 7])
    parser.add_argument("--out", type=Path, help="the record; default: stdout")
    options = parser.parse_args()
    model, splits = load_model(options.model), load_data(options.data, options.root)
    known = splits.train.evenly_spaced(options.images)
    sets = {"train": known, "half_moved": varied(known), "moved": moved(known), "test": splits.test}
    before = {name: correct_images(model, images) for name, images in sets.items()}
    calibration = calibrate(model, splits.calibration.evenly_spaced(CALIBRATION_IMAGES).images)
    rows = []
    for bits in options.bits:
        program = lower(model, uniform_plan(model, calibration, bits))
        for name, images in sets.items():
            after = classify(program, images) == images.labels.numpy()
            rows.append({"bits": bits, "images": name, **asdict(paired(before[name], np.asarray(after)))})
    record = {
        "what": __doc__.splitlines()[0],
        "command": shlex.join(["python", "benchmarks/familiar_images.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"threads": torch.get_num_threads(), "system": platform.system(), "torch": torch.__version__},
        "float_percent": {name: 100 * float(found.mean()) for name, found in before.items()},
        "rows": rows,
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
