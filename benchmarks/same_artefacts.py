"""What caplet writes for a fixed set of runs, as SHA-256: run it before and after a change that must not alter a byte.

    PYTHONPATH=OLD/src python benchmarks/same_artefacts.py --shared ../shared --out ~/runs/before
    python benchmarks/same_artefacts.py --shared ../shared --out ~/runs/after --against ~/runs/before/artefacts.json

The runs: the digits demo; ``quantize`` of the Q7 network for MNIST by each method (1,000 calibration images), fitted
and with simpler routing; ``quantize`` of a DeepCaps and of a MobileNetV2 with capsules on digits; ``prune``;
C (least and most RAM) and ONNX. ``.caplet`` files, plans, model weights, exported C and ONNX files are compared. One
thread, so that sums of floats have one order. Exit code 1 where a file differs, is missing or is new. Takes about 15
minutes; the copy of the record goes to benchmarks/records by hand.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

START = "from caplet.cli import main; main()"
KINDS = (".caplet", ".c", ".h", ".onnx", ".safetensors", ".mk")
Q7 = ("--data", "mnist", "--root", "{shared}/data", "--calibration-size", "1000")
DIGITS = ("--data", "digits", "--size", "32", "--channels", "3", "--calibration-size", "200")
FIT = "equalise,exponents,channels,bias,rounding"
RUNS: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
    "qcapsnets": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "qcapsnets"),
    "rounding": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "qcapsnets", "--rounding", "all",
                 "--tolerance", "0.4"),
    "progressive": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "progressive"),
    "ilp": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "ilp"),
    "fitted": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "ilp", "--no-explore", "--budget", "160KB",
               "--reconstruct", FIT, "--narrow", "--tolerance", "0.5"),
    "joint": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "ilp", "--no-explore", "--budget", "140KB",
              "--granularity", "tensor", "--reconstruct", "bias,joint", "--tolerance", "1"),
    "routing": ("quantize", "{shared}/models/q7_mnist.h5", *Q7, "--method", "qcapsnets", "--simplify-routing",
                "--tolerance", "0.6"),
    "deep": ("quantize", "{shared}/models/deep_cifar10.pt", *DIGITS, "--method", "qcapsnets", "--tolerance", "30"),
    "trunk": ("train", "--model", "mobilenetv2-caps", *DIGITS[:-2], "--limit", "96", "--set", "epochs=1",
              "--set", "calibration_size=48", "--set", "threads=1"),
    "trunk-quantized": ("quantize", "{out}/trunk/model.safetensors", *DIGITS, "--method", "qcapsnets",
                        "--tolerance", "30"),
    "prune": ("prune", "{shared}/models/q7_mnist.h5", *Q7, "--macs", "0.5", "--epochs", "0.02", "--threads", "1"),
    "prune-quantized": ("quantize", "{out}/prune/model.safetensors", *Q7, "--method", "qcapsnets", "--tolerance", "1"),
}  # fmt: skip
EXPORTS: dict[str, tuple[str, ...]] = {
    "c-small": ("qcapsnets", "--to", "c", "--ram", "small"),
    "c-fast": ("ilp", "--to", "c", "--ram", "fast"),
    "c-trunk": ("trunk-quantized", "--to", "c"),
    "c-deep": ("deep", "--to", "c"),
    "onnx": ("progressive", "--to", "onnx"),
    "onnx-trunk": ("trunk-quantized", "--to", "onnx"),
}
"""Name -> the run that is exported, and how."""


def call(name: str, words: list[str], folder: Path) -> float:
    """Run one command of caplet; returns its seconds. Exit code 5 (target not met) is a result like another."""
    if (folder / "done" / name).exists():
        return 0.0
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", START, *words], check=False, capture_output=True, text=True)
    if done.returncode not in (0, 5):
        sys.exit(f"{name}: exit code {done.returncode}\n{' '.join(words)}\n{done.stderr[-2000:]}")
    (folder / "done" / name).write_text("")
    return time.perf_counter() - began


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that ships, and of every plan, by path below ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix in KINDS or (path.name.startswith("plan") and path.suffix == ".json"))
    }


def main() -> None:
    """Run everything that is not there yet, write artefacts.json, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", action="append", help="names of runs; all by default")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    out, shared = options.out.resolve(), options.shared.resolve()
    (out / "done").mkdir(parents=True, exist_ok=True)
    for name, words in RUNS.items():
        if options.only and name not in options.only:
            continue
        filled = [word.format(shared=shared, out=out) for word in words]
        filled += ["--accept", "measured"] if words[0] == "quantize" else []
        print(f"{name}: {call(name, [*filled, '--out', str(out / name), '--force', '--quiet'], out):.1f} s", flush=True)
    for name, (run, *options_of_export) in EXPORTS.items():
        if options.only and name not in options.only:
            continue
        target = out / name / "model.onnx" if "onnx" in options_of_export else out / name
        target.parent.mkdir(exist_ok=True)
        print(
            f"{name}: {call(name, ['export', str(out / run), *options_of_export, '--out', str(target)], out):.1f} s",
            flush=True,
        )
    found = digests(out)
    (out / "artefacts.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} files")
    if options.against is not None:
        before = json.loads(options.against.read_text())
        if options.only:
            before = {name: value for name, value in before.items() if name.split("/")[0] in options.only}
        differ = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
        print("\n".join(f"differs: {name}" for name in differ) or f"all {len(before)} files are equal")
        sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
