"""A Program's two ONNX files, exact and QDQ, in onnxruntime: bytes, images per second, and codes that differ.

Images are evenly spaced ones of the calibration split. Times are those of the processor (one thread), the least of
``--repeats`` runs of both files in turn; load of other processes makes them longer. QDQ is run twice: as onnxruntime
does on its own, and with ``session.x64quantprecision``, without which x86 processors that lack VNNI saturate sums.

    python benchmarks/onnx_forms.py q7_mnist-8.caplet=mnist shallow_fmnist-8.caplet=fashion-mnist --root ../shared/data
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from caplet.data import load_data
from caplet.program import Program, run
from caplet.program.file import load_program
from caplet.program.onnx.qdq import to_qdq
from caplet.program.onnx.translate import to_onnx

RECORDS = Path(__file__).parent / "records"


def session(model: bytes, precise: bool) -> Any:
    """One thread, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(program: Program, images: NDArray[np.uint8], repeats: int) -> list[dict[str, Any]]:
    """Every file of a Program."""
    expected = run(program, images)
    exact, qdq = to_onnx(program).SerializeToString(), to_qdq(program).SerializeToString()
    cases = {"exact": (exact, False), "qdq": (qdq, False), "qdq, x64quantprecision": (qdq, True)}
    sessions = {name: session(*case) for name, case in cases.items()}
    seconds = dict.fromkeys(cases, np.inf)
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, one in sessions.items():
            began = time.process_time()
            found[name] = one.run(["prediction", "capsules"], {"images": images})
            seconds[name] = min(seconds[name], time.process_time() - began)
    rows = []
    for name, (data, _) in cases.items():
        prediction, capsules = found[name]
        gap = np.abs(capsules - expected.capsules)
        rows.append(
            {
                "form": name,
                "file_bytes": len(data),
                "images_per_cpu_second": round(len(images) / seconds[name], 1),
                "images": len(images),
                "codes": gap.size,
                "differing_codes": int((gap > 0).sum()),
                "largest_difference": int(gap.max()),
                "differing_predictions": int((prediction != expected.predictions).sum()),
            }
        )
    return rows


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+", help="PROGRAM.caplet=DATASET")
    parser.add_argument("--root", type=Path, help="folder of the datasets")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    rows = []
    for word in options.programs:
        path, data = word.split("=")
        splits = load_data(data, options.root, progress=False)
        images = splits.calibration.evenly_spaced(options.images).images.numpy()
        for row in measure(load_program(path), images, options.repeats):
            rows.append({"program": Path(path).name, "data": data, **row})
            print(rows[-1], flush=True)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    record = {
        "command": shlex.join(["python", "benchmarks/onnx_forms.py", *words]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "vnni": "vnni" in cpu,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "packages": {name: version(name) for name in ("onnx", "onnxruntime")},
        "rows": rows,
    }
    if not options.no_record:
        path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-onnx-forms.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
