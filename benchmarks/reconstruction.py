"""Reconstruction at fixed widths: what each part does, alone and together, and the chosen one on the test split.

Widths are given by point, by role, or for all weights and activations. Parts are fitted on the first images of the
calibration split and compared on its last ones, which no fit has seen: the mean squared change of the class-capsule
lengths, and predictions. The part list named by ``--ship`` is then lowered, its integers must keep ``--tolerance`` on
the whole calibration split, and only then the test split is opened, once, for them.

    python benchmarks/reconstruction.py shared/models/q7_mnist.h5 mnist --root shared/data \\
        --widths weight=5,digit.weight=4,activations=8,votes=6 --parts rounding bias,rounding --ship bias,rounding

``nearest`` in ``--parts`` stands for no reconstruction, ``tune`` for exponents tuned one at a time (the default of
``caplet quantize``). Writes benchmarks/records/<date>-reconstruction-<name>.json.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caplet.data import load_data
from caplet.data.imageset import ImageSet, to_float
from caplet.jobs.run import float_predictions
from caplet.lower import lower
from caplet.metrics import accuracy, paired
from caplet.models.base import CapsNet
from caplet.models.checkpoint import load_model, save_model
from caplet.nn.functional import lengths
from caplet.nn.points import Storage
from caplet.program import Program
from caplet.quant.measure.evaluator import predict
from caplet.quant.measure.tune import DEFAULT_IMAGES as TUNING_IMAGES
from caplet.quant.measure.tune import Tuner
from caplet.quant.plan.calibrate import calibrate
from caplet.quant.plan.formats import FormatRule, FormatSource, bits_of
from caplet.quant.plan.memory import count_memory
from caplet.quant.plan.plan import QuantPlan
from caplet.quant.reconstruct.reconstruct import BlockReport, Reconstruction, reconstruct
from caplet.quant.reconstruct.settings import ReconstructSettings, parse_parts
from caplet.quant.simulate.fake_quant import fake_quantized
from caplet.runtime.engine import predictions

RECORDS = Path(__file__).parent / "records"
BATCH = 50
DEFAULTS = ReconstructSettings()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--widths", required=True, help="e.g. weight=5,digit.weight=3,activations=8,votes=6")
    parser.add_argument("--parts", nargs="*", default=[], help="lists of parts to compare")
    parser.add_argument("--ship", help="the list of parts to lower, accept and test")
    parser.add_argument("--tolerance", type=float, default=0.1, help="percentage points on the calibration split")
    parser.add_argument("--images", type=int, default=1024, help="for fitting")
    parser.add_argument("--compare", type=int, default=1000, help="for comparing")
    parser.add_argument("--calibration", type=int, default=5000, help="size of the calibration split")
    parser.add_argument("--sweeps", type=int, default=DEFAULTS.sweeps)
    parser.add_argument("--shrink", type=float, default=DEFAULTS.shrink)
    parser.add_argument("--rows-per-column", type=float, default=DEFAULTS.rows_per_column)
    parser.add_argument("--tuning-images", type=int, default=DEFAULTS.tuning_images)
    parser.add_argument("--name", help="of the record; default: the model's")
    parser.add_argument("--fit-only", action="store_true", help="with --folder: fit and compare, no record, no test")
    parser.add_argument("--accept-only", action="store_true", help="with --folder: stop before the test split")
    parser.add_argument("--folder", type=Path, help="keeps fits, so that a killed run, or one without --ship, goes on")
    return parser.parse_args()


def widths(model: CapsNet, text: str) -> dict[str, int]:
    """The width of every point from ``name=bits`` pairs: the point's key, else its role, else weights/activations."""
    given = {name: int(bits) for name, bits in (pair.split("=") for pair in text.split(","))}
    chosen, used = {}, set()
    for key, spec in model.points().items():
        kind = "weights" if spec.storage is Storage.FLASH else "activations"
        name = next((name for name in (key, str(spec.role), kind) if name in given), None)
        used.add(name)
        chosen[key] = bits_of(spec, given[name] if name is not None else 8, FormatRule())
    if set(given) - used:
        raise SystemExit(f"widths of no point: {sorted(set(given) - used)}")
    return chosen


def run(model: CapsNet, images: Tensor, plan: QuantPlan | None = None) -> Tensor:
    """Class capsules in float, or under a plan."""
    with torch.no_grad():
        if plan is None:
            return torch.cat([model(to_float(batch)) for batch in torch.split(images, BATCH)])
        with fake_quantized(model, plan):
            return torch.cat([model(to_float(batch)) for batch in torch.split(images, BATCH)])


def main() -> None:
    """Compare, choose, accept, test, record."""
    args = arguments()
    model = load_model(args.model)
    splits = load_data(args.data, args.root, calibration_size=args.calibration)
    images, labels = splits.calibration.images, splits.calibration.labels
    began = time.perf_counter()
    calibration = calibrate(model, images[: args.images])
    calibrated = time.perf_counter() - began
    chosen = widths(model, args.widths)

    def plan_from(source: FormatSource) -> QuantPlan:
        return QuantPlan({key: source.format(key, bits) for key, bits in chosen.items()})

    plan = plan_from(calibration)
    total = count_memory(model, plan).total
    print(f"W {total.weight_reduction:.2f}x, A {total.activation_reduction:.2f}x", flush=True)
    others, answers = images[-args.compare :], labels[-args.compare :].numpy()
    exact = run(model, others)
    float_hits = predict(exact).numpy() == answers
    fits: dict[str, Reconstruction] = {}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*args.parts, *([args.ship] if args.ship else [])]):
        start = time.perf_counter()
        if name in ("nearest", "tune"):
            tuner = Tuner(model, calibration, images[:TUNING_IMAGES])
            found = Reconstruction(model, plan_from(calibration if name == "nearest" else tuner), ())
        else:
            settings = ReconstructSettings(
                parse_parts(name),
                images=args.images,
                sweeps=args.sweeps,
                shrink=args.shrink,
                rows_per_column=args.rows_per_column,
                tuning_images=args.tuning_images,
            )
            found = kept_fit(model, plan, images, settings, args.folder and args.folder / name)
        seconds = time.perf_counter() - start
        fits[name] = found
        capsules = run(found.model, others, found.plan)
        hits = predict(capsules).numpy() == answers
        memory = count_memory(model, found.plan).total
        rows.append(
            {
                "parts": name,
                "length_error": float((lengths(capsules) - lengths(exact)).square().mean()),
                "changed_predictions": int((predict(capsules) != predict(exact)).sum()),
                "paired": asdict(paired(float_hits, hits)),
                "weight_reduction": memory.weight_reduction,
                "activation_reduction": memory.activation_reduction,
                "seconds": round(seconds, 1),  # a kept fit's are those of reading it
                "blocks": [asdict(block) for block in found.blocks],
            }
        )
        shown = {key: value for key, value in rows[-1].items() if key != "blocks"}
        print(json.dumps(shown), flush=True)

    record: dict[str, Any] = {
        "benchmark": "reconstruction",
        "command": shlex.join(["python", "benchmarks/reconstruction.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"threads": torch.get_num_threads(), "system": platform.system(), "torch": torch.__version__},
        "widths": chosen,
        "calibration_seconds": round(calibrated, 1),
        "images": {"calibration": len(images), "fitted": f"first {args.images}", "compared": f"last {len(others)}"},
        "rows": rows,
    }
    if args.fit_only:
        return
    if args.ship:
        record["shipped"] = ship(fits[args.ship], model, splits, args)
        print(json.dumps({key: value for key, value in record["shipped"].items() if key != "plan"}, indent=1))
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-reconstruction-{args.name or args.model.stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def kept_fit(
    model: CapsNet, plan: QuantPlan, images: Tensor, settings: ReconstructSettings, folder: Path | None
) -> Reconstruction:
    """A fit, from the folder where it is there already."""
    if folder is None:
        return reconstruct(model, plan, images, settings)
    done, wanted = folder / "fit.json", {"plan": plan.digest(), "settings": settings.model_dump(mode="json")}
    if done.exists():
        facts = json.loads(done.read_text(encoding="utf-8"))
        if facts["wanted"] == wanted:
            blocks = tuple(BlockReport(**block) for block in facts["blocks"])
            return Reconstruction(
                load_model(folder / "model.safetensors"), QuantPlan.load(folder / "plan.json"), blocks
            )
    found = reconstruct(model, plan, images, settings, folder=folder)
    save_model(found.model, folder / "model.safetensors")
    found.plan.save(folder / "plan.json")
    blocks_json = [asdict(block) for block in found.blocks]
    done.write_text(json.dumps({"wanted": wanted, "blocks": blocks_json}), encoding="utf-8")
    return found


def codes_of(program: Program, data: ImageSet) -> NDArray[np.int64]:
    """The integers' predictions."""
    return predictions(program, data.images.numpy())[0]


def kept_predictions(folder: Path | None, name: str, compute: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Predictions, from the folder where they are there already."""
    if folder is None:
        return compute()
    path = folder / f"{name}.npy"
    if not path.exists():
        found = compute()
        np.save(path, found)
    return np.asarray(np.load(path))


def ship(found: Reconstruction, model: CapsNet, splits: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Accept the integers on the calibration split; where they keep the tolerance, measure the test split, once."""
    folder: Path | None = args.folder and args.folder / args.ship
    tolerance = args.tolerance
    program = lower(found.model, found.plan)
    memory = count_memory(model, found.plan).total
    facts: dict[str, Any] = {
        "parts": args.ship,
        "weight_reduction": memory.weight_reduction,
        "activation_reduction": memory.activation_reduction,
        "flash_bytes": program.flash_bytes,
        "tolerance_points": tolerance,
        "plan": found.plan.to_json(),
    }
    for split in ("calibration", "test"):
        data = getattr(splits, split)
        answers = data.labels.numpy()
        name = f"{split}-{found.plan.digest()[:16]}"
        exact = kept_predictions(folder, f"float-{split}", partial(float_predictions, model, data))
        float_hits = exact == answers
        predicted = kept_predictions(folder, name, partial(codes_of, program, data))
        result = paired(float_hits, predicted == answers)
        lost = 100 * (int(float_hits.sum()) - int((predicted == answers).sum())) / len(answers)
        facts[split] = {
            "float": asdict(accuracy(int(float_hits.sum()), len(answers))),
            "integers": asdict(accuracy(int((predicted == answers).sum()), len(answers))),
            "paired": asdict(result),
            "lost_points": lost,
        }
        print(split, json.dumps(facts[split]), flush=True)
        if split == "calibration" and lost > tolerance + 1e-9:
            facts["accepted"] = False
            return facts
        if args.accept_only:
            raise SystemExit("accepted on the calibration split; the test split was not opened")
    return {**facts, "accepted": True}


if __name__ == "__main__":
    main()
