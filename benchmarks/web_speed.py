"""The export for browsers in node: images per second with SIMD and without, bytes, and codes against the interpreter.

    python benchmarks/web_speed.py RUN/model.caplet mnist --root ../shared/data --name q7-compressed

Takes training images. The time is the best of several rounds: of the processor, so that other work on the machine does
not count, and of the clock. Writes benchmarks/records/<date>-web-<name>.json.
"""

import argparse
import base64
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from caplet.data import load_data
from caplet.program import interpreter
from caplet.program.file import load_program
from caplet.runtime.web import FEATURES, emit_web

RECORDS = Path(__file__).parent / "records"
RUN = """
import fs from "node:fs";
import { load } from "./caplet-model.js";
const images = fs.readFileSync("images.bin");
const rows = [];
for (const simd of [true, false]) {
  const model = await load({ simd });
  const size = model.rows * model.columns * model.channels, count = images.length / size;
  const codes = [];
  for (let i = 0; i < count; i++) codes.push(...model.classify(images.subarray(i * size, (i + 1) * size)).codes);
  fs.writeFileSync(`codes-${simd}.bin`, Int16Array.from(codes));
  let processor = Infinity, clock = Infinity;
  for (let round = 0; round < 9; round++) {
    const used = process.cpuUsage(), began = performance.now();
    for (let i = 0; i < 200; i++) model.classify(images.subarray((i % count) * size, ((i % count) + 1) * size));
    const { user, system } = process.cpuUsage(used);
    processor = Math.min(processor, (user + system) / 1e6 / 200);
    clock = Math.min(clock, (performance.now() - began) / 1e3 / 200);
  }
  rows.push({ simd, images_per_second_of_processor_time: 1 / processor, images_per_second: 1 / clock });
}
console.log(JSON.stringify(rows));
"""


def main() -> None:
    """Export, run, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--name", required=True, help="of the record")
    options = parser.parse_args()
    program = load_program(options.program)
    images = load_data(options.data, options.root).train.images[: options.images].numpy()
    expected = interpreter.run(program, images).capsules.reshape(-1)
    with tempfile.TemporaryDirectory(prefix="caplet-web-speed-") as name:
        folder = Path(name) / "web"
        export = emit_web(program, folder)
        packed = re.search('const CONSTANTS = "(.*?)"', (folder / "caplet-core.js").read_text(encoding="utf-8"))
        assert packed is not None
        constants = len(base64.b64decode(packed[1]))
        sizes = {file: (folder / file).stat().st_size for file in export.files}
        (folder / "images.bin").write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
        (folder / "run.mjs").write_text(RUN)
        done = subprocess.run(["node", "run.mjs"], cwd=folder, capture_output=True, text=True, check=True)
        rows = json.loads(done.stdout)
        for row in rows:
            codes = np.fromfile(folder / f"codes-{str(row['simd']).lower()}.bin", dtype=np.int16)
            row["codes"], row["differing"] = codes.size, int((codes != expected).sum())
            print(row, flush=True)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "command": shlex.join(["python", "benchmarks/web_speed.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"machine": platform.machine(), "node": node, "load_average": os.getloadavg()[0]},
        "program": {"name": program.name, "constants_bytes": program.flash_bytes, "image": program.image_shape},
        "images": len(images),
        "bytes": sizes,
        "code_and_constants_bytes": {name: sizes[f"wasm/{name}.wasm"] + constants for name in FEATURES},
        "rows": rows,
    }
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-web-{options.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
