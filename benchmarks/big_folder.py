"""An image folder larger than memory: how much memory splits, calibration and accuracy take.

    python benchmarks/big_folder.py --images 1000000 --calibration 100000

Writes distinct PNG files (32 x 32, RGB) of ten classes and gives each many names (hard links), until there are so many
images. Reads the folder as `caplet` reads any, calibrates a small network on the calibration split, and counts what it
classifies correctly there. Run it in a cgroup of 2 GB to prove the bound; the record says what the cgroup allowed and
used. Writes benchmarks/records/<date>-big-folder.json, and removes the images.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shlex
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from caplet.data import load_data
from caplet.jobs.run import evaluate
from caplet.models.registry import build, named_model
from caplet.quant.plan.calibrate import calibrate

RECORDS = Path(__file__).parent / "records"
CLASSES, SIDE = 10, 32
CGROUP = Path("/sys/fs/cgroup")


def write_images(folder: Path, images: int, distinct: int) -> None:
    """``images`` names in ten class folders, for ``distinct`` files."""
    draws = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"class{label}"
        place.mkdir()
        for index in range(images // CLASSES):
            path = place / f"{index:07d}.png"
            if index < distinct // CLASSES:
                pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[2 * label : 2 * label + 8] //= 4
                Image.fromarray(pixels).save(path, compress_level=1)
            else:
                os.link(place / f"{index % (distinct // CLASSES):07d}.png", path)


class Peak(threading.Thread):
    """Samples this process's anonymous memory: what the system cannot drop, unlike pages of mapped files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, now)
            time.sleep(0.05)


def cgroup() -> dict[str, int]:
    """Bytes that this process's memory cgroup allows, and has used at most; empty where it is not found."""
    rows = [line.split(":") for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()]
    for _, kinds, path in rows:
        names = {"memory": ("memory.limit_in_bytes", "memory.max_usage_in_bytes"), "": ("memory.max", "memory.peak")}
        folder = CGROUP / kinds / path.strip("/")
        if kinds in names and all((folder / name).is_file() for name in names[kinds]):
            values = [(folder / name).read_text(encoding="ascii").strip() for name in names[kinds]]
            return {what: int(v) for what, v in zip(("allowed", "peak"), values, strict=True) if v.isdigit()}
    return {}


def main() -> None:
    """Write, read, calibrate, count, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=10_000)
    parser.add_argument("--calibration", type=int, default=100_000)
    options = parser.parse_args()
    steps: dict[str, dict[str, float]] = {}
    peak = Peak()
    peak.start()

    def done(what: str) -> None:
        steps[what] = {"anonymous_bytes": peak.bytes, "processor_seconds": round(time.process_time(), 1)}
        print(what, steps[what], flush=True)
        peak.bytes = 0

    with tempfile.TemporaryDirectory(prefix="caplet-big-folder-") as name:
        write_images(Path(name), options.images, options.distinct)
        done("write")
        splits = load_data(Path(name), calibration_size=options.calibration)
        done("splits")
        named = named_model("shallow-digits")
        torch.manual_seed(0)
        model = build(named.family, {**named.config.model_dump(), "image": (3, SIDE, SIDE)}).eval()
        calibration = calibrate(model, splits.calibration.images)
        done("calibrate")
        accuracy = evaluate(model, splits.calibration).accuracy
        done("accuracy")
        counts = b"".join(calibration.histograms[key].counts.tobytes() for key in sorted(calibration.histograms))
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__},
        "images": {key: len(getattr(splits, key)) for key in ("train", "calibration", "test")},
        "pixel_bytes": options.images * 3 * SIDE * SIDE,
        "hashes": splits.info["hashes"],
        "histograms_sha256": hashlib.sha256(counts).hexdigest(),
        "correct": accuracy.correct,
        "steps": steps,
        "cgroup_bytes": cgroup(),
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-big-folder.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
